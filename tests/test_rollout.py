"""Episodes run the same wherever and in whatever company they run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from teamvla.rollout import Tick, rollout, run_episodes


class CountingEnv:
    """Ends with success after as many steps as its seed says, truncates at five."""

    def reset(self, *, seed=None):
        self.left, self.steps = seed, 0
        return {"left": self.left}, {"instruction": "count", "task": "count"}

    def step(self, action):
        self.received = action
        self.left -= 1
        self.steps += 1
        ended = self.left == 0
        return {"left": self.left}, 0.5, ended, self.steps == 5, {"success": ended}


class TwoArms:
    def reset(self):
        self.seen = []

    def act(self, observation):
        self.seen.append(observation)
        return [np.full(2, observation["left"], np.float32)] * 2


def test_an_episode_ends_at_success_and_sums_its_reward():
    outcome = rollout(CountingEnv(), TwoArms(), 3)
    assert (outcome.success, outcome.steps, outcome.reward) == (True, 3, 1.5)


def test_an_episode_that_runs_out_of_time_is_no_success():
    outcome = rollout(CountingEnv(), TwoArms(), 9)
    assert (outcome.success, outcome.steps) == (False, 5)


def test_the_actor_sees_the_words_of_the_episode_at_every_step():
    actor = TwoArms()
    rollout(CountingEnv(), actor, 2)
    assert [one["instruction"] for one in actor.seen] == ["count", "count"]


def test_the_observer_sees_the_clean_command_and_the_environment_the_perturbed_one():
    env, ticks = CountingEnv(), list[Tick]()
    rollout(env, TwoArms(), 1, perturb=lambda action: action + 10, on_tick=ticks.append)
    assert [ticks[0].action[0][0], env.received[0]] == [1, 11]


@dataclass(frozen=True)
class Squares:
    """A worker factory; frozen at module level, so that it can be pickled."""

    fail_at: int = -1

    def __call__(self):
        def run(index: int) -> int:
            if index == self.fail_at:
                raise ValueError("boom")
            return index * index

        return run


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_for_any_number_of_workers(workers):
    assert list(run_episodes(Squares(), range(9), workers=workers)) == [i * i for i in range(9)]


@dataclass(frozen=True)
class Closed:
    """A worker that leaves a file when it is closed, and then fails."""

    folder: Path

    def __call__(self) -> Closed.Run:
        return self.Run(self.folder)

    @dataclass
    class Run:
        folder: Path

        def __call__(self, index: int) -> int:
            return index

        def close(self) -> None:
            (self.folder / str(os.getpid())).touch()
            raise OSError("spoils nothing")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_closed_when_all_is_done(tmp_path, workers):
    assert list(run_episodes(Closed(tmp_path), range(9), workers=workers)) == [*range(9)]
    assert len([*tmp_path.iterdir()]) == workers


def test_a_worker_is_closed_where_the_caller_leaves_early(tmp_path):
    episodes = run_episodes(Closed(tmp_path), range(9))
    next(episodes)
    episodes.close()
    assert [*tmp_path.iterdir()]


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ValueError, match="boom"):
        list(run_episodes(Squares(fail_at=2), range(4), workers=2))


def test_a_stop_lets_no_further_episode_start():
    done = []
    for result in run_episodes(Squares(), range(100), stop=lambda: len(done) >= 3):
        done.append(result)
    assert done == [0, 1, 4]

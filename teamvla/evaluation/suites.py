"""Closed-loop evaluation on a fixed list of initial states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from pydantic import Field

from teamvla import seeds
from teamvla.config import Project, Settings
from teamvla.errors import SimulationError
from teamvla.evaluation.statistics import show_rate, wilson_interval
from teamvla.logs import progress
from teamvla.record.guards import GuardedExpert
from teamvla.rollout import Actor, Observation, Tick, rollout, run_episodes
from teamvla.sim import RobotEnv, make_env
from teamvla.sim.interface import Expert
from teamvla.sim.perturbations import perturbed
from teamvla.sim.tasks import TaskConfig, TwoArmTaskConfig

LOG = logging.getLogger(__name__)
#: makes the actor that plays in one worker's environment; picklable if workers > 1
OpenActor = Callable[[RobotEnv], Actor]


class EvaluationConfig(Settings):
    """Section ``evaluation``."""

    episodes: int = Field(default=100, gt=0, description="Initial states to try.")
    workers: int = Field(default=1, gt=0, description="Processes; results are the same.")
    baselines: int = Field(default=20, gt=0, description="States per baseline in the quickstart.")
    pictures: int = Field(default=6, ge=0, description="Episodes shown in the contact sheet.")


@dataclass(frozen=True)
class Trial:
    """One episode of an evaluation.

    ``index`` names its initial state within the suite; ``failure`` says what simulator or actor
    could not go on with, if that ended it. It is ``broken`` if there was no command at all: the
    actor raised, or gave something else than finite numbers, or the episode could not begin.
    """

    index: int
    success: bool
    steps: int
    reward: float
    failure: str | None = None
    broken: bool = False


@dataclass(frozen=True)
class Suite:
    """A fixed list of initial states: (task, seed, domain) and the indices 0, 1, 2, ...

    ``perturbations`` are pairs of name and strength, all at once. They change no initial
    state beyond what they are named after.
    """

    task: TaskConfig
    seed: int = 0
    domain: seeds.Domain = seeds.Domain.EVALUATE
    perturbations: tuple[tuple[str, float], ...] = ()

    def open(self, render_mode: str | None = None) -> RobotEnv:
        """The environment to play in."""
        return perturbed(make_env(self.task, render_mode), dict(self.perturbations))

    def reset_seed(self, index: int) -> int:
        return seeds.reset_seed(self.seed, self.domain, index)


@dataclass(frozen=True)
class Score:
    """The result of one actor on a suite."""

    trials: tuple[Trial, ...]

    @property
    def episodes(self) -> int:
        return len(self.trials)

    @property
    def successes(self) -> int:
        return sum(trial.success for trial in self.trials)

    @property
    def broken(self) -> int:
        """Episodes in which the actor could not go on."""
        return sum(trial.broken for trial in self.trials)

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)

    @property
    def mean_steps_to_success(self) -> float | None:
        steps = [trial.steps for trial in self.trials if trial.success]
        return sum(steps) / len(steps) if steps else None

    @property
    def mean_return(self) -> float | None:
        """Mean over the episodes of their rewards, summed."""
        returns = [trial.reward for trial in self.trials]
        return sum(returns) / len(returns) if returns else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "success_rate": self.success_rate,
            "successes": self.successes,
            "episodes": self.episodes,
            "interval_95": list(self.interval),
            "mean_steps_to_success": self.mean_steps_to_success,
            "mean_return": self.mean_return,
            "broken": self.broken,
            "trials": [asdict(trial) for trial in self.trials],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Score:
        return cls(tuple(Trial(**trial) for trial in data["trials"]))

    def __str__(self) -> str:
        return show_rate(self.successes, self.episodes)


class Player:
    """Plays episodes of a suite in an environment of its own.

    Attributes:
        env: that environment.
    """

    def __init__(self, suite: Suite, open_actor: OpenActor, render_mode: str | None = None) -> None:
        self._suite, self.env = suite, suite.open(render_mode)
        try:
            self._actor = _Watched(open_actor(self.env), self.env)
        except BaseException:
            self.env.close()
            raise

    def play(
        self,
        index: int,
        on_reset: Callable[[Observation], None] | None = None,
        on_tick: Callable[[Tick], None] | None = None,
    ) -> Trial:
        """One episode, as :func:`teamvla.rollout.rollout` runs it."""
        seed = self._suite.reset_seed(index)
        try:
            outcome = rollout(self.env, self._actor, seed, on_reset=on_reset, on_tick=on_tick)
        except SimulationError as error:  # before the first step
            return Trial(index, False, 0, 0.0, str(error), broken=True)
        return Trial(index, **asdict(outcome), broken=self._actor.broken)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    __call__ = play


class _Watched:
    """An actor of whom is known whether its latest call gave nothing that can be carried out."""

    def __init__(self, actor: Actor, env: RobotEnv) -> None:
        # Whatever acts is asked the same of as an expert, but for the phase.
        self._actor = GuardedExpert(cast(Expert, actor), env.contract, "actor")
        self.broken = False

    def reset(self) -> None:
        with self._noted():
            self._actor.reset()

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        with self._noted():
            return self._actor.act(observation)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        self.broken = True
        try:
            yield
        except SimulationError:
            LOG.debug("the actor could not go on", exc_info=True)
            raise
        self.broken = False


def seen_alike(other: Project, project: Project) -> Project:
    """``other`` with its task seen through the cameras of ``project``'s, where both have them.

    A policy sees through one set of cameras, whatever it is asked to do.
    """
    own, task = (each.section("task", TaskConfig) for each in (project, other))
    if isinstance(own, TwoArmTaskConfig) and isinstance(task, TwoArmTaskConfig):
        return other.replace("task", camera=own.camera.model_dump(mode="json"))
    return other


def evaluate(
    suite: Suite,
    open_actor: OpenActor,
    episodes: int,
    *,
    workers: int = 1,
    name: str = "evaluate",
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Play the suite's first ``episodes`` initial states; shorter if ``stop`` turns true."""
    trials: list[Trial] = []
    workers = min(workers, episodes)
    with progress(name, episodes, "episode") as bar:
        worker = partial(Player, suite, open_actor)
        for trial in run_episodes(worker, range(episodes), workers=workers, stop=stop):
            trials.append(trial)
            wins = sum(one.success for one in trials)
            bar.advance(success=f"{wins}/{len(trials)}")
    score = Score(tuple(trials))
    if score.broken:
        LOG.warning("%s: the actor could not go on in %d episodes", name, score.broken)
    return score

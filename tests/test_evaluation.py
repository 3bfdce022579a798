"""What an evaluation says, and that it says it truthfully."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teamvla.config import Project
from teamvla.errors import SimulationError
from teamvla.evaluation.baselines import DoNothing, RandomActions, expert
from teamvla.evaluation.pictures import Film, animation, choose, contact_sheet, film
from teamvla.evaluation.policies import NamedActor
from teamvla.evaluation.report import Report, render
from teamvla.evaluation.statistics import show_rate, wilson_interval
from teamvla.evaluation.suites import Score, Suite, Trial, evaluate
from teamvla.seeds import Domain
from teamvla.sim.tasks import TaskConfig


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (95, 100, 0.8882, 0.9785), (0, 0, 0.0, 1.0)],
)
def test_the_wilson_interval_has_its_published_values(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_narrows_with_more_episodes(counts):
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes)
    tighter = wilson_interval(10 * successes, 10 * episodes)
    assert 0 <= low <= successes / episodes <= high <= 1
    assert tighter[1] - tighter[0] < high - low


def test_more_successes_than_episodes_are_refused():
    with pytest.raises(ValueError, match=r"expected 0\.\.3, got 4"):
        wilson_interval(4, 3)


def test_a_rate_is_shown_with_its_count_and_interval():
    assert show_rate(196, 200) == "98.0 % (196/200, 95 % interval 95.0-99.2)"


def score(*outcomes: bool) -> Score:
    return Score(tuple(Trial(i, won, 10 + i, 1.0) for i, won in enumerate(outcomes)))


def test_a_score_survives_json():
    before = score(True, False, True)
    assert Score.from_dict(before.to_dict()) == before


def test_the_return_is_a_mean_over_all_episodes():
    trials = (Trial(0, True, 10, 3.0), Trial(1, False, 20, 1.0))
    assert Score(trials).to_dict()["mean_return"] == 2.0
    assert Score(()).mean_return is None


def test_steps_to_success_leave_failures_out():
    assert score(True, False, True).mean_steps_to_success == 11
    assert score(False).mean_steps_to_success is None


def test_the_json_keys_of_a_score_are_the_promised_ones():
    data = score(True, True, False, False).to_dict()
    assert (data["success_rate"], data["successes"], data["episodes"]) == (0.5, 2, 4)


def test_failures_are_shown_but_never_alone():
    chosen = choose(score(*[True] * 8, *[False] * 8), 6)
    assert chosen == [0, 1, 2, 8, 9, 10]


def make_film(index: int, success: bool, frames: int) -> Film:
    pictures = tuple(np.full((24, 32, 3), 40 * i, np.uint8) for i in range(frames))
    return Film(index, success, frames, pictures)


def test_the_contact_sheet_runs_from_the_first_frame_to_the_last():
    from PIL import Image

    sheet = Image.open(io.BytesIO(contact_sheet([make_film(0, True, 6)], columns=3)))
    row = [sheet.getpixel((4 + 36 * column + 16, 40 + 4 + 12))[0] for column in range(3)]
    assert row[0] == 0
    assert row[2] == 200
    assert 0 < row[1] < 200


def test_the_animation_holds_the_longest_episode_to_its_end():
    from PIL import Image

    films = [make_film(0, True, 3), make_film(1, False, 6)]
    picture = Image.open(io.BytesIO(animation(films, frame_ms=100)))
    picture.seek(picture.n_frames - 1)
    picture.load()
    assert picture.info["timestamp"] + picture.info["duration"] == (6 + 10) * 100
    assert abs(picture.convert("RGB").getpixel((16, 12))[0] - 80) < 12


def test_the_report_is_one_file_that_asks_for_nothing_else():
    films = [make_film(0, True, 3)]
    page = render(
        Report(
            title="A <title>",
            lead="lead",
            note="note",
            scores={"policy": score(True, True, False), "nothing": score(False)},
            metrics=[
                {"split": "train", "step": 1, "loss": 0.5},
                {"split": "train", "step": 2, "loss": 0.25},
                {"split": "val", "step": 2, "loss": 0.3},
                {"split": "rollout", "step": 2, "success_rate": 0.5},
            ],
            contact_sheet=contact_sheet(films),
            animation=animation(films),
            tables={"Facts": [("name", "value & more")]},
            commands=["teamvla train"],
        )
    )
    assert "A &lt;title&gt;" in page
    assert "66.7 %" in page
    assert "value &amp; more" in page
    for outside in ('src="http', "href=", "<script"):
        assert outside not in page.replace('xlink:href="#', "")


SMALL_TASK = ["task.camera.height=16", "task.camera.width=16", "task.max_steps=12"]


def small_suite(domain: Domain = Domain.EVALUATE) -> Suite:
    return Suite(Project.load("lift", SMALL_TASK).section("task", TaskConfig), 0, domain)


@pytest.mark.parametrize("actor", [DoNothing, RandomActions, expert])
def test_a_baseline_scores_alike_for_any_number_of_workers(actor):
    one, two = (evaluate(small_suite(), actor, 3, workers=workers) for workers in (1, 2))
    assert one == two
    assert len({trial.reward for trial in one.trials}) == 3


def test_recording_ranking_and_evaluation_start_from_different_states():
    from teamvla.sim import make_env

    starts = []
    for domain in (Domain.RECORD, Domain.SELECT, Domain.EVALUATE):
        suite = small_suite(domain)
        env = make_env(suite.task)
        for index in range(3):
            env.reset(seed=suite.reset_seed(index))
            starts.append(tuple(env.get_state()["tray_pose"]))
    assert len(set(starts)) == 9


class Wild:
    """Commands no number at the third step."""

    def __init__(self, env):
        self._quiet = DoNothing(env)

    def reset(self):
        self._quiet.reset()
        self._step = 0

    def act(self, observation):
        self._step += 1
        arms = self._quiet.act(observation)
        return [np.full_like(arm, np.nan) for arm in arms] if self._step == 3 else arms


class Stumbling(DoNothing):
    """Raises, or gives one arm too few, at the second step; at its reset if told so."""

    at_reset, short = False, False

    def reset(self):
        super().reset()
        self._step = 0
        if self.at_reset:
            raise KeyError("lost")

    def act(self, observation):
        self._step += 1
        if self._step == 2 and not self.short:
            raise ZeroDivisionError("no way")
        return super().act(observation)[: 1 if self.short else 2]


class Short(Stumbling):
    short = True


class NeverReady(Stumbling):
    at_reset = True


@pytest.mark.parametrize(
    ("actor", "steps", "said"),
    [
        (Stumbling, 1, "the actor: expected no exception, got ZeroDivisionError: no way"),
        (Short, 0, "the actor's command: expected parts of [7, 7] numbers, got parts of [7]"),
        (NeverReady, 0, "the actor's reset: expected no exception, got KeyError"),
        (Wild, 2, "the actor's command: expected finite numbers"),
    ],
)
def test_an_actor_that_cannot_go_on_is_counted_as_broken(actor, steps, said):
    score = evaluate(small_suite(), actor, 2)
    assert [(trial.broken, trial.steps) for trial in score.trials] == [(True, steps)] * 2
    assert all(said in trial.failure for trial in score.trials)
    assert (score.broken, score.to_dict()["broken"], score.successes) == (2, 2, 0)


def test_physics_that_diverges_is_a_failed_episode_of_an_actor_in_order(monkeypatch):
    from teamvla.sim.world import World

    def diverge(self):
        raise SimulationError("simulation at 0.10 s", "a finite state", "one that is not")

    monkeypatch.setattr(World, "advance", diverge)
    (trial,) = evaluate(small_suite(), DoNothing, 1).trials
    assert (trial.success, trial.broken) == (False, False)
    assert "a finite state" in trial.failure


@pytest.mark.parametrize("filmed", [False, True])
def test_environments_are_closed_when_all_is_played(monkeypatch, filmed):
    from teamvla.sim.env import TwoArmEnv

    closed = []
    monkeypatch.setattr(TwoArmEnv, "close", lambda self: closed.append(self))
    monkeypatch.setattr("teamvla.sim.env._OVERVIEW_SIZE", (12, 16))
    if filmed:
        film(small_suite(), DoNothing, [0, 1])
    else:
        evaluate(small_suite(), DoNothing, 2)
    assert len(closed) == 1


def test_an_environment_is_closed_when_its_actor_cannot_be_made(monkeypatch):
    from teamvla.sim.env import TwoArmEnv

    closed = []
    monkeypatch.setattr(TwoArmEnv, "close", lambda self: closed.append(self))
    with pytest.raises(AttributeError):
        evaluate(small_suite(), lambda env: env.nobody, 1)
    assert len(closed) == 1


def test_a_film_of_a_grid_world_shows_every_move_once():
    pytest.importorskip("minigrid")
    suite = Suite(Project.load("minigrid_empty_5x5").section("task", TaskConfig))
    (one,) = film(suite, NamedActor("expert"), [0])
    assert len(one.frames) == 1 + one.steps
    pairs = zip(one.frames, one.frames[1:], strict=False)
    assert all((before != after).any() for before, after in pairs)


def test_a_sheet_repeats_no_frame_of_a_short_episode():
    from PIL import Image

    sheet = Image.open(io.BytesIO(contact_sheet([make_film(0, True, 2)], columns=3)))
    row = [sheet.getpixel((4 + 36 * column + 16, 40 + 4 + 12))[0] for column in range(3)]
    assert row == [0, 40, 255]


def test_a_film_shows_the_first_state_four_a_second_and_the_last(monkeypatch):
    monkeypatch.setattr("teamvla.sim.env._OVERVIEW_SIZE", (12, 16))
    (one,) = film(small_suite(), DoNothing, [0])
    assert one.steps == 12
    assert len(one.frames) == 1 + 2 + 1


def test_an_episode_that_cannot_go_on_is_a_failure_and_the_evaluation_does():
    score = evaluate(small_suite(), Wild, 2)
    assert [trial.success for trial in score.trials] == [False, False]
    assert [trial.steps for trial in score.trials] == [2, 2]
    assert "the actor's command: expected finite numbers" in score.trials[0].failure

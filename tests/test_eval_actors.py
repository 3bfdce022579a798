"""``teamvla eval`` without a checkpoint, elsewhere, and under perturbations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from teamvla.cli.app import run
from teamvla.config import Project, shipped_configs
from teamvla.sim.perturbations import PERTURBATIONS
from teamvla.sim.tasks import TASKS

SMALL = [
    *("--set", "task.camera.height=8", "--set", "task.camera.width=8"),
    *("--set", "task.camera.shadows=false"),
]


class Statue:
    """An actor of one's own: stands still."""

    def __init__(self, env) -> None:
        self.env = env

    def reset(self) -> None:
        pass

    def act(self, observation):
        return [np.append(observation[f"q_{arm}"], 0.0) for arm in "ab"]


class Stumbler(Statue):
    """Raises at its third step."""

    def reset(self) -> None:
        self.steps = 0

    def act(self, observation):
        self.steps += 1
        if self.steps == 3:
            raise ZeroDivisionError("no way")
        return super().act(observation)


class LostInTheDark(Statue):
    """Raises where it sees nothing."""

    def act(self, observation):
        if not observation["rgb_a"].any():
            raise ValueError("dark")
        return super().act(observation)


def answer(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict:
    assert run(["eval", *map(str, words), *SMALL, "--json", "-q"]) == code
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["eval", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_the_expert_is_measured_without_a_checkpoint(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = answer(capsys, "--actor", "expert", "-n", 2)
    assert (data["success_rate"], data["episodes"], data["checkpoint"]) == (1.0, 2, None)
    assert (data["task"], data["actor"], data["out"]) == ("lift", "expert", None)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("actor", ["nothing", "random", "test_eval_actors:Statue"])
def test_other_actors_fail_where_the_expert_does_not(capsys, actor):
    data = answer(capsys, "--actor", actor, "-n", 1, "--set", "task.max_steps=15")
    assert data["success_rate"] == 0.0


def test_a_perturbation_is_a_row_beside_its_control(capsys, tmp_path):
    harder = ["--perturb", "action_noise=0.3", "--perturb", "gibberish"]
    data = answer(capsys, "--actor", "expert", "-n", 2, *harder, "-o", tmp_path / "out")
    assert data["success_rate"] == 1.0
    noise, words = (data["perturbations"][name] for name in ("action_noise=0.3", "gibberish"))
    assert (noise["strengths"], noise["success_rate"]) == ({"action_noise": 0.3}, 0.0)
    assert (noise["lost"], noise["gained"], noise["difference"]) == (2, 0, -1.0)
    assert (words["lost"], words["gained"], words["p_value"]) == (0, 0, 1.0)
    trials = [trial["steps"] for trial in words["trials"]]
    assert trials == [trial["steps"] for trial in data["trials"]]  # the expert does not listen
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["perturbations"] == data["perturbations"]


def test_the_table_of_perturbations_names_what_was_lost(capsys):
    words = ["--actor", "expert", "-n", "1", "--perturb", "action_noise=0.3", *SMALL, "-q"]
    assert run(["eval", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("perturbation"))
    assert lines[at].split()[1:3] == ["success", "change"]
    row = lines[at + 1]
    assert row.split()[:3] == ["action_noise=0.3", "0.0", "-100.0"]


def test_results_under_perturbation_do_not_depend_on_workers(capsys):
    words = ["--actor", "expert", "-n", 2, "--perturb", "push+action_noise=0.02"]
    words += ["--set", "task.max_steps=40"]
    one, two = (answer(capsys, *words, "--workers", workers) for workers in (1, 2))
    assert one == two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "eval: expected a checkpoint, or --actor, got neither"),
        (["x.ckpt", "--actor", "expert"], "--actor: expected no checkpoint"),
        (["--actor", "expert", "--perturb", "pusch"], "Did you mean 'push'"),
        (["--actor", "expert", "--perturb", "push=-1"], "expected a strength above 0"),
        (["--actor", "nobody:Here"], "actor 'nobody:Here'"),
        (["--actor", "nobody:Here"], "Give --actor MODULE:CLASS"),
        (["--actor", "expertt"], "or MODULE:CLASS, got none of them. Did you mean 'expert'?"),
        (["--actor", "expert", "--task", "gymnasium"], "Give --env ID, or a --config that has it"),
        (
            ["--actor", "expert", "--config", "lift", "--env", "x/Y-v0"],
            "--env: expected neither --task nor --config beside it, got --config",
        ),
        (["--actor", "expert", "--task", "lifft"], "Did you mean 'lift'"),
        (["--actor", "expert", "--task", "lift", "--env", "x/Y-v0"], "--env: expected neither"),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_anything_runs(capsys, words, said):
    assert said in complaint(capsys, *words)


def test_a_perturbation_that_does_not_fit_names_those_that_may(capsys, tmp_path: Path):
    pytest.importorskip("minigrid")
    words = ["--actor", "expert", "--env", "MiniGrid-Empty-8x8-v0", "--perturb", "push"]
    assert run(["eval", *words]) == 2
    assert "What fits: blackout, camera_noise, gibberish." in capsys.readouterr().err


def test_an_actor_that_raises_is_counted_and_a_finding(capsys):
    words = ["--actor", "test_eval_actors:Stumbler", "-n", 2, "--set", "task.max_steps=5"]
    data = answer(capsys, *words, code=1)
    assert (data["broken"], data["successes"], data["episodes"]) == (2, 0, 2)
    assert run(["eval", *map(str, words), *SMALL, "-q"]) == 1
    said = "broke off 2 x: the actor: expected no exception, got ZeroDivisionError: no way"
    assert said in capsys.readouterr().out


def test_an_actor_that_raises_under_a_perturbation_alone_is_counted_there(capsys):
    words = ["--actor", "test_eval_actors:LostInTheDark", "-n", 1, "--perturb", "blackout=1"]
    data = answer(capsys, *words, "--set", "task.max_steps=5")
    assert (data["broken"], data["perturbations"]["blackout=1"]["broken"]) == (0, 1)


@pytest.mark.parametrize("words", [["--config", "handoff"], ["--set", "task.name=handoff"]])
def test_two_tasks_are_one_line(capsys, words):
    task = ["--task", "lift"] if "--config" in words else []
    said = complaint(capsys, "--actor", "expert", *words, *task)
    names = ("handoff", "lift") if task else ("lift", "handoff")
    assert "{0}.yaml configures the task {0}, not {1}; give one of".format(*names) in said
    assert len(said.splitlines()) == 1


def test_a_configuration_without_a_task_takes_the_one_that_is_named(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("evaluation:\n  episodes: 1\n")
    words = ["--config", tmp_path / "mine.yaml", "--task", "handoff", "--actor", "nothing"]
    data = answer(capsys, *words, "--set", "task.max_steps=3")
    assert (data["task"], data["episodes"]) == ("handoff", 1)


def test_a_configuration_of_ones_own_is_evaluated(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: sort\ntask:\n  max_steps: 4\n")
    data = answer(capsys, "--config", tmp_path / "mine.yaml", "--actor", "nothing", "-n", 1)
    assert (data["task"], data["trials"][0]["steps"]) == ("sort", 4)


@pytest.mark.parametrize(
    ("words", "task"),
    [([], "lift"), (["--config", "sort"], "sort"), (["--task", "handoff"], "handoff")],
)
def test_a_checkpoint_is_evaluated_in_its_own_task_or_another(
    capsys, monkeypatch, tmp_path, words, task
):
    class Trained:
        def __init__(self, *args) -> None: ...

        def project(self) -> Project:
            return Project.load("lift")

        def tasks(self) -> tuple[str, ...]:
            return ("lift",)

        def __call__(self, env) -> Statue:
            return Statue(env)

    monkeypatch.setattr("teamvla.evaluation.policies.PolicyFromCheckpoint", Trained)
    short = ["-n", 1, "--set", "task.max_steps=3", "--no-pictures", "-o", tmp_path]
    assert answer(capsys, "x.ckpt", *words, *short)["task"] == task


def test_no_pictures_are_drawn_if_none_are_wanted(capsys, tmp_path):
    words = ["--actor", "nothing", "-n", 1, "--set", "task.max_steps=3", "-o", tmp_path / "out"]
    data = answer(capsys, *words, "--no-pictures")
    assert data["pictures"] == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_it_says_what_it_does_not_write_and_what_the_expert_does_not_read(capsys):
    short = ["-n", "1", "--set", "task.max_steps=3", *SMALL, "-q"]
    assert run(["eval", "--actor", "expert", "--perturb", "gibberish", *short]) == 0
    said = capsys.readouterr().out
    assert "no report: give --out DIR" in said
    assert "the expert reads no words" in said
    assert run(["eval", "--actor", "nothing", "--perturb", "gibberish", *short]) == 0
    assert "the expert" not in capsys.readouterr().out


def test_all_perturbations_that_fit_are_played_and_the_others_named(capsys):
    words = ["--actor", "nothing", "--task", "driving", "-n", "1", "--perturb", "all"]
    small = ["--set", "task.max_steps=2", "--set", "task.camera.height=8"]
    assert run(["eval", *words, *small, "--set", "task.camera.width=8", "--json"]) == 0
    told = capsys.readouterr()
    played = set(json.loads(told.out)["perturbations"])
    assert played == {"action_delay", "blackout", "camera_noise", "gibberish"}
    (left_out,) = [line for line in told.err.splitlines() if "left out of all" in line]
    names = left_out.partition("fit: ")[2].split(", ")
    assert sorted([*played, *names]) == sorted(PERTURBATIONS)


def test_the_help_names_every_task_that_is_built_in(capsys):
    assert run(["eval", "-h"]) == 0
    said = capsys.readouterr().out
    built_in = {name for name in shipped_configs() if name in TASKS}
    assert len(built_in) == 6
    assert all(name in said for name in built_in)

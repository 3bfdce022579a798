"""``teamvla eval`` without a checkpoint, elsewhere, and under perturbations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from teamvla.cli.app import run

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
        (["--actor", "nobody:Here"], "expert 'nobody:Here'"),
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
    assert "What fits: gibberish" in capsys.readouterr().err

"""A world model by the commands: recorded, trained, evaluated with another planner."""

from __future__ import annotations

from pathlib import Path

import pytest

from teamvla.cli.app import run

TASK = ["--set", "task.max_steps=40", "--set", "task.camera={height: 16, width: 16}"]
SMALL = [
    "--set", "model.senses.hidden_dim=16", "--set", "model.senses.picture_size=8",
    "--set", "model.rssm.deterministic=16", "--set", "model.planner.horizon=4",
    "--set", "dataset.sequence_length=20", "--set", "dataset.batch_size=2",
    "--set", "index.val_fraction=0.5", "--set", "trainer.epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Three episodes without any aim."""
    out = tmp_path_factory.mktemp("recorded")
    explorer = ["--expert", "teamvla.record.explorers:Wanderer", "--keep-failures"]
    words = ["record", "--config", "train_world", "-n", "3", "--out", str(out), *explorer, *TASK]
    assert run([*words, "-q"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(recorded, tmp_path_factory) -> Path:
    """A checkpoint of a model that has hardly learned."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run(["train", *map(str, words_of(recorded)), "--out", str(out), "-q"]) == 0
    return out / "checkpoints" / "last.ckpt"


def words_of(data: Path) -> list[str | Path]:
    return ["--config", "train_world", "--data", data, *TASK, *SMALL]


def test_it_is_trained_and_planned_with(shell, trained):
    words = ["eval", trained, "--episodes", 1, "--set", "evaluation.pictures=0", *TASK]
    by_cem = shell(*words, "--out", "cem")
    by_shooting = shell(*words, "--set", "model.planner.type=shooting", "--out", "shooting")
    again = shell(*words, "--out", "again")
    rewards = [[t["reward"] for t in run["trials"]] for run in (by_cem, by_shooting, again)]
    assert rewards[0] == rewards[2] != rewards[1]


def test_what_was_learned_cannot_be_changed_for_an_evaluation(shell, trained):
    answer = shell("eval", trained, "--set", "model.rssm.deterministic=7", code=2)
    message = answer["error"]["message"]
    assert "a change of model.planner at most, got another model (rssm.deterministic: " in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.sequence_length=null", "as a world model learns what comes next"),
        (
            "dataset.fields=[image, state, actions, language]",
            "expected reward too, for model 'world_model'",
        ),
        ("model.senses.targets=[way]", "model.senses.targets: expected trajectory, got way"),
    ],
)
def test_data_that_do_not_fit_are_refused(shell, recorded, override, message):
    words = ["train", *words_of(recorded), "--out", "other"]
    answer = shell(*words, "--set", override, code=2)
    assert message in answer["error"]["message"]
    assert not Path("other").exists()

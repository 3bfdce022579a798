"""Training on a grid world from the command line: which world the data show, and who plays it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from teamvla.cli.app import run

SMALL = [
    "trainer.epochs=1", "dataset.batch_size=16", "model.sensors.grid.hidden_dim=8",
    "model.head.hidden_dim=16", "model.head.n_layers=1", "model.head.num_heads=2",
]  # fmt: skip
SET = [word for item in SMALL for word in ("--set", item)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid") / "data"
    words = ["record", "--env", "MiniGrid-Empty-5x5-v0", "-n", "12", "-o", str(root), "-q"]
    assert run(words) == 0
    return root


def said_by_training(config: str, data: Path, out: Path, capsys: pytest.CaptureFixture) -> str:
    words = ["train", "--config", config, "--data", str(data), "--out", str(out)]
    assert run([*words, *SET]) == 0
    return capsys.readouterr().err


def test_of_its_own_world_nothing_is_told_and_eval_is_next(data, capsys, tmp_path):
    said = said_by_training("minigrid_empty_5x5", data, tmp_path / "run", capsys)
    assert "the data show" not in said
    assert said.endswith(f"Next: teamvla eval {tmp_path}/run/checkpoints/best.ckpt\n")


def test_a_world_that_looks_the_same_is_told_with_the_configuration_to_give(data, capsys, tmp_path):
    said = said_by_training("minigrid_empty", data, tmp_path / "run", capsys)
    expected = "the data show minigrid_empty_5x5, but the configuration's task is minigrid_empty"
    assert f"{expected}: give --config minigrid_empty_5x5" in said


def test_a_world_that_looks_otherwise_is_told_with_the_difference(data, capsys, tmp_path):
    said = said_by_training("minigrid_four_rooms", data, tmp_path / "run", capsys)
    assert "task is minigrid_four_rooms, and differ: signals.grid: " in said
    assert "[7,7,3]" in said
    assert "give --config minigrid_empty_5x5" in said


def test_a_machine_without_the_environment_trains_all_the_same(data, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minigrid", None)
    said = said_by_training("minigrid_empty_5x5", data, tmp_path / "run", capsys)
    assert "error" not in said
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()

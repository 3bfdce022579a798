"""Training on another task than lift: what ranks its checkpoints is that task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from refusals import state_of

from teamvla.checkpoint import read_header
from teamvla.cli.app import run

SIZE = [word for item in SMALL[:2] for word in ("--set", item)]
TRAIN = [word for item in SMALL[2:] for word in ("--set", item)] + SIZE
TRAIN += ["--set", "model.fusion.hidden_dim=16", "--set", "trainer.epochs=1"]
RANKED = ["--set", "trainer.rollout_every=1", "--set", "trainer.rollout_episodes=1"]
RANKED += ["--set", "task.max_steps=5"]


@pytest.fixture(scope="module")
def sorted_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sort") / "data"
    assert run(["record", "--task", "sort", "-n", "2", "-o", str(root), *SIZE, "-q"]) == 0
    return root


def test_rollouts_of_a_task_that_the_data_do_not_show_are_refused(sorted_data, capsys, tmp_path):
    words = ["train", "--data", str(sorted_data), "--out", str(tmp_path / "run")]
    assert run([*words, *TRAIN, *RANKED, "-q"]) == 2
    said = capsys.readouterr().err
    assert "expected one of the data's: sort, got lift. Give --task sort." in said
    assert not (tmp_path / "run").exists()


def test_the_task_that_is_asked_for_ranks_and_is_what_eval_plays(sorted_data, capsys, tmp_path):
    words = ["train", "--data", str(sorted_data), "--out", str(tmp_path / "run")]
    assert run([*words, "--task", "sort", *TRAIN, *RANKED, "--json", "-q"]) == 0
    answer = json.loads(capsys.readouterr().out)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["task"]["name"], config["task"]["max_steps"]) == ("sort", 5)
    assert config["task"]["colours"] == ["red", "blue"]
    assert run(["eval", answer["best"], "-n", "1", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "sort"


def test_without_rollouts_a_task_that_was_never_seen_is_told(sorted_data, capsys, tmp_path):
    words = ["train", "--data", str(sorted_data), "--out", str(tmp_path / "run")]
    assert run([*words, *TRAIN]) == 0
    said = capsys.readouterr().err
    assert "the data show sort, but the configuration's task is lift: give --task sort" in said
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert f"Next: teamvla eval {best} --task sort\n" in said
    assert read_header(best).meta["tasks"] == ["sort"]
    few = ["-n", "1", "--set", "task.max_steps=3", "--no-pictures"]
    assert run(["eval", str(best), *few]) == 0
    assert "the policy never saw the task lift: its data show sort" in capsys.readouterr().err
    assert run(["eval", str(best), "--task", "sort", *few, *SIZE]) == 0
    assert "never saw" not in capsys.readouterr().err


def test_with_the_right_task_nothing_is_told(sorted_data, capsys, tmp_path):
    words = ["train", "--data", str(sorted_data), "--out", str(tmp_path / "run")]
    assert run([*words, "--task", "sort", *TRAIN]) == 0
    said = capsys.readouterr().err
    assert "the data show" not in said
    assert said.endswith("best.ckpt\n")
    assert "training single_brain (cnn, characters, concat, mlp), " in said


def test_a_chunk_that_is_refused_leaves_the_index_alone(sorted_data, capsys, tmp_path):
    before = state_of(sorted_data)
    words = ["train", "--data", str(sorted_data), "--out", str(tmp_path / "run"), *TRAIN]
    for key in ("dataset.chunk_size", "model.chunk_size"):
        words += ["--set", f"{key}=4000"]
    assert run([*words, "-q"]) == 2
    assert "of the longest episode" in capsys.readouterr().err
    assert state_of(sorted_data) == before


def test_an_unknown_task_gets_the_nearest_name(sorted_data, capsys):
    assert run(["train", "--data", str(sorted_data), "--task", "srt", "-q"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'sort'? Known: drawer, " in said
    assert "train_bc" not in said
    assert run(["train", "--data", str(sorted_data), "-t", "sort", "-t", "srt", "-q"]) == 2
    assert capsys.readouterr().err == said

"""Trainings whose rate goes by the validation loss, and what is told of their checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from teamvla.checkpoint import read_checkpoint, read_header
from teamvla.config import Project
from teamvla.data import IndexConfig, build_index
from teamvla.errors import ConfigError
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig
from teamvla.train import bc_trainer
from teamvla.train.journal import read_metrics
from teamvla.train.runs import open_run, resume_run, start_run
from teamvla.train.schedulers import (
    SchedulerConfig,
    make_scheduler,
    restore_schedule,
    schedule_state,
)

pytest.importorskip("minigrid")
SMALL = (
    "task.camera.height=8",
    "task.camera.width=8",
    "dataset.chunk_size=4",
    "dataset.batch_size=8",
    "model.chunk_size=4",
    "model.head.hidden_dim=16",
    "model.head.n_layers=1",
    "model.head.num_heads=2",
    "trainer.epochs=4",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.precision=fp32",
    "trainer.metadata=true",
    "scheduler.type=plateau",
    "scheduler.patience=0",
    # So high that the loss gets worse, and the rate lower.
    "optimizer.lr=0.3",
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small training on moves in a grid world."""
    project = Project.load("train_mdlm", SMALL)
    root = tmp_path_factory.mktemp("grid")
    recorder = Recorder(project.section("task", TaskConfig), RecordConfig(), root, seed=0)
    record(recorder, episodes=6)
    build_index(root, config=IndexConfig(val_fraction=0.3))
    return project.replace("dataset", roots=[str(root)])


@pytest.fixture(scope="module")
def finished(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bc_trainer.main(project, tmp_path_factory.mktemp("finished") / "run").folder


def plateau(
    rate: float = 1.0, **settings: float
) -> tuple[torch.optim.Optimizer, Callable[[float], float]]:
    """An optimiser, and what its rate becomes after an epoch with a validation loss."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make_scheduler(optimizer, SchedulerConfig(type="plateau", **settings), 1)

    def after(loss: float) -> float:
        scheduler.step(loss)
        return float(optimizer.param_groups[0]["lr"])

    return optimizer, after


def test_the_rate_falls_when_more_epochs_than_patience_bring_no_better_loss():
    _, after = plateau(patience=2, factor=0.5)
    losses = [3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 2.0, 2.0, 2.0]
    assert [after(loss) for loss in losses] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_the_rate_of_each_group_stays_above_its_floor():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [first], "lr": 1.0}, {"params": [second], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    config = SchedulerConfig(type="plateau", patience=0, factor=0.5, min_ratio=0.3)
    scheduler = make_scheduler(optimizer, config, 1)
    for _ in range(8):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.03])


def test_a_schedule_that_is_put_back_counts_on_from_there():
    config = SchedulerConfig(type="plateau", patience=1, factor=0.5)

    def fresh() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, make_scheduler(optimizer, config, 1)

    _, before = fresh()
    for loss in (2.0, 3.0):
        before.step(loss)
    optimizer, after = fresh()
    restore_schedule(after, json.loads(json.dumps(schedule_state(before))), [1.0])
    after.step(2.5)  # the second that is not better than 2
    assert optimizer.param_groups[0]["lr"] == 0.5
    _, untouched = fresh()
    assert json.loads(json.dumps(schedule_state(untouched)))["best"] is None


def test_a_training_lowers_its_rate_by_its_validation_loss(project, finished):
    rows = read_metrics(finished / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["split"] == "val"]
    _, after = plateau(rate=0.3, patience=0, factor=0.5)
    expected = [after(loss) for loss in losses]
    rates = {row["epoch"]: row["lr"] for row in rows if row["split"] == "train"}
    assert [rates[epoch] for epoch in (1, 2, 3)] == pytest.approx(expected[:3])
    assert expected[-1] < 0.3


@pytest.mark.parametrize("epochs", [0, 2, 3])
def test_a_stopped_training_lowers_its_rate_as_if_it_had_not_been(
    project, finished, tmp_path, epochs
):
    run = start_run(project, tmp_path / "run")
    stop_at = epochs * len(run.train_loader) + 1
    assert not bc_trainer.train(run, stop=lambda: run.state.step >= stop_at)
    resumed = resume_run(run.folder)
    assert (resumed.state.epoch, resumed.state.step) == (epochs, stop_at)
    assert bc_trainer.train(resumed)
    whole, parts = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (finished, run.folder)
    )
    assert whole[0].meta["scheduler"] == parts[0].meta["scheduler"]
    assert whole[0].meta["optimizer_state"] == parts[0].meta["optimizer_state"]
    assert whole[1].keys() == parts[1].keys()
    for name, array in whole[1].items():
        assert np.array_equal(array, parts[1][name]), name


def test_without_episodes_to_validate_with_it_is_refused(project, tmp_path):
    index = tmp_path / "index"
    build_index(project.resolved()["dataset"]["roots"], index, IndexConfig(val_fraction=0))
    project = project.replace("dataset", index=str(index))
    with pytest.raises(ConfigError, match=r"scheduler\.type: expected episodes to validate with"):
        open_run(project, tmp_path / "run")


# JSON beside checkpoints.


def digest_of(path: Path) -> str:
    """Of the file with the digest in it as zeros, as its format has it."""
    content = path.read_bytes()
    return hashlib.sha256(content.replace(read_header(path).sha256.encode(), b"0" * 64)).hexdigest()


def test_json_beside_each_checkpoint_tells_what_lies_there(finished):
    folder = finished / "checkpoints"
    names = {path.stem for path in folder.glob("*.ckpt")}
    assert names == {"epoch_0002", "epoch_0004", "last", "best"}
    assert {path.stem for path in folder.glob("*.json")} == names
    rows = read_metrics(finished / "metrics.jsonl")
    losses = {row["epoch"]: row["loss"] for row in rows if row["split"] == "val"}
    for name in names:
        told = json.loads((folder / f"{name}.json").read_text())
        assert told["checkpoint"] == f"{name}.ckpt"
        assert told["sha256"] == digest_of(folder / f"{name}.ckpt")
        assert told["val"]["loss"] == losses[told["state"]["epoch"]]
        assert {"accuracy", "mask_ratio"} <= told["val"].keys()
        assert told["config"]["scheduler"]["type"] == "plateau"
        assert told["tasks"] == ["minigrid_empty"]
    best = json.loads((folder / "best.json").read_text())
    assert best["val"]["loss"] == min(losses.values())


def test_json_is_right_beside_the_checkpoint_of_a_stopped_training_too(project, tmp_path):
    run = start_run(project, tmp_path / "run")
    stop_at = len(run.train_loader) + 1
    assert not bc_trainer.train(run, stop=lambda: run.state.step >= stop_at)
    told = json.loads((run.checkpoints / "last.json").read_text())
    assert told["sha256"] == digest_of(run.checkpoints / "last.ckpt")


def test_no_json_is_written_unless_it_is_asked_for(project, tmp_path):
    quiet = project.replace("trainer", metadata=False, epochs=1)
    run = bc_trainer.main(quiet, tmp_path / "run")
    assert sorted(path.suffix for path in run.checkpoints.iterdir()) == [".ckpt"] * 3

"""Behaviour cloning: it learns, it stops when told, it goes on bit by bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from teamvla.checkpoint import read_checkpoint, read_header
from teamvla.data import EpisodeWriter, find_episodes, read_episode
from teamvla.errors import CheckpointError, ConfigError, InputError, TeamVLAError
from teamvla.models.loading import load_policy
from teamvla.train import bc_trainer
from teamvla.train.ema import WeightAverage
from teamvla.train.journal import read_metrics
from teamvla.train.runs import build_data, open_run, resume_run, start_run
from teamvla.train.schedulers import OptimizerConfig, cosine_with_warmup, make_optimizer
from teamvla.train.trainer import TrainingState


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_a_seed_fixes_python_numpy_and_torch_at_once():
    bc_trainer.set_seed(3)
    first = draws()
    bc_trainer.set_seed(3)
    assert draws() == first
    bc_trainer.set_seed(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request) -> Path:
    """One finished training of two epochs."""
    project = request.getfixturevalue("module_project")
    run = bc_trainer.main(project, tmp_path_factory.mktemp("finished") / "run")
    return run.folder


@pytest.fixture(scope="module")
def module_project(lift_root):
    from conftest import SMALL

    from teamvla.config import Project

    # Dropout draws from torch's generator in every step, rollouts come between epochs:
    # what a resume must not forget, and must not be disturbed by.
    lively = ("model.fusion.dropout=0.1", "trainer.rollout_every=1", "trainer.rollout_after=0")
    short = ("trainer.rollout_episodes=1", "task.max_steps=8")
    project = Project.load("train_bc", [*SMALL, *lively, *short])
    return project.replace("dataset", roots=[str(lift_root)])


def test_training_lowers_the_loss(finished):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if row["split"] == "train"]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_a_run_leaves_its_configuration_metrics_and_checkpoints(finished):
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_0001.ckpt", "epoch_0002.ckpt", "last.ckpt"]
    header = read_header(finished / "checkpoints" / "last.ckpt")
    assert header.meta["state"]["epoch"] == 2
    assert header.meta["config"]["trainer"]["epochs"] == 2
    assert header.meta["contract"]["control_hz"] == 20


@pytest.mark.parametrize("where", ["on the way", "at the last step", "while ranking"])
def test_a_stopped_training_continues_bit_by_bit(module_project, finished, tmp_path, where):
    run = start_run(module_project, tmp_path / "run")
    last = len(run.train_loader)
    polls, stop_at = [], {"on the way": 3, "at the last step": last, "while ranking": last + 1}
    asked = lambda: polls.append(1) or len(polls) >= stop_at[where]  # noqa: E731
    assert not bc_trainer.train(run, stop=asked)
    resumed = resume_run(run.folder)
    assert resumed.state.step == min(stop_at[where], last)
    assert resumed.state.epoch == 0
    assert bc_trainer.train(resumed)
    whole = read_checkpoint(finished / "checkpoints" / "last.ckpt")
    parts = read_checkpoint(run.folder / "checkpoints" / "last.ckpt")
    assert whole[1].keys() == parts[1].keys()
    for name, array in whole[1].items():
        assert np.array_equal(array, parts[1][name]), name
    same = ("scheduler", "sampler", "rng", "optimizer_state", "manifest_digest")
    assert all(whole[0].meta[key] == parts[0].meta[key] for key in same)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = (finished / "checkpoints" / "last.ckpt").read_bytes()
    assert bc_trainer.train(resume_run(finished))
    assert (finished / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_folder_that_holds_a_run_is_not_written_over(module_project, finished):
    with pytest.raises(InputError, match="--resume"):
        start_run(module_project, finished)


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(InputError, match=r"no config\.yaml"):
        resume_run(tmp_path)


def test_changed_data_stop_a_resume(module_project, lift_root, tmp_path):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(lift_root / "lift", root / "lift")
    project = module_project.replace("dataset", roots=[str(root)])
    run = start_run(project, tmp_path / "run")
    bc_trainer.train(run, stop=lambda: True)
    sorted(root.rglob("*.npz"))[0].unlink()
    with pytest.raises(CheckpointError, match="other episodes"):
        resume_run(run.folder)


def test_weights_of_a_checkpoint_can_be_the_start_of_another_training(
    module_project, finished, tmp_path
):
    checkpoint = finished / "checkpoints" / "best.ckpt"
    run = start_run(module_project, tmp_path / "run", checkpoint)
    policy, _ = load_policy(checkpoint)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, run.learner.policy.state_dict()[name]), name
    assert run.state.step == 0


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(
    module_project, tmp_path
):
    run = open_run(module_project.replace("optimizer", lr=1e6), tmp_path / "run")
    with torch.no_grad():
        next(run.learner.policy.parameters()).fill_(float("nan"))
    with pytest.raises(TeamVLAError, match="a finite loss, got nan"):
        bc_trainer.train(run)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_held_out_loader_is_not_augmented(module_project):
    from teamvla.data.dataloader import DatasetConfig

    _, held_out = build_data(module_project.section("dataset", DatasetConfig))
    first, second = ([b["observations"]["image"].clone() for b in held_out] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_metrics_are_json_lines_that_a_crash_cannot_spoil(finished, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes((finished / "metrics.jsonl").read_bytes() + b'{"split": "tra')
    assert read_metrics(path) == read_metrics(finished / "metrics.jsonl")
    assert all("\n" not in json.dumps(row) for row in read_metrics(path))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = cosine_with_warmup(optimizer, 10, 110, min_ratio=0.1)
    rates = []
    for _ in range(111):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)


def test_weight_decay_spares_biases_and_norms():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = make_optimizer(model, OptimizerConfig(weight_decay=0.5)).param_groups
    decayed = [p.ndim for group in groups if group["weight_decay"] for p in group["params"]]
    spared = [p.ndim for group in groups if not group["weight_decay"] for p in group["params"]]
    assert decayed == [2]
    assert spared == [1, 1, 1]


@pytest.mark.parametrize(
    ("success", "loss", "better"),
    [(0.9, 9.0, True), (0.8, 0.4, True), (0.8, 0.6, False), (0.7, 0.1, False), (None, 0.1, False)],
)
def test_checkpoints_rank_by_success_then_by_loss(success, loss, better):
    best = TrainingState(best_epoch=3, best_success=0.8, best_val_loss=0.5)
    assert best.is_better(success, loss) is better


def test_the_average_of_the_weights_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, decay=0.15, every=2)
    seen = []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
        seen.append(average.averaged.weight.item())
    assert seen == pytest.approx([1.0, 1.0, 0.1 * 1 + 0.9 * 3, 2.8])


def test_nan_shorter_than_a_row_of_metrics_is_noticed_too(module_project, tmp_path):
    run = start_run(module_project.replace("trainer", log_every=10**6), tmp_path / "run")
    with torch.no_grad():
        next(run.learner.policy.parameters()).fill_(float("nan"))
    before = (run.checkpoints / "last.ckpt").exists()
    with pytest.raises(TeamVLAError, match="a finite loss, got nan"):
        bc_trainer.train(run)
    assert (run.checkpoints / "last.ckpt").exists() == before
    assert not (run.checkpoints / "best.ckpt").exists()


def test_a_run_whose_configuration_was_edited_is_not_resumed(module_project, tmp_path):
    run = start_run(module_project, tmp_path / "run")
    bc_trainer.train(run, stop=lambda: run.state.step == 2)
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.0007", "lr: 0.1"))
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.0007 != 0\.1"):
        resume_run(run.folder)


def test_a_training_on_a_weighted_mixture_continues_bit_by_bit(module_project, lift_root, tmp_path):
    root = tmp_path / "two"
    with EpisodeWriter(root) as writer:
        for number, path in enumerate(find_episodes(lift_root)):
            episode = read_episode(path)
            names = {"task": ("lift", "handoff")[number % 2], "episode_id": f"e{number}"}
            writer.start_episode({**episode.meta, **names})
            for step in range(12):
                row = {name: values[step] for name, values in episode.fields.items()}
                texts = {n: str(v) for n, v in row.items() if isinstance(v, str)}
                writer.add_step({**row, **texts, "task": names["task"]})
            writer.end_episode(success=True)
    weights = {"lift": 3.0, "handoff": 1.0}
    changes = {"roots": [str(root)], "weights": weights, "split": "all", "batch_size": 8}
    project = module_project.replace("dataset", **changes).replace("trainer", rollout_every=0)
    project = project.replace("dataset", chunk_size=8).replace("model", chunk_size=8)
    whole = start_run(project, tmp_path / "whole")
    assert bc_trainer.train(whole)
    parts = start_run(project, tmp_path / "parts")
    polls = []
    assert not bc_trainer.train(parts, stop=lambda: polls.append(1) or len(polls) >= 3)
    resumed = resume_run(parts.folder)
    assert resumed.train_loader.batch_sampler.mixture.counts == [12, 36]
    assert bc_trainer.train(resumed)
    ends = [read_checkpoint(run.folder / "checkpoints" / "last.ckpt") for run in (whole, resumed)]
    assert ends[0][0].meta["sampler"] == ends[1][0].meta["sampler"]
    for name, array in ends[0][1].items():
        assert np.array_equal(array, ends[1][1][name]), name


def test_a_history_is_refused_at_the_start_as_no_policy_takes_one(module_project, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.n_obs_steps: expected 1.*got 2"):
        start_run(module_project.replace("dataset", n_obs_steps=2), tmp_path / "run")

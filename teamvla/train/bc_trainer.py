"""Behaviour cloning: from an indexed dataset to ranked checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from teamvla import seeds
from teamvla.config import Project
from teamvla.evaluation.suites import Score, Suite
from teamvla.evaluation.suites import evaluate as evaluate_closed_loop
from teamvla.files import duplicate
from teamvla.logs import progress
from teamvla.models.base import Policy
from teamvla.sim.tasks import TaskConfig
from teamvla.train.checkpoints import load_checkpoint, save_checkpoint
from teamvla.train.runs import Run, build_data, build_model, set_seed, start_run
from teamvla.train.trainer import Metrics, TrainingState, evaluate, train_one_epoch

__all__ = [
    "TrainingState",
    "build_data",
    "build_model",
    "evaluate",
    "load_checkpoint",
    "main",
    "save_checkpoint",
    "set_seed",
    "train",
    "train_one_epoch",
]
_LOG = logging.getLogger(__name__)


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train to the last epoch; False if ``stop`` ended it early. Either way it can be resumed."""
    total = run.config.epochs * len(run.train_loader)
    _LOG.info("training %s", _describe(run))
    with progress("train", total, "step") as bar:
        bar.continue_at(run.state.step)

        def on_metrics(values: Metrics) -> None:
            bar.metrics["loss"] = values["loss"]
            run.journal.write("train", run.state, values)

        while run.state.epoch < run.config.epochs:
            bar.metrics["epoch"] = f"{run.state.epoch + 1}/{run.config.epochs}"
            started = time.perf_counter()
            train_one_epoch(
                run.learner,
                run.train_loader,
                log_every=run.config.log_every,
                on_step=bar.advance,
                on_metrics=on_metrics,
                stop=stop,
            )
            run.state.seconds += time.perf_counter() - started
            if run.train_loader.batch_sampler.epoch == run.state.epoch:  # stopped on the way
                _save(run, "last.ckpt")
                return False
            _end_epoch(run, stop)
            if stop():
                return run.state.epoch == run.config.epochs
    return True


def _describe(run: Run) -> str:
    parameters = sum(p.numel() for p in run.learner.policy.parameters())
    precision = "bf16 autocast" if run.learner.autocast else "fp32"
    steps = len(run.train_loader.dataset)
    return (
        f"{parameters / 1e6:.2f} M parameters on {steps} steps, {run.learner.device}, "
        f"{precision}, {torch.get_num_threads()} threads, in {run.folder}"
    )


def _end_epoch(run: Run, stop: Callable[[], bool]) -> None:
    """Validate, perhaps roll out, and publish the checkpoints of a finished epoch."""
    state = run.state
    state.epoch += 1
    weights = run.learner.best_weights
    val_loss = None
    if run.val_loader is not None:
        val = evaluate(weights, run.val_loader, run.learner.device)
        run.journal.write("val", state, val)
        val_loss = val["loss"]
    score = _rank(run, weights, stop) if _is_ranked(run) else None
    success = score.success_rate if score is not None else None
    better = (score is not None or not run.config.rollout_every) and state.is_better(
        success, val_loss
    )
    if better:
        state.best_epoch, state.best_success = state.epoch, success
        state.best_val_loss = val_loss
    path = _save(run, "last.ckpt")
    if state.epoch % run.config.checkpoint_every == 0 or state.epoch == run.config.epochs:
        duplicate(path, run.checkpoints / f"epoch_{state.epoch:04d}.ckpt")
    if better:
        duplicate(path, run.checkpoints / "best.ckpt")


def _is_ranked(run: Run) -> bool:
    every, epoch, last = run.config.rollout_every, run.state.epoch, run.config.epochs
    if not every:
        return False
    return epoch == last or (epoch % every == 0 and epoch >= run.config.rollout_after * last)


def _rank(run: Run, weights: Policy, stop: Callable[[], bool]) -> Score | None:
    """Success of the weights on initial states kept for choosing; None if it was cut short."""
    weights.eval()
    task = run.project.section("task", TaskConfig)
    suite = Suite(task, run.project.session.seed, seeds.Domain.SELECT)
    episodes = run.config.rollout_episodes
    name = f"rollouts of epoch {run.state.epoch}"
    score = evaluate_closed_loop(suite, lambda env: weights, episodes, name=name, stop=stop)
    if score.episodes < episodes:
        return None
    run.journal.write("rollout", run.state, {"success_rate": score.success_rate})
    _LOG.info("epoch %d: %s", run.state.epoch, score)
    return score


def _save(run: Run, name: str) -> Path:
    probe_batch = run.train_loader.dataset.__getitems__([0])
    return save_checkpoint(
        run.checkpoints / name,
        run.learner,
        meta=run.meta,
        sampler=run.train_loader.batch_sampler.state_dict(),
        probe_batch=run.train_loader.collate_fn(probe_batch),
    )


def main(
    project: Project,
    folder: Path | None = None,
    *,
    init_checkpoint: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train a new run from its configuration; returns it finished or stopped."""
    run = start_run(project, folder, init_checkpoint)
    train(run, stop)
    return run

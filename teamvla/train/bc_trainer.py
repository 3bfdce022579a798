"""Behaviour cloning: from an indexed dataset to ranked checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from teamvla.config import Project
from teamvla.files import duplicate
from teamvla.logs import progress
from teamvla.models.base import Policy
from teamvla.train.checkpoints import load_checkpoint, save_checkpoint, write_metadata
from teamvla.train.ranking import Scores, mean_success, rank, ranking_tasks
from teamvla.train.runs import Run, build_data, build_model, save, set_seed, start_run
from teamvla.train.trainer import (
    Metrics,
    TrainerConfig,
    TrainingState,
    evaluate,
    require_finite,
    sound,
    train_one_epoch,
)

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
#: of a policy, in the order of the data's way through it
PARTS = ("vision", "projector", "language", "temporal", "fusion", "head")
_LOG = logging.getLogger(__name__)


def train(run: Run, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train to the last epoch; False if ``stop`` ended it early. Either way it can be resumed."""
    total = run.config.epochs * len(run.train_loader)
    _LOG.info("training %s", _describe(run))
    with run.journal, progress("train", total, "step") as bar:
        bar.continue_at(run.state.step)

        def on_metrics(values: Metrics) -> None:
            bar.metrics["loss"] = values["loss"]
            run.journal.write("train", run.state, values)

        while run.state.epoch < run.config.epochs:
            bar.metrics["epoch"] = f"{run.state.epoch + 1}/{run.config.epochs}"
            if _is_under_way(run):
                started = time.perf_counter()
                train_one_epoch(
                    run.learner,
                    sound(run.train_loader, run.train_loader.dataset.where),
                    log_every=run.config.log_every,
                    on_step=bar.advance,
                    on_metrics=on_metrics,
                    stop=stop,
                )
                run.state.seconds += time.perf_counter() - started
            if _is_under_way(run) or not _end_epoch(run, stop):  # stopped on the way
                save(run, "last.ckpt")
                return False
            if stop():
                return run.state.epoch == run.config.epochs
    return True


def _is_under_way(run: Run) -> bool:
    """Whether the epoch has samples left; if not, a run that was stopped only has to end it."""
    return bool(run.train_loader.batch_sampler.epoch == run.state.epoch)


def _describe(run: Run) -> str:
    policy = run.learner.policy
    sizes = [(p.numel(), p.requires_grad) for p in policy.parameters()]
    count, trained = sum(n for n, _ in sizes), sum(n for n, taught in sizes if taught)
    size = f"{_rounded(count)} parameters"
    if trained < count:
        size += f" ({_rounded(trained)} trained)"
    model = policy.config.model_dump()
    parts = ", ".join(model[name]["type"] for name in PARTS if model.get(name))
    name = f"{policy.config.type} ({parts})" if parts else policy.config.type
    precision = "bf16 autocast" if run.learner.autocast else "fp32"
    return (
        f"{name}, {size} on {run.train_loader.dataset.size}, {run.learner.device}, "
        f"{precision}, {torch.get_num_threads()} threads, in {run.folder}"
    )


def _rounded(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def _end_epoch(run: Run, stop: Callable[[], bool]) -> bool:
    """Validate, perhaps roll out, and publish a trained epoch; False if ``stop`` cut it short."""
    state, weights, epoch = run.state, run.learner.best_weights, run.state.epoch + 1
    val = scores = None
    if run.val_loader is not None:
        batches = sound(run.val_loader, run.val_loader.dataset.where)
        val = evaluate(weights, batches, run.learner.device)
        require_finite(val, f"validation of epoch {epoch}")
    if _is_ranked(run.config, epoch):
        scores = _rank(run, weights, epoch, stop)
        if scores is None:
            return False
    state.epoch = epoch
    run.learner.end_epoch(None if val is None else val["loss"])
    if val is not None:
        run.journal.write("val", state, val)
    success = None
    if scores is not None:
        success = mean_success(scores)
        _note(run, scores, success)
    _publish(run, success, val)
    return True


def _note(run: Run, scores: Scores, success: float) -> None:
    """Write the rollouts down: their mean, and if there are several tasks each of them."""
    run.journal.write("rollout", run.state, {"success_rate": success})
    for name, score in scores.items():
        _LOG.info("epoch %d: %s: %s", run.state.epoch, name, score)
        if len(scores) > 1:
            run.journal.write(f"rollout/{name}", run.state, {"success_rate": score.success_rate})


def _publish(run: Run, success: float | None, val: Metrics | None) -> None:
    """Write the epoch's checkpoints; ``last.ckpt`` comes last, as resuming goes by it."""
    state, config = run.state, run.config
    val_loss = val["loss"] if val is not None else None
    names = ["last.ckpt"]
    if (success is not None or not config.rollout_every) and state.is_better(success, val_loss):
        state.best_epoch, state.best_success = state.epoch, success
        state.best_val_loss = val_loss
        names.insert(0, "best.ckpt")
    if state.epoch % config.checkpoint_every == 0 or state.epoch == config.epochs:
        names.insert(0, f"epoch_{state.epoch:04d}.ckpt")
    path = save(run, names[0], val)
    for name in names[1:]:
        duplicate(path, run.checkpoints / name)
        if config.metadata:
            write_metadata(run.checkpoints / name, val)


def _is_ranked(config: TrainerConfig, epoch: int) -> bool:
    every, last = config.rollout_every, config.epochs
    if not every:
        return False
    return epoch == last or (epoch % every == 0 and epoch >= config.rollout_after * last)


def _rank(run: Run, weights: Policy, epoch: int, stop: Callable[[], bool]) -> Scores | None:
    tasks, episodes = ranking_tasks(run.project), run.config.rollout_episodes
    return rank(weights, tasks, episodes, seed=run.project.session.seed, epoch=epoch, stop=stop)


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

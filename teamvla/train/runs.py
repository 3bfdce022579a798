"""A run: a training and its folder, opened anew or where it stopped."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from teamvla import seeds
from teamvla.checkpoint import read_header
from teamvla.config import Project
from teamvla.contract import Contract
from teamvla.data.dataloader import DatasetConfig, make_dataloader
from teamvla.errors import CheckpointError, ConfigError, InputError
from teamvla.files import publish
from teamvla.models.base import Policy, PolicyConfig, build_policy
from teamvla.models.device import resolve_device
from teamvla.models.losses import LossConfig
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig
from teamvla.train.checkpoints import init_from, load_checkpoint
from teamvla.train.ema import WeightAverage
from teamvla.train.journal import MetricsJournal
from teamvla.train.schedulers import (
    OptimizerConfig,
    SchedulerConfig,
    make_optimizer,
    make_scheduler,
)
from teamvla.train.trainer import Learner, TrainerConfig, TrainingState, wants_bf16

_LOG = logging.getLogger(__name__)


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, each with a stream of its own."""
    random.seed(seeds.integer(seed, seeds.Domain.INITIALISE, 0))
    np.random.seed(seeds.integer(seed, seeds.Domain.INITIALISE, 1))
    torch.manual_seed(seeds.integer(seed, seeds.Domain.INITIALISE, 2))


def build_data(config: DatasetConfig) -> tuple[Any, Any | None]:
    """The training loader, and the loader of the held-out split (None if it is empty).

    The held-out loader is neither shuffled nor augmented.
    """
    train = make_dataloader(config)
    plain = {"split": "val", "shuffle": False, "transforms": (), "drop_last": False}
    try:
        return train, make_dataloader(config.model_copy(update=plain))
    except InputError as error:
        _LOG.warning("training without validation: %s", error)
        return train, None


def build_model(project: Project, contract: Contract, statistics: dict[str, Any] | None) -> Policy:
    """The policy of section ``model``, trained with the losses of section ``loss``."""
    config, loss = project.section("model", PolicyConfig), project.section("loss", LossConfig)
    return build_policy(config, contract, statistics, loss, seed=project.session.seed)


@dataclass
class Run:
    """A training under way: its parts and its folder.

    Layout: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/{epoch_NNNN,last,best}.ckpt``.
    """

    folder: Path
    project: Project
    config: TrainerConfig
    learner: Learner
    train_loader: Any
    val_loader: Any | None
    meta: dict[str, Any]
    journal: MetricsJournal

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def state(self) -> TrainingState:
        return self.learner.state


def open_run(project: Project, folder: Path) -> Run:
    """Build every part of a training; nothing is written yet.

    Raises:
        ConfigError: any section is wrong. InputError: no such data or device.
        ContractError: the simulator's numbers mean something else than the data's.
    """
    config = project.section("trainer", TrainerConfig)
    device = resolve_device(project.session.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    set_seed(project.session.seed)
    train_loader, val_loader = build_data(_dataset_config(project))
    data = train_loader.dataset
    if config.rollout_every:
        simulated = make_env(project.section("task", TaskConfig)).contract
        data.contract.require(simulated, "the data", "the simulator")
    policy = build_model(project, data.contract, data.statistics).to(device)
    learner = _build_learner(project, config, policy, device, len(train_loader))
    meta = {
        "config": project.resolved(),
        "contract": data.contract.to_dict(),
        "statistics": data.statistics,
        "manifest_digest": data.digest,
    }
    journal = MetricsJournal(folder / "metrics.jsonl")
    return Run(folder, project, config, learner, train_loader, val_loader, meta, journal)


def _dataset_config(project: Project) -> DatasetConfig:
    config = project.section("dataset", DatasetConfig)
    chunk = project.section("model", PolicyConfig).chunk_size
    if config.chunk_size != chunk:
        raise ConfigError(
            "dataset.chunk_size", f"model.chunk_size = {chunk}", str(config.chunk_size),
            "Set both to the same.",
        )  # fmt: skip
    return config


def _build_learner(
    project: Project, config: TrainerConfig, policy: Policy, device: torch.device, batches: int
) -> Learner:
    optimizer = make_optimizer(policy, project.section("optimizer", OptimizerConfig))
    schedule = project.section("scheduler", SchedulerConfig)
    scheduler = make_scheduler(optimizer, schedule, config.epochs * batches)
    ema = None
    if config.ema_decay is not None:
        ema = WeightAverage(policy, config.ema_decay, config.ema_every)
    autocast = wants_bf16(config.precision, device)
    return Learner(policy, optimizer, scheduler, ema, device, config.clip_norm, autocast)


def start_run(
    project: Project, folder: Path | None = None, init_checkpoint: Path | None = None
) -> Run:
    """A new training in ``folder`` (``runs/<timestamp>`` by default), its configuration written."""
    folder = folder or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if (folder / "config.yaml").exists():
        raise InputError(
            str(folder), "a new folder", "one that holds a run",
            f"Continue it with `teamvla train --resume {folder}`, or choose another --out.",
        )  # fmt: skip
    if "seed" not in project.source.data.get("dataset", {}):
        project = project.replace("dataset", seed=project.session.seed)
    run = open_run(project, folder)
    if init_checkpoint is not None:
        init_from(init_checkpoint, run.learner)
    text = yaml.safe_dump(run.meta["config"], sort_keys=False)
    publish(folder / "config.yaml", lambda file: file.write(text.encode("utf-8")))
    return run


def resume_run(folder: Path, device: str | None = None) -> Run:
    """The training in ``folder``, exactly where its last checkpoint left it.

    Raises:
        InputError: there is no run. CheckpointError: it is damaged, or its data have changed.
    """
    last = folder / "checkpoints" / "last.ckpt"
    config = folder / "config.yaml"
    if not config.exists():
        raise InputError(str(folder), "the folder of a run", "no config.yaml in it")
    project = Project.load(str(config)).with_session(device=device)
    if not last.exists():
        return open_run(project, folder)  # stopped before its first checkpoint: begin again
    header = read_header(last)
    run = open_run(project, folder)
    run.train_loader.dataset.contract.require(
        Contract.parse(header.meta.get("contract"), str(last)), "the data", str(last)
    )
    if header.meta.get("manifest_digest") != run.meta["manifest_digest"]:
        raise CheckpointError(
            str(last), "the data that it was trained on", "other episodes",
            "Restore them, or start anew from its weights with --init-from.",
        )  # fmt: skip
    load_checkpoint(last, run.learner)
    run.train_loader.batch_sampler.load_state_dict(header.meta["sampler"])
    run.journal.rewind(run.state.step)
    return run

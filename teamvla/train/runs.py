"""A run: a training and its folder, opened anew or where it stopped."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from teamvla import seeds
from teamvla.checkpoint import Header, verify_digest
from teamvla.config import Project
from teamvla.config.differences import differences, listed
from teamvla.contract import Contract
from teamvla.data import IndexConfig, build_index
from teamvla.data.dataloader import DatasetConfig, MultiTaskDataset, make_dataloader
from teamvla.errors import CheckpointError, ConfigError, InputError
from teamvla.files import check_folder, publish
from teamvla.models.base import Policy, PolicyConfig, build_policy
from teamvla.models.device import resolve_device
from teamvla.models.encoders.words import instruction_words
from teamvla.models.heads.base import HeadConfig
from teamvla.models.losses import LossConfig, needs_geometry, require_geometry
from teamvla.train.checkpoints import (
    init_from,
    load_checkpoint,
    require_same_model,
    save_checkpoint,
)
from teamvla.train.ema import WeightAverage
from teamvla.train.journal import MetricsJournal
from teamvla.train.ranking import require_simulated, warn_of_unseen_task
from teamvla.train.schedulers import (
    OptimizerConfig,
    SchedulerConfig,
    make_optimizer,
    make_scheduler,
)
from teamvla.train.trainer import (
    Batch,
    Learner,
    TrainerConfig,
    TrainingState,
    to_device,
    wants_bf16,
)

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
    held_out = config.model_copy(update=plain)
    if len(MultiTaskDataset(held_out)):
        return train, make_dataloader(held_out)
    _LOG.warning("no episode is held out: training goes without validation")
    return train, None


def build_model(project: Project, contract: Contract, statistics: dict[str, Any] | None) -> Policy:
    """The policy of section ``model``, trained with the losses of section ``loss``."""
    config, loss = project.section("model", PolicyConfig), project.section("loss", LossConfig)
    require_geometry(loss, contract)
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
        ConfigError: any section is wrong, or chunks are longer than every episode.
        InputError: no such data or device.
        ContractError: the simulator's numbers mean something else than the data's.
    """
    config, settings = project.section("trainer", TrainerConfig), project.resolved()
    device = resolve_device(project.session.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    set_seed(project.session.seed)
    dataset = _dataset_config(project)
    if "index" in project.source.data:
        build_index(dataset.roots, dataset.index, project.section("index", IndexConfig))
    _require_fitting(project, dataset)
    train_loader, val_loader = build_data(dataset)
    data = train_loader.dataset
    statistics = {**data.statistics, "words": instruction_words(data.instructions)}
    policy = build_model(project, data.contract, statistics).to(device)
    learner = _build_learner(project, config, policy, device, len(train_loader))
    meta = {
        "config": settings,
        "tasks": sorted(data.tasks()),
        "contract": data.contract.to_dict(),
        "statistics": statistics,
        "manifest_digest": data.digest,
    }
    journal = MetricsJournal(folder / "metrics.jsonl")
    run = Run(folder, project, config, learner, train_loader, val_loader, meta, journal)
    _tell_what_is_left_out(run)
    return run


def _dataset_config(project: Project) -> DatasetConfig:
    config = project.section("dataset", DatasetConfig)
    if config.n_obs_steps != 1:
        raise ConfigError(
            "dataset.n_obs_steps", "1, as the policies take one observation",
            str(config.n_obs_steps), "Take it out of the configuration.",
        )  # fmt: skip
    chunk = project.section("model", PolicyConfig).chunk_size
    if config.chunk_size != chunk:
        raise ConfigError(
            "dataset.chunk_size", f"model.chunk_size = {chunk}", str(config.chunk_size),
            "Set both to the same.",
        )  # fmt: skip
    return config


def _require_fitting(project: Project, config: DatasetConfig) -> None:
    """Refuse settings that do not fit the data.

    The index, which others may read, is not yet made one for chunks as long as these.
    """
    data = MultiTaskDataset(config.model_copy(update={"chunk_size": 1}))
    shown = sorted(data.tasks())
    if project.section("trainer", TrainerConfig).rollout_every:
        require_simulated(project, data.contract, shown)
    else:
        require_geometry(project.section("loss", LossConfig), data.contract)
        warn_of_unseen_task(project, data.contract, shown)
    _require_whole_chunk(data, config.chunk_size)


def _require_whole_chunk(data: MultiTaskDataset, chunk: int) -> None:
    """Refuse chunks of which every single one would reach beyond its episode's end."""
    table = data.index.episodes
    longest = data.episodes[table["num_steps"][data.episodes].argmax()]
    steps, name = int(table["num_steps"][longest]), table.text("path", int(longest))
    if chunk > steps:
        raise ConfigError(
            "dataset.chunk_size", f"at most {steps}, the steps of the longest episode ({name})",
            str(chunk), "Set it and model.chunk_size to less, or record longer episodes.",
        )  # fmt: skip


def _tell_what_is_left_out(run: Run) -> None:
    """Warn if the head predicts nothing in training that sync and collision could look at."""
    loss, policy = run.project.section("loss", LossConfig), run.learner.policy
    if not needs_geometry(loss, policy.contract):
        return
    batch = to_device(_first_sample(run), run.learner.device)
    gpus = [run.learner.device] if run.learner.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(gpus):
        computed = policy.loss(batch)
    asked = [name for name in ("sync", "collision") if getattr(loss, name)]
    if missing := [name for name in asked if name not in computed]:
        _LOG.warning(
            "%s left out: %s predicts no actions while it is trained. To say so: %s",
            " and ".join(f"loss.{name}" for name in missing), _predictor(policy),
            " ".join(f"--set loss.{name}=0" for name in missing),
        )  # fmt: skip


def _predictor(policy: Policy) -> str:
    head: HeadConfig | None = policy.config.head
    return f"model {policy.config.type!r}" if head is None else f"head {head.type!r}"


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


def settled(project: Project) -> Project:
    """The project with the order of the samples under the session's seed, unless it has its own."""
    if "seed" in (project.source.data.get("dataset") or {}):
        return project
    return project.replace("dataset", seed=project.session.seed)


def save(run: Run, name: str) -> Path:
    """Publish the run as it stands among its checkpoints."""
    return save_checkpoint(
        run.checkpoints / name,
        run.learner,
        meta=run.meta,
        sampler=run.train_loader.batch_sampler.state_dict(),
        probe_batch=_first_sample(run),
    )


def _first_sample(run: Run) -> Batch:
    """A batch of the one sample that is always the same."""
    batch: Batch = run.train_loader.collate_fn(run.train_loader.dataset.__getitems__([0]))
    return batch


def start_run(
    project: Project, folder: Path | None = None, init_checkpoint: Path | None = None
) -> Run:
    """A new training in ``folder`` (``runs/<timestamp>`` by default), its configuration written."""
    folder = check_folder(folder or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if (folder / "config.yaml").exists():
        raise InputError(
            str(folder), "a new folder", "one that holds a run",
            f"Continue it with `teamvla train --resume {folder}`, or choose another --out.",
        )  # fmt: skip
    if init_checkpoint is not None:
        require_same_model(init_checkpoint, project.section("model", PolicyConfig))
    run = open_run(settled(project), folder)
    if init_checkpoint is not None:
        parent = init_from(init_checkpoint, run.learner)
        run.meta["parent"] = {"file": init_checkpoint.name, "sha256": parent.sha256}
        save(run, "last.ckpt")  # a run that is killed early must not go on from other weights
    text = yaml.safe_dump(run.meta["config"], sort_keys=False)
    publish(folder / "config.yaml", lambda file: file.write(text.encode("utf-8")))
    return run


def finished_state(folder: Path) -> TrainingState | None:
    """Where the training in ``folder`` ended, or None if it has not; nothing is built.

    Raises:
        CheckpointError: its last checkpoint is damaged.
    """
    last, config = folder / "checkpoints" / "last.ckpt", folder / "config.yaml"
    if not (last.exists() and config.exists()):
        return None
    header, written = verify_digest(last), Project.load(str(config)).resolved()
    # An edited configuration, or another program's checkpoint, is told of where it is resumed.
    if differences(_settings(header.meta), _settings({"config": written})):
        return None
    try:
        state = TrainingState(**header.meta["state"])
    except (KeyError, TypeError):
        return None
    return state if state.epoch == written["trainer"]["epochs"] else None


def resume_run(folder: Path, device: str | None = None, roots: Sequence[str] | None = None) -> Run:
    """The training in ``folder``, exactly where its last checkpoint left it.

    Args:
        folder: of the run.
        device: another device than before.
        roots: where its data are now; they must be the same episodes.

    Raises:
        InputError: there is no run. CheckpointError: it is damaged, or its data have changed.
    """
    last = folder / "checkpoints" / "last.ckpt"
    config = folder / "config.yaml"
    if not config.exists():
        raise InputError(str(folder), "the folder of a run", "no config.yaml in it")
    project = Project.load(str(config)).with_session(device=device).replace("dataset", roots=roots)
    for root in project.section("dataset", DatasetConfig).roots:
        if not Path(root).is_dir():
            raise InputError(
                root, f"the data of {folder}", f"no such folder, seen from {Path.cwd()}",
                "Go to where the run began, or tell with --data where they are.",
            )  # fmt: skip
    if not last.exists():
        run = open_run(project, folder)  # killed before its first checkpoint: begin again
        run.journal.rewind(0)
        return run
    header = verify_digest(last)  # before a flipped bit in it is taken for another setting
    run = open_run(project, folder)
    _require_same(run, header)
    if "parent" in header.meta:
        run.meta["parent"] = header.meta["parent"]
    load_checkpoint(last, run.learner, run.train_loader.batch_sampler)
    run.journal.rewind(run.state.step)
    return run


def _require_same(run: Run, header: Header) -> None:
    """Refuse to go on with other settings, meanings or episodes than the checkpoint's."""
    where = str(header.path)
    lines = differences(_settings(header.meta), _settings(run.meta))
    if lines:
        raise ConfigError(
            f"{run.folder / 'config.yaml'} is not what the run was started with:\n{listed(lines)}\n"
            "Put it back, or start another run with --init-from."
        )
    run.train_loader.dataset.contract.require(
        Contract.parse(header.meta.get("contract"), where), "the data", where
    )
    if header.meta.get("manifest_digest") != run.meta["manifest_digest"]:
        raise CheckpointError(
            where, "the data that it was trained on", "other episodes",
            "Restore them, or start another run with --init-from.",
        )  # fmt: skip
    threads, before = torch.get_num_threads(), header.meta.get("threads")
    if threads != before:
        _LOG.warning("%s threads instead of %s: the last bits will differ", threads, before)


def _settings(meta: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without what may differ from session to session."""
    config = copy.deepcopy(meta.get("config")) or {}
    config.pop("device", None)
    config.get("dataset", {}).pop("roots", None)
    return dict(config)

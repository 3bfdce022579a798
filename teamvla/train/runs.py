"""A run: a training and its folder, opened anew or where it stopped."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from teamvla.checkpoint import Header, verify_digest
from teamvla.config import Project
from teamvla.config.differences import differences, listed
from teamvla.contract import Contract
from teamvla.data.dataloader import DatasetConfig
from teamvla.errors import CheckpointError, ConfigError, InputError
from teamvla.files import check_folder, publish
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.building import build_policy
from teamvla.models.encoders.pretrained import PretrainedVisionEncoder
from teamvla.models.heads.base import HeadConfig
from teamvla.models.loading import base_entry
from teamvla.models.losses import LossConfig, needs_geometry, require_geometry
from teamvla.models.pretrained.llm import LLMBackbone
from teamvla.models.pretrained.settings import completed, weights_follow
from teamvla.train.checkpoints import (
    init_from,
    load_checkpoint,
    require_same_model,
    save_checkpoint,
    write_metadata,
)
from teamvla.train.ema import WeightAverage
from teamvla.train.journal import MetricsJournal
from teamvla.train.material import build_data, gather, set_seed
from teamvla.train.schedulers import (
    OptimizerConfig,
    SchedulerConfig,
    make_optimizer,
    make_scheduler,
)
from teamvla.train.tracking import open_tracker
from teamvla.train.trainer import (
    Batch,
    Learner,
    Metrics,
    TrainerConfig,
    TrainingState,
    to_device,
    wants_bf16,
)

__all__ = [
    "Run", "build_data", "build_model", "finished_state", "open_run", "resume_run", "save",
    "set_seed", "settled", "start_run",
]  # fmt: skip
_LOG = logging.getLogger(__name__)


def build_model(
    project: Project,
    contract: Contract,
    statistics: dict[str, Any] | None,
    config: PolicyConfig | None = None,
) -> Policy:
    """The policy of section ``model``, trained with the losses of section ``loss``.

    Args:
        config: in place of the section.
    """
    loss = project.section("loss", LossConfig)
    require_geometry(loss, contract)
    config = config or project.section("model", PolicyConfig)
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
    given = gather(project)
    loader, data = given.train_loader, given.train_loader.dataset
    # What else would be read from a pretrained model's folder is written into the run.
    model, settings = completed(project.section("model", PolicyConfig)), project.resolved()
    if "model" in settings:
        settings["model"] = model.model_dump(mode="json")
    policy = build_model(project, given.contract, given.statistics, model).to(given.device)
    schedule = project.section("scheduler", SchedulerConfig)
    if schedule.type == "plateau" and given.val_loader is None:
        expected = "episodes to validate with, as the schedule goes by their loss"
        raise ConfigError("scheduler.type", expected, "none", "Record more, or take another.")
    learner = _build_learner(project, given.config, policy, given.device, len(loader))
    meta = {
        "config": settings,
        "tasks": sorted(data.tasks()),
        "contract": given.contract.to_dict(),
        "statistics": given.statistics,
        "manifest_digest": data.digest,
    }
    tracker = partial(open_tracker, given.config.wandb, folder, settings)
    journal = MetricsJournal(folder / "metrics.jsonl", tracker)
    return Run(folder, project, given.config, learner, loader, given.val_loader, meta, journal)


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


def save(run: Run, name: str, val: Metrics | None = None) -> Path:
    """Publish the run as it stands among its checkpoints, with what validation said of it."""
    path = save_checkpoint(
        run.checkpoints / name,
        run.learner,
        meta=run.meta,
        sampler=run.train_loader.batch_sampler.state_dict(),
        probe_batch=_first_sample(run),
    )
    if run.config.metadata:
        write_metadata(path, val)
    return path


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
    require_start(project, init_checkpoint)
    run = open_run(settled(project), folder)
    if init_checkpoint is None:
        warn_of_frozen(run.learner.policy)
    _tell_what_is_left_out(run)
    if init_checkpoint is not None:
        parent = init_from(init_checkpoint, run.learner)
        run.meta["parent"] = {"file": init_checkpoint.name, "sha256": parent.sha256}
        if run.config.save == "trained":
            base = base_entry(init_checkpoint, parent.sha256, run.checkpoints)
            run.meta["base"] = base
        save(run, "last.ckpt")  # a run that is killed early must not go on from other weights
    text = yaml.safe_dump(run.meta["config"], sort_keys=False)
    publish(folder / "config.yaml", lambda file: file.write(text.encode("utf-8")))
    return run


def require_start(project: Project, init_checkpoint: Path | None) -> None:
    """Refuse a checkpoint to start from that is of another model, or the lack of one.

    Raises:
        ConfigError, CheckpointError, InputError: it does not fit, or is not there.
    """
    if init_checkpoint is not None:
        require_same_model(init_checkpoint, project.section("model", PolicyConfig))
    elif project.section("trainer", TrainerConfig).save == "trained":
        raise ConfigError(
            "trainer.save", "all, or --init-from with the checkpoint that has what is frozen",
            "trained without one", "Give --init-from CKPT.",
        )  # fmt: skip


def warn_of_frozen(policy: Policy) -> None:
    """Say which parts adapters have frozen although they have learned nothing yet."""
    if policy.config.adaptation.lora is None or getattr(policy.config, "weights", None):
        return
    fresh = [
        name
        for name, part in policy.named_children()
        if not isinstance(part, PretrainedVisionEncoder | LLMBackbone)
        and any(not p.requires_grad for p in part.parameters())
    ]
    if fresh:
        _LOG.warning(
            "model.adaptation.lora freezes what has learned nothing yet: %s. Start from a "
            "checkpoint (--init-from), or name them in lora.train (%s.*)",
            ", ".join(fresh), fresh[-1],
        )  # fmt: skip


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
        got = "no config.yaml in it" if folder.is_dir() else "no folder"
        runs = [up for up in folder.parents if (up / config.name).exists()]
        mend = f"Did you mean {runs[0]}?" if runs else None
        raise InputError(str(folder), "the folder of a run", got, mend)
    project = Project.load(str(config)).with_session(device=device).replace("dataset", roots=roots)
    for root in project.section("dataset", DatasetConfig).roots:
        if not Path(root).is_dir():
            raise InputError(
                root, f"the data of {folder}", f"no such folder, seen from {Path.cwd()}",
                "Go to where the run began, or tell with --data where they are.",
            )  # fmt: skip
    if not last.exists():
        run = open_run(project, folder)  # killed before its first checkpoint: begin again
        _tell_what_is_left_out(run)
        run.journal.rewind(0)
        return run
    header = verify_digest(last)  # before a flipped bit in it is taken for another setting
    with weights_follow() if _is_whole(header) else nullcontext():
        run = open_run(project, folder)
    _require_same(run, header)
    run.meta |= {key: header.meta[key] for key in ("parent", "base") if key in header.meta}
    load_checkpoint(last, run.learner, run.train_loader.batch_sampler)
    _tell_what_is_left_out(run)
    run.journal.rewind(run.state.step)
    return run


def _is_whole(header: Header) -> bool:
    """Whether a checkpoint has every tensor, so that nothing else need be read."""
    return "base" not in header.meta


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

"""What a training begins with: its data and its device, and whether all of it fits together."""

from __future__ import annotations

import logging
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teamvla import seeds
from teamvla.config import Project
from teamvla.contract import Contract
from teamvla.data import IndexConfig, build_index
from teamvla.data.dataloader import DatasetConfig, MultiTaskDataset, make_dataloader
from teamvla.data.index import index_folder
from teamvla.errors import ConfigError
from teamvla.models.base import PolicyConfig
from teamvla.models.device import resolve_device
from teamvla.models.encoders.words import instruction_words
from teamvla.models.heads.base import HeadConfig
from teamvla.models.losses import LossConfig, require_geometry
from teamvla.train.ranking import require_simulated, warn_of_unseen_task
from teamvla.train.trainer import TrainerConfig

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


@dataclass(frozen=True)
class Material:
    """What a training begins with, before there is a policy.

    Attributes:
        statistics: of the training split, with the words of its instructions.
    """

    config: TrainerConfig
    device: torch.device
    train_loader: Any
    val_loader: Any | None
    statistics: dict[str, Any]

    @property
    def contract(self) -> Contract:
        """Of the data."""
        contract: Contract = self.train_loader.dataset.contract
        return contract


def gather(project: Project, *, scratch: Path | None = None) -> Material:
    """Open the data and the device of a training, and check that all fits together.

    Args:
        scratch: a new folder, to build there what the data's index lacks instead of beside
            the data. It must be there for as long as the data are read.

    Raises as :func:`open_run` does.
    """
    config = project.section("trainer", TrainerConfig)
    project.resolved()  # raises where any section is wrong
    device = resolve_device(project.session.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    set_seed(project.session.seed)
    dataset = _dataset_config(project)
    if scratch is not None:
        dataset = _with_index_in(scratch, dataset)
    if "index" in project.source.data:
        build_index(dataset.roots, dataset.index, project.section("index", IndexConfig))
    _require_fitting(project, dataset)
    train_loader, val_loader = build_data(dataset)
    data = train_loader.dataset
    statistics = {**data.statistics, "words": instruction_words(data.instructions)}
    return Material(config, device, train_loader, val_loader, statistics)


def _with_index_in(scratch: Path, config: DatasetConfig) -> DatasetConfig:
    """The settings with an index of links to the one that stands: updates replace only these."""
    standing = index_folder([Path(root) for root in config.roots], config.index).resolve()
    if standing.is_dir():
        lock = shutil.ignore_patterns("lock")
        shutil.copytree(standing, scratch, ignore=lock, copy_function=os.symlink)
    return config.model_copy(update={"index": str(scratch)})


def _dataset_config(project: Project) -> DatasetConfig:
    config = project.section("dataset", DatasetConfig)
    if config.n_obs_steps != 1:
        raise ConfigError(
            "dataset.n_obs_steps", "1, as the policies take one observation",
            str(config.n_obs_steps), "Take it out of the configuration.",
        )  # fmt: skip
    model = project.section("model", PolicyConfig)
    if config.chunk_size != model.chunk_size:
        raise ConfigError(
            "dataset.chunk_size", f"model.chunk_size = {model.chunk_size}",
            str(config.chunk_size), "Set both to the same.",
        )  # fmt: skip
    reason = model.learns_from_sequences
    if reason and config.sequence_length is None:
        raise ConfigError(
            "dataset.sequence_length", f"a number of steps, as {reason}", "null",
            "Set it to the steps of an episode, and dataset.batch_size to a few sequences.",
        )  # fmt: skip
    if missing := {*model.NEEDED_FIELDS} - {*config.fields}:
        raise ConfigError(
            "dataset.fields", f"{', '.join(sorted(missing))} too, for model {model.type!r}",
            ", ".join(config.fields),
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
    head: HeadConfig | None = project.section("model", PolicyConfig).head
    if head is None or not head.takes_any_chunk:
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

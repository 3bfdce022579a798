"""What training reads: whole batches gathered at once from the packed cache.

One gather per array and batch, no work per sample: about three quarters of the speed of
copying the same rows from RAM, and nine times that of reading samples one by one and
stacking them (benchmarks/reading.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import AliasChoices, Field, ValidationError, field_validator

from teamvla.config import Settings
from teamvla.config.explain import explain
from teamvla.config.source import Source
from teamvla.contract import Contract
from teamvla.data.index import Index, build_index
from teamvla.data.samplers import EpochBatchSampler
from teamvla.data.transforms import Batch, Transform, TransformConfig
from teamvla.errors import ConfigError, InputError
from teamvla.registry import did_you_mean

if TYPE_CHECKING:
    from teamvla.data.torch_loader import BatchLoader


class DatasetConfig(Settings):
    """Which samples are read, and how they become batches."""

    roots: tuple[str, ...] = Field(
        default=("data",), min_length=1, description="Folders of episodes."
    )
    index: str | None = Field(
        default=None, description="Folder of the index; by default .index in the first root."
    )
    tasks: tuple[str, ...] | None = Field(default=None, description="Only these; null: all.")
    split: Literal["train", "val", "test", "all"] = Field(
        default="train", description="Which episodes."
    )
    limit_per_task: int | None = Field(
        default=None, ge=1, description="At most so many episodes of each task, in order of name."
    )
    chunk_size: int = Field(
        default=16,
        ge=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="Actions in a sample, from its step on.",
    )
    batch_size: int = Field(default=64, ge=1, description="Samples in a batch.")
    shuffle: bool = Field(default=True, description="Another order in every epoch.")
    drop_last: bool = Field(default=False, description="Leave out a last batch that is not full.")
    seed: int = Field(default=0, ge=0, description="Of the order and the transforms.")
    transforms: tuple[TransformConfig, ...] = Field(
        default=(), description="Done to every batch, in order."
    )
    num_workers: int = Field(
        default=0, ge=0, description="Reading processes; 0 is fastest unless transforms are slow."
    )

    @field_validator("roots", "tasks", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @field_validator("roots", "index")
    @classmethod
    def _can_be_written_down(cls, value: Any) -> Any:
        # A run notes where its data are, in files that are UTF-8.
        for path in [value] if isinstance(value, str) else value or ():
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{path!r} is not UTF-8; rename the folder") from None
        return value

    @classmethod
    def parse(cls, data: DatasetConfig | dict[str, Any]) -> DatasetConfig:
        """Settings from plain data; ConfigError with a line per problem."""
        if isinstance(data, DatasetConfig):
            return data
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = explain(error, cls, Source({}), ("dataset",))
            raise ConfigError("\n".join(lines)) from None


class MultiTaskDataset:
    """The samples of one split: a sample per step, with the actions from there on.

    The index is opened, and built or brought up to date first where needed. Samples are
    ordered by root, path and step.

    Attributes:
        index: what it reads from; :attr:`statistics` and :attr:`digest` are the index's and
            cover all of its train split, whatever is chosen here.

    Args:
        config: settings, or the plain data of a ``dataset`` section.
        transforms: callables from batch to batch, called after those of the settings.

    Raises:
        ConfigError: bad settings.
        InputError: a root is missing or empty, or a task is unknown.
    """

    def __init__(
        self, config: DatasetConfig | dict[str, Any], transforms: Sequence[Transform] = ()
    ) -> None:
        self.config = config = DatasetConfig.parse(config)
        self.index = _open_index(config)
        self.transforms: tuple[Transform, ...] = (
            *(settings.build(config.seed) for settings in config.transforms),
            *transforms,
        )
        self._given = tuple(transforms)
        table, rows = self.index.episodes, _choose_episodes(self.index, config)
        self.episodes = rows
        self._first_row = table["first_row"][rows]
        self._first_action = table["first_action"][rows]
        self._num_steps = table["num_steps"][rows]
        self._ends = np.cumsum(self._num_steps)
        self._texts = np.array(self.index.cache.instructions, object)
        self._windows = sliding_window_view(
            self.index.cache.actions, config.chunk_size, axis=0
        ).transpose(0, 2, 1)

    @property
    def contract(self) -> Contract:
        """What the numbers mean; ContractError if the episodes do not say."""
        return self.index.contract

    @property
    def statistics(self) -> dict[str, Any]:
        return self.index.statistics

    @property
    def digest(self) -> str:
        return self.index.digest

    def __len__(self) -> int:
        return int(self._num_steps.sum())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: a batch without its first axis."""
        batch: dict[str, Any] = _first(self.__getitems__([index]))
        return batch

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """A batch of samples.

        Args:
            rows: sample numbers [B]; the sampler's carry their epoch, others are of epoch 0.

        Returns:
            observations: image uint8 [B,V,C,H,W] (a view of [B,V,H,W,C]: channels last), state
                float32 [B,S]. actions float32 [B,K,A], the last one repeated past the
                episode's end, where action_is_pad bool [B,K] is true. language: B texts.
                index, epoch: int64 [B].

        Raises:
            IndexError: a number is out of range.
        """
        index = np.asarray(rows, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"sample out of range: the dataset has {len(self)}")
        episode = np.searchsorted(self._ends, index, side="right")
        left = self._ends[episode] - index
        step = self._num_steps[episode] - left
        row = self._first_row[episode] + step
        cache = self.index.cache
        batch: Batch = {
            "observations": {
                "image": _take(cache.images, row).transpose(0, 1, 4, 2, 3),
                "state": _take(cache.state, row),
            },
            "actions": self._windows[self._first_action[episode] + step],
            "action_is_pad": np.arange(self.config.chunk_size) >= left[:, None],
            "language": self._texts[cache.language[row]].tolist(),
            "index": index,
            "epoch": np.full(len(index), getattr(rows, "epoch", 0)),
        }
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the arrays themselves instead of receiving copies.
        return (MultiTaskDataset, (self.config, self._given))

    def __repr__(self) -> str:
        height, width, channels = self.index.layout.picture
        picture = [len(self.index.layout.cameras), channels, height, width]
        size = self.index.layout.action_dim
        names = np.unique(self.index.episodes["task"][self.episodes])
        return (
            f"MultiTaskDataset({self.config.split}: {len(self.episodes)} episodes, {len(self)} "
            f"steps, tasks {', '.join(name.decode() for name in names)}; image uint8{picture}, "
            f"state float32[{size}], actions float32[{self.config.chunk_size}, {size}])"
        )


def make_dataloader(
    config: DatasetConfig | dict[str, Any], transforms: Sequence[Transform] = ()
) -> BatchLoader:
    """A torch DataLoader of batches of tensors; ``len`` is its batches in an epoch.

    ``loader.batch_sampler`` has ``state_dict``, ``load_state_dict`` and ``set_epoch``: loading
    a saved position goes on with exactly the batch that would have come next.

    Args:
        config: settings, or the plain data of a ``dataset`` section.
        transforms: as for :class:`MultiTaskDataset`.

    Raises:
        ImportError: torch is not installed.
        InputError: as for :class:`MultiTaskDataset`, or the split is empty.
        ConfigError: bad settings, or more samples in a batch than there are with drop_last.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError("make_dataloader needs torch; install it with: pip install torch")
    from teamvla.data.torch_loader import BatchLoader

    dataset = MultiTaskDataset(config, transforms)
    settings = dataset.config
    if not len(dataset):
        raise InputError(
            f"split {settings.split!r} of {', '.join(settings.roots)}",
            "at least one episode",
            "none",
            "Record more, or index with a larger val_fraction or test_fraction.",
        )
    sampler = EpochBatchSampler(
        len(dataset),
        settings.batch_size,
        seed=settings.seed,
        shuffle=settings.shuffle,
        drop_last=settings.drop_last,
    )
    return BatchLoader(dataset, sampler, settings.num_workers)


def _open_index(config: DatasetConfig) -> Index:
    index = build_index(config.roots, config.index)
    if config.chunk_size > index.config.max_chunk:
        longer = index.config.model_copy(update={"max_chunk": config.chunk_size})
        index = build_index(config.roots, config.index, longer)
    return index


def _choose_episodes(index: Index, config: DatasetConfig) -> np.ndarray:
    """Rows of the table: those of the split and the tasks, up to the limit."""
    known = index.episodes.tasks()
    for task in config.tasks or ():
        if task not in known:
            raise InputError(
                f"dataset.tasks: {task!r}", "a task of the data", "none", did_you_mean(task, known)
            )
    rows = index.episodes.rows(None if config.split == "all" else config.split)
    names = index.episodes["task"][rows]
    wanted = dict.fromkeys(config.tasks or known)
    of_each = [rows[names == task.encode()][: config.limit_per_task] for task in wanted]
    return np.sort(np.concatenate(of_each))


def _take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    # Without `mode`, take with `out` copies into a buffer first; rows are in range already.
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    return np.take(array, rows, axis=0, out=out, mode="clip")


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first(item) for key, item in value.items()}
    return value[0]

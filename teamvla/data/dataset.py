"""What training reads: whole batches gathered at once from the packed cache.

One gather per array and batch, no work per sample: about two thirds of the speed of taking
the same rows from RAM, and a hundred times that of seeking in videos (benchmarks/loader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import AliasChoices, Field, ValidationError, field_validator

from teamvla.config import Settings
from teamvla.config.explain import explain
from teamvla.config.source import Source
from teamvla.contract import Contract
from teamvla.data.index import Index, build_index
from teamvla.data.transforms import Batch, Transform, TransformConfig
from teamvla.data.views import DiskReads, FieldView
from teamvla.errors import ConfigError, InputError
from teamvla.registry import did_you_mean

FieldName = Literal["image", "state", "actions", "language"]
FIELDS: tuple[FieldName, ...] = get_args(FieldName)
_OBSERVATIONS = ("image", "state")
#: samples that are looked through at once
_BLOCK = 1 << 20


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
    n_obs_steps: int = Field(
        default=1, ge=1, description="Observations in a sample, up to its step; 1: no T axis."
    )
    fields: tuple[FieldName, ...] = Field(
        default=FIELDS, min_length=1, description="What is read; the other fields cost nothing."
    )
    weights: dict[str, float] | None = Field(
        default=None,
        description="Share of each task in a shuffled epoch, as ratios; null: all samples once.",
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

    @field_validator("fields")
    @classmethod
    def _each_field_once(cls, value: tuple[FieldName, ...]) -> tuple[FieldName, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a field stands there twice")
        return value

    @field_validator("weights")
    @classmethod
    def _weights_make_shares(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None:
            for task, weight in value.items():
                if weight < 0:
                    raise ValueError(f"the weight of {task!r} must be at least 0, got {weight:g}")
            if not any(value.values()):
                raise ValueError("at least one task must have a weight above 0")
        return value

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


@dataclass(frozen=True)
class Places:
    """Where samples stand, int64 [B] each."""

    index: np.ndarray
    step: np.ndarray  # of the episode
    left: np.ndarray  # steps from there to the episode's end
    first_row: np.ndarray  # of the episode, among all steps
    first_action: np.ndarray  # of the episode, among the padded actions


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
        ContractError: a transform needs to know more of the robot than the episodes say.
    """

    def __init__(
        self, config: DatasetConfig | dict[str, Any], transforms: Sequence[Transform] = ()
    ) -> None:
        self.config = config = DatasetConfig.parse(config)
        self.index = _open_index(config)
        self._given = tuple(transforms)
        self.transforms: tuple[Transform, ...] = (*self._configured(), *transforms)
        table, rows = self.index.episodes, _choose_episodes(self.index, config)
        self.episodes = rows
        self._num_steps = table["num_steps"][rows]
        self._ends = np.cumsum(self._num_steps)
        # Side by side, so that a batch finds all it needs of its episodes with one gather.
        places = (
            self._ends,
            self._num_steps,
            table["first_row"][rows],
            table["first_action"][rows],
        )
        self._table = np.stack(places, axis=1, dtype=np.int64)
        self._texts = np.array(self.index.cache.instructions, object)
        self._disk = DiskReads()

    def _configured(self) -> Iterator[Transform]:
        if self.config.transforms:
            contract = self.index.contract if self.index.summary["contract"] else None
            for settings in self.config.transforms:
                yield settings.build(self.config.seed, contract)

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

    @property
    def instructions(self) -> list[str]:
        """The distinct instructions of its samples, sorted."""
        found: set[str] = set()
        for start in range(0, len(self), _BLOCK):
            places = self._places(np.arange(start, min(start + _BLOCK, len(self))))
            numbers = self.index.cache.take("language", places.first_row + places.step)
            found.update(self._texts[np.unique(numbers)])
        return sorted(found)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: a batch without its first axis."""
        batch: dict[str, Any] = _first(self.__getitems__([index]))
        return batch

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """A batch of samples.

        Args:
            rows: sample numbers [B]; the sampler's carry their epoch, others are of epoch 0,
                and what comes next: while rows come from the disk, it is asked for those too.

        Returns:
            observations: image uint8 [B,(T),V,C,H,W] (a view of [B,(T),V,H,W,C]: channels
                last), state float32 [B,(T),S], oldest first; before an episode's start
                there is its first observation again, where observation_is_pad bool [B,T] is
                true. Without history (n_obs_steps 1) there is no T, nor that mask.
            actions: float32 [B,K,A], the last one repeated past the episode's end, where
                action_is_pad bool [B,K] is true.
            language: B texts.
            index, epoch: int64 [B].
            Only those of ``config.fields`` are there, with their masks.

        Raises:
            IndexError: a number is out of range.
        """
        places = self._places(rows)
        if "image" in self.config.fields and self._disk.noticed():
            # All at once, this batch's too: page faults would read one row after another.
            for asked in (places, self._places(getattr(rows, "following", ()))):
                self.index.cache.prefetch(self._history(asked))
        batch: Batch = {"observations": {}}
        for name in self.config.fields:
            value = self._read(name, places)
            (batch["observations"] if name in _OBSERVATIONS else batch)[name] = value
        if "actions" in batch:
            batch["action_is_pad"] = np.arange(self.config.chunk_size) >= places.left[:, None]
        if batch["observations"] and self.config.n_obs_steps > 1:
            batch["observation_is_pad"] = places.step[:, None] < self._steps_back()
        batch["index"] = places.index
        batch["epoch"] = np.full(len(places.index), getattr(rows, "epoch", 0))
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def field(self, name: str) -> FieldView:
        """One field of all samples as a lazy array, for looks at the data: see :class:`FieldView`.

        Args:
            name: ``image``, ``state``, ``actions`` or ``language``; shapes as in a batch.

        Raises:
            InputError: there is no such field.
        """
        if name not in FIELDS:
            raise InputError(f"field {name!r}", "a field", "none", did_you_mean(name, [*FIELDS]))
        return FieldView(name, len(self), lambda rows: self._read(name, self._places(rows)))

    def tasks(self) -> dict[str, np.ndarray]:
        """The sample numbers of each task, int64, by its name in order of names."""
        of_episode = self.index.episodes["task"][self.episodes]
        of_sample = np.repeat(of_episode, self._num_steps)
        names = np.unique(of_episode)
        return {name.decode(): np.flatnonzero(of_sample == name) for name in names}

    def where(self, index: int) -> tuple[Path, int]:
        """The file of the episode that a sample is from, and its step in it.

        Raises:
            IndexError: the number is out of range.
        """
        step = int(self._places([index]).step[0])
        row = int(self.episodes[self._ends.searchsorted(index, side="right")])
        table = self.index.episodes
        return Path(self.config.roots[int(table["root"][row])], table.text("path", row)), step

    def _places(self, rows: Sequence[int] | np.ndarray) -> Places:
        index = np.array(rows, np.int64)
        if index.size and index.view(np.uint64).max() >= len(self):  # those below 0 too
            raise IndexError(f"sample out of range: the dataset has {len(self)}")
        episode = self._ends.searchsorted(index, side="right")
        end, steps, first_row, first_action = self._table.take(episode, axis=0).T
        left = end - index
        return Places(index, steps - left, left, first_row, first_action)

    def _steps_back(self) -> np.ndarray:
        return np.arange(self.config.n_obs_steps - 1, -1, -1)

    def _history(self, places: Places) -> np.ndarray:
        """Rows of the observations, int64 [B,T], or [B] without history."""
        if self.config.n_obs_steps == 1:
            return np.asarray(places.first_row + places.step)
        steps = np.maximum(places.step[:, None] - self._steps_back(), 0)
        return np.asarray(places.first_row[:, None] + steps)

    def _read(self, name: str, places: Places) -> Any:
        cache = self.index.cache
        if name == "actions":
            return cache.chunks(places.first_action + places.step, self.config.chunk_size)
        if name == "language":
            return self._texts[cache.take(name, places.first_row + places.step)].tolist()
        if name == "state":
            return cache.take(name, self._history(places))
        pictures = cache.take("images", self._history(places))
        return pictures.transpose(*range(pictures.ndim - 3), -1, -3, -2)

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the arrays themselves instead of receiving copies.
        return (MultiTaskDataset, (self.config, self._given))

    def __repr__(self) -> str:
        height, width, channels = self.index.layout.picture
        picture = [len(self.index.layout.cameras), channels, height, width]
        size = self.index.layout.action_dim
        history = [self.config.n_obs_steps] if self.config.n_obs_steps > 1 else []
        names = np.unique(self.index.episodes["task"][self.episodes])
        return (
            f"MultiTaskDataset({self.config.split}: {len(self.episodes)} episodes, {len(self)} "
            f"steps, tasks {', '.join(name.decode() for name in names)}; "
            f"image uint8{history + picture}, state float32{[*history, size]}, "
            f"actions float32[{self.config.chunk_size}, {size}])"
        )


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


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _first(item) for key, item in value.items()}
    return value[0]

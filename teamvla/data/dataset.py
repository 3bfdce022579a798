"""What training reads: whole batches gathered at once from the packed cache.

One gather per array and batch, no work per sample: about two thirds of the speed of taking
the same rows from RAM, and a hundred times that of seeking in videos (benchmarks/loader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from teamvla.contract import Contract, Signal
from teamvla.data.dataset_config import FIELDS, DatasetConfig, FieldName
from teamvla.data.index import Index, build_index
from teamvla.data.layout import Layout
from teamvla.data.samples import Places, Samples
from teamvla.data.transforms import Batch, Transform
from teamvla.data.views import DiskReads, FieldView
from teamvla.errors import InputError
from teamvla.registry import did_you_mean

__all__ = ["FIELDS", "DatasetConfig", "FieldName", "MultiTaskDataset"]
_OBSERVATIONS = ("image", "state")
#: samples that are looked through at once
_BLOCK = 1 << 20


class MultiTaskDataset:
    """The samples of one split: a sample per step, with the actions from there on.

    With ``sequence_length`` a sample is so many steps in a row, and the next one begins
    behind it. The index is opened, and built or brought up to date first where needed.
    Samples are ordered by root, path and step.

    Attributes:
        index: what it reads from; :attr:`statistics` and :attr:`digest` are the index's and
            cover all of its train split, whatever is chosen here.

    Args:
        config: settings, or the plain data of a ``dataset`` section.
        transforms: callables from batch to batch, called after those of the settings.

    Raises:
        ConfigError: bad settings.
        InputError: a root is missing or empty, or a task, a signal or the reward is unknown.
        ContractError: a transform needs to know more of the robot than the episodes say.
    """

    def __init__(
        self, config: DatasetConfig | dict[str, Any], transforms: Sequence[Transform] = ()
    ) -> None:
        self.config = config = DatasetConfig.parse(config)
        self.index = _open_index(config)
        layout = self.index.layout
        self._fields = _chosen_fields(layout, config)
        self._sensors = _chosen_signals(layout.sensors, layout, config)
        self._targets = _chosen_signals(layout.targets, layout, config)
        # Rows of which some are worth asking the disk for before they are read.
        self._is_large = "image" in self._fields or any(s.varies for s in self._sensors)
        self._given = tuple(transforms)
        self.transforms: tuple[Transform, ...] = (*self._configured(), *transforms)
        self.episodes = rows = _choose_episodes(self.index, config)
        history, length = config.n_obs_steps, config.sequence_length
        self._samples = Samples(self.index.episodes, rows, history, length)
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
            places = self._samples.places(np.arange(start, min(start + _BLOCK, len(self))))
            numbers = self.index.cache.take("language", places.first_row + places.step)
            found.update(self._texts[np.unique(numbers)])
        return sorted(found)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def size(self) -> str:
        """How many samples there are, and of what: ``1200 steps``, ``15 sequences of 80 steps``."""
        length = self.config.sequence_length
        if length is None:
            return f"{len(self)} steps"
        return f"{len(self)} sequences of {length} steps"

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
                last), state float32 [B,(T),S], and each sensor of the contract by its field,
                [B,(T),...]. Where its length varies it is [B,(T),P,...], padded with zeros to
                the longest of the batch, and FIELD_mask bool [B,(T),P] tells the rows that
                are there; those stand first. Oldest first; before an episode's start and
                behind its end there is its nearest observation again, where
                observation_is_pad bool [B,T] is true. Without history (n_obs_steps 1) and
                sequences there is no T, nor that mask.
            targets: what the contract has of these, in the same way; without T in a history.
            actions: float32 [B,K,A], the last one repeated past the episode's end, where
                action_is_pad bool [B,K] is true. In sequences [B,S,K,A] and [B,S,K].
            reward: float32 [B], in sequences [B,S]; if asked for.
            language: B texts.
            index, epoch: int64 [B].
            Only those of ``config.fields`` and ``config.signals`` are there.

        Raises:
            IndexError: a number is out of range.
        """
        places = self._samples.places(rows)
        if self._is_large and self._disk.noticed():
            # All at once, this batch's too: page faults would read one row after another.
            for asked in (places, self._samples.places(getattr(rows, "following", ()))):
                self._prefetch(self._samples.observed(asked))
        batch: Batch = {"observations": {}}
        for name in self._fields:
            value = self._read(name, places)
            (batch["observations"] if name in _OBSERVATIONS else batch)[name] = value
        for signal in self._sensors:
            batch["observations"] |= self._signal(signal, self._samples.observed(places))
        if self._targets:
            batch["targets"] = {}
        for signal in self._targets:
            batch["targets"] |= self._signal(signal, self._samples.own(places))
        if "actions" in batch:
            chunk = self.config.chunk_size
            batch["action_is_pad"] = self._samples.commanded_is_pad(places, chunk)
        is_pad = self._samples.observed_is_pad(places)
        if batch["observations"] and is_pad is not None:
            batch["observation_is_pad"] = is_pad
        batch["index"] = places.index
        batch["epoch"] = np.full(len(places.index), getattr(rows, "epoch", 0))
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def field(self, name: str) -> FieldView:
        """One field of all samples as a lazy array, for looks at the data: see :class:`FieldView`.

        Args:
            name: ``image``, ``state``, ``actions``, ``language``, ``reward``, or a sensor or
                target of the contract; shapes as in a batch.

        Raises:
            InputError: there is no such field.
        """
        layout = self.index.layout
        known = [*_fields_of(layout), *(s.field for s in (*layout.sensors, *layout.targets))]
        if name not in known:
            raise InputError(f"field {name!r}", "a field", "none", did_you_mean(name, known))
        return FieldView(name, len(self), lambda rows: self._read(name, self._samples.places(rows)))

    def tasks(self) -> dict[str, np.ndarray]:
        """The sample numbers of each task, int64, by its name in order of names."""
        of_episode = self.index.episodes["task"][self.episodes]
        of_sample = np.repeat(of_episode, self._samples.counts)
        names = np.unique(of_episode)
        return {name.decode(): np.flatnonzero(of_sample == name) for name in names}

    def where(self, index: int) -> tuple[Path, int]:
        """The file of the episode that a sample is from, and its (first) step in it.

        Raises:
            IndexError: the number is out of range.
        """
        step = int(self._samples.places([index]).step[0])
        row = int(self.episodes[self._samples.episode(index)])
        table = self.index.episodes
        return Path(self.config.roots[int(table["root"][row])], table.text("path", row)), step

    def _prefetch(self, rows: np.ndarray) -> None:
        """Of what is large: pictures and clouds."""
        cache = self.index.cache
        if "image" in self._fields:
            cache.prefetch(rows)
        for signal in self._sensors:
            if signal.varies:
                cache.prefetch_signal(signal.field, rows)

    def _read(self, name: str, places: Places) -> Any:
        cache, samples = self.index.cache, self._samples
        if name == "actions":
            return cache.chunks(samples.commanded(places), self.config.chunk_size)
        if name == "language":
            return self._texts[cache.take(name, places.first_row + places.step)].tolist()
        if name == "state":
            return cache.take(name, samples.observed(places))
        if name != "image":
            is_sensor = any(signal.field == name for signal in self.index.layout.sensors)
            return cache.signal(name, (samples.observed if is_sensor else samples.own)(places))[0]
        pictures = cache.take("images", samples.observed(places))
        return pictures.transpose(*range(pictures.ndim - 3), -1, -3, -2)

    def _signal(self, signal: Signal, rows: np.ndarray) -> dict[str, np.ndarray]:
        """A signal by its field, with its mask where its length varies."""
        values, mask = self.index.cache.signal(signal.field, rows)
        return {signal.field: values} | ({} if mask is None else {f"{signal.field}_mask": mask})

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the arrays themselves instead of receiving copies.
        return (MultiTaskDataset, (self.config, self._given))

    def __repr__(self) -> str:
        names = np.unique(self.index.episodes["task"][self.episodes])
        return (
            f"MultiTaskDataset({self.config.split}: {len(self.episodes)} episodes, {self.size}, "
            f"tasks {', '.join(name.decode() for name in names)}; {', '.join(self._shapes())})"
        )

    def _shapes(self) -> Iterator[str]:
        layout, config = self.index.layout, self.config
        run = [] if config.sequence_length is None else [config.sequence_length]
        time = [config.n_obs_steps] if config.n_obs_steps > 1 else run
        height, width, channels = layout.picture
        if layout.cameras:
            yield f"image uint8{[*time, len(layout.cameras), channels, height, width]}"
        if layout.state_dim:
            yield f"state float32{[*time, layout.state_dim]}"
        for signal in self._sensors:
            yield _shown(signal, time)
        for signal in self._targets:
            yield f"target {_shown(signal, run)}"
        yield f"actions float32{[*run, config.chunk_size, layout.action_dim]}"


def _shown(signal: Signal, time: list[int]) -> str:
    sizes = [*time, *("P" if size == -1 else size for size in signal.shape)]
    text = ", ".join(map(str, sizes))
    return f"{signal.field} {signal.dtype}" + (f"[{text}]" if sizes else "")


def _open_index(config: DatasetConfig) -> Index:
    index = build_index(config.roots, config.index)
    if config.chunk_size > index.config.max_chunk:
        longer = index.config.model_copy(update={"max_chunk": config.chunk_size})
        index = build_index(config.roots, config.index, longer)
    return index


def _fields_of(layout: Layout) -> list[FieldName]:
    """What there is of the fields that a setting can name: not every robot has cameras."""
    absent = {"image": not layout.cameras, "state": not layout.state_dim}
    absent["reward"] = not layout.reward
    return [name for name in get_args(FieldName) if not absent.get(name)]


def _chosen_fields(layout: Layout, config: DatasetConfig) -> tuple[FieldName, ...]:
    known = _fields_of(layout)
    if "reward" in config.fields and not layout.reward:
        mend = "Take it out of dataset.fields, or record the episodes with it."
        raise InputError("dataset.fields: 'reward'", "episodes that record it", "none", mend)
    return tuple(name for name in config.fields if name in known)


def _chosen_signals(
    signals: Sequence[Signal], layout: Layout, config: DatasetConfig
) -> tuple[Signal, ...]:
    if config.signals is None:
        return tuple(signals)
    joined = [signal.field for signal in (*layout.state_signals, *layout.action_signals)]
    known = [signal.field for signal in (*layout.sensors, *layout.targets)]
    for name in config.signals:
        if name not in known:
            part = "a part of the state or the actions, which are read as they are"
            raise InputError(
                f"dataset.signals: {name!r}", "a sensor or target of the data",
                part if name in joined else "none", did_you_mean(name, known),
            )  # fmt: skip
    return tuple(signal for signal in signals if signal.field in config.signals)


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

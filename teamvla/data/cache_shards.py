"""A shard of the cache: episodes that were put in together, and are never changed afterwards.

    images.npy    uint8   [rows, V, H, W, C]   raw: the cameras of a step side by side
                  uint8   [bytes]              jpeg: the pictures one behind the other
    offsets.npy   int64   [rows * V + 1]       jpeg: where each picture begins
    state.npy     float32 [rows, S]
    language.npy  int32   [rows]               number of the instruction in this shard
    actions.npy   float32 [rows + episodes * (max_chunk - 1), A]
    signal-*.npy                               sensors, targets, reward: see cache_signals
    episodes.npy  table   [episodes]           digest, num_steps, sums of pixels, checksums
    instructions.npy uint8 [bytes]             JSON, a list of texts
    shard.json    the checksums of episodes.npy and instructions.npy

Behind each episode ``actions`` repeats the last action ``max_chunk - 1`` times, so that
``actions[first_action + t :][:chunk]`` never reaches into the next episode.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from isal import isal_zlib

from teamvla.data.cache_codecs import Pictures
from teamvla.data.cache_files import ArrayFile, MappedArray
from teamvla.data.cache_signals import SignalArray, SignalShape, SignalWriter, Values, signal_crc
from teamvla.files import canonical_json, naming, read_json, sha256_file, sync_directory, write_json

ARRAYS = ("images", "state", "language", "actions")
_NAME = re.compile(r"shard-\d{4,}")
_U1, _F4, _I4, _I8 = (np.dtype(name) for name in ("u1", "<f4", "<i4", "<i8"))


@dataclass(frozen=True)
class RowShape:
    """What one row of every shard of an index looks like."""

    cameras: int
    picture: tuple[int, ...]  # height, width, channels
    state: int
    actions: int
    max_chunk: int
    codec: str
    signals: tuple[SignalShape, ...] = ()


@dataclass(frozen=True)
class ShardInfo:
    """What must be known of a shard to map it."""

    name: str
    rows: int
    episodes: int
    image_bytes: int
    text_bytes: int
    checksum: str  # sha256 of shard.json
    signal_rows: dict[str, int] = field(default_factory=dict)  # of signals whose length varies

    def actions(self, max_chunk: int) -> int:
        """Rows of the padded actions."""
        return self.rows + self.episodes * (max_chunk - 1)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> ShardInfo:
        """What :meth:`to_dict` gave; ValueError or TypeError for anything else."""
        name = str(data["name"])
        if not _NAME.fullmatch(name):
            raise ValueError(f"a shard called {name!r}")
        counts = {k: int(data[k]) for k in ("rows", "episodes", "image_bytes", "text_bytes")}
        signals = {str(k): int(v) for k, v in data["signal_rows"].items()}
        if min(counts["rows"], counts["episodes"], counts["text_bytes"]) < 1:
            raise ValueError(f"{name}: an empty shard")
        if min(counts["image_bytes"], *signals.values(), 0) < 0:
            raise ValueError(f"{name}: fewer rows than none")
        return cls(name, **counts, checksum=str(data["checksum"]), signal_rows=signals)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Stored:
    """One episode of T steps in the form that a shard takes."""

    digest: str
    pictures: Pictures
    pictures_crc: int
    state: np.ndarray  # float32 [T,S]
    actions: np.ndarray  # float32 [T,A], without padding
    instructions: list[str]  # T of them
    pixels: np.ndarray  # float64 [V,3,C]: number, sum and sum of squares of some pixels
    signals: tuple[Values, ...] = ()  # in the order of RowShape.signals


def table_dtype(shape: RowShape) -> np.dtype:
    """A row of ``episodes.npy``."""
    sums = (shape.cameras, 3, shape.picture[-1])
    checks: list[Any] = [(name, "<u4") for name in ARRAYS]
    if shape.signals:  # all in one, as the header of a file has little room for names
        checks.append(("signals", "<u4", (len(shape.signals),)))
    return np.dtype([("digest", "S64"), ("num_steps", "<i8"), ("pixels", "<f8", sums), *checks])


def pictures_crc(pictures: Pictures) -> int:
    """CRC-32 of an episode's pictures as they are stored."""
    start = 0 if pictures.lengths is None else isal_zlib.crc32(pictures.lengths.data)
    return isal_zlib.crc32(pictures.rows.data, start)


class ShardWriter:
    """Writes one shard; nobody looks at it before an index names it."""

    def __init__(self, folder: Path, shape: RowShape) -> None:
        self.folder, self.shape = folder, shape
        self.rows = self.actions = self.image_bytes = self._text_bytes = 0
        self._signal_bytes = 0
        self._numbers: dict[str, int] = {}
        self._table: list[tuple[Any, ...]] = []
        folder.mkdir(parents=True)
        with ExitStack() as self._open:
            self._make_arrays(shape)
            self._open = self._open.pop_all()

    def _make_arrays(self, shape: RowShape) -> None:
        raw = shape.codec == "raw"
        images = (shape.cameras, *shape.picture) if raw else ()
        self._images = self._array("images", _U1, images)
        self._offsets = None if raw else self._array("offsets", _I8, ())
        self._state = self._array("state", _F4, (shape.state,))
        self._language = self._array("language", _I4, ())
        self._actions = self._array("actions", _F4, (shape.actions,))
        self._signals = [SignalWriter(self.folder, one, self._open) for one in shape.signals]
        if self._offsets is not None:
            self._offsets.append(np.zeros(1, _I8))

    def _array(self, name: str, dtype: np.dtype, row: tuple[int, ...]) -> ArrayFile:
        return self._open.enter_context(ArrayFile(self.folder / f"{name}.npy", dtype, row))

    def append(self, stored: Stored) -> tuple[int, int]:
        """Add an episode; its first row among the steps and among the actions."""
        first = self.rows, self.actions
        numbers = [self._numbers.setdefault(t, len(self._numbers)) for t in stored.instructions]
        language = np.array(numbers, _I4)
        padding = self.shape.max_chunk - 1
        actions = np.pad(stored.actions, ((0, padding), (0, 0)), mode="edge")
        if self._offsets is not None:
            assert stored.pictures.lengths is not None
            self._offsets.append(self.image_bytes + np.cumsum(stored.pictures.lengths))
        self._images.append(stored.pictures.rows)
        self._state.append(stored.state)
        self._language.append(language)
        self._actions.append(actions)
        for writer, values in zip(self._signals, stored.signals, strict=True):
            self._signal_bytes += writer.append(values)
        small = (_crc(stored.state), _crc(language), _crc(actions))
        checks = (stored.pictures_crc, *small, *_signal_checks(stored.signals))
        self._table.append((stored.digest, len(language), stored.pixels, *checks))
        self.rows += len(language)
        self.actions += len(actions)
        self.image_bytes += stored.pictures.rows.nbytes
        return first

    @property
    def large_bytes(self) -> int:
        """Bytes of the pictures and the signals."""
        return self.image_bytes + self._signal_bytes

    def info(self) -> ShardInfo:
        """What to tell the index, after the shard was closed."""
        checksum = sha256_file(self.folder / "shard.json")
        sizes = self.rows, len(self._table), self.image_bytes, self._text_bytes
        pairs = zip(self.shape.signals, self._signals, strict=True)
        varying = {shape.field: writer.rows for shape, writer in pairs if shape.varies}
        return ShardInfo(self.folder.name, *sizes, checksum, varying)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
        if kind is None:
            table = np.array(self._table, table_dtype(self.shape))
            texts = np.frombuffer(canonical_json(list(self._numbers)), np.uint8)
            self._text_bytes = len(texts)
            for name, array in (("episodes", table), ("instructions", texts)):
                with ArrayFile(self.folder / f"{name}.npy", array.dtype, ()) as file:
                    file.append(array)
            write_json(self.folder / "shard.json", _checksums(self.folder))
            with naming(self.folder):
                sync_directory(self.folder)


class Shard:
    """A shard, mapped read-only.

    Raises:
        ValueError: a file is missing or of another length than ``info`` says.
    """

    def __init__(self, folder: Path, info: ShardInfo, shape: RowShape) -> None:
        self.folder, self.info, self.shape = folder / info.name, info, shape
        rows = info.rows
        raw = shape.codec == "raw"
        images = (rows, shape.cameras, *shape.picture) if raw else (info.image_bytes,)
        self._images = self._map("images", _U1, images)
        self.images = self._images.array
        self.state = self._map("state", _F4, (rows, shape.state)).array
        self.language = self._map("language", _I4, (rows,)).array
        padded = info.actions(shape.max_chunk)
        self.actions = self._map("actions", _F4, (padded, shape.actions)).array
        self.table = self._map("episodes", table_dtype(shape), (info.episodes,)).array
        self._texts = self._map("instructions", _U1, (info.text_bytes,)).array
        self.offsets: np.ndarray | None = None
        if not raw:
            self.offsets = self._map("offsets", _I8, (rows * shape.cameras + 1,)).array
        self.signals = {
            one.field: SignalArray(self.folder, one, rows, info.signal_rows.get(one.field, 0))
            for one in shape.signals
        }

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> MappedArray:
        return MappedArray(self.folder / f"{name}.npy", dtype, shape)

    @cached_property
    def instructions(self) -> list[str]:
        texts: list[str] = json.loads(self._texts.tobytes())
        return texts

    @property
    def nbytes(self) -> int:
        arrays = [self.images, self.state, self.language, self.actions]
        if self.offsets is not None:
            arrays.append(self.offsets)
        return sum(a.nbytes for a in arrays) + sum(s.nbytes for s in self.signals.values())

    @cached_property
    def first_rows(self) -> np.ndarray:
        """First row of each episode, int64."""
        steps: np.ndarray = self.table["num_steps"]
        firsts: np.ndarray = np.cumsum(steps) - steps
        return firsts

    def is_whole(self) -> bool:
        """Whether what is small in the shard is as it was written."""
        if sha256_file(self.folder / "shard.json") != self.info.checksum:
            return False
        return bool(read_json(self.folder / "shard.json") == _checksums(self.folder))

    def picture_bytes(self, first: int, count: int) -> tuple[int, int]:
        """Where the pictures of rows stand in ``images.npy``: first byte and length."""
        if self.offsets is None:
            row = self.images.nbytes // max(len(self.images), 1)
            return first * row, count * row
        cameras = self.shape.cameras
        start, stop = self.offsets[[first * cameras, (first + count) * cameras]].tolist()
        return start, stop - start

    def will_need(self, row: int) -> None:
        """Let the pictures of a row be read from the disk."""
        self._images.will_need(*self.picture_bytes(row, 1))

    def damaged(self, episode: int) -> list[str]:
        """The arrays whose part of an episode is not what was written."""
        checks = self.table[episode]
        first, steps = int(self.first_rows[episode]), int(checks["num_steps"])
        padding = self.shape.max_chunk - 1
        action = first + episode * padding
        found = {
            "images": pictures_crc(self._pictures(first, steps)),
            "state": _crc(self.state[first : first + steps]),
            "language": _crc(self.language[first : first + steps]),
            "actions": _crc(self.actions[action : action + steps + padding]),
        }
        damaged = [name for name, crc in found.items() if crc != int(checks[name])]
        return damaged + self._damaged_signals(first, steps, episode)

    def _damaged_signals(self, first: int, steps: int, episode: int) -> list[str]:
        damaged = []
        for number, (name, signal) in enumerate(self.signals.items()):
            try:
                crc = signal_crc(signal.part(first, steps))
            except ValueError:
                crc = -1
            if crc != int(self.table[episode]["signals"][number]):
                damaged.append(name)
        return damaged

    def stored(self, episode: int) -> Stored:
        """An episode as it was put in; ValueError if a bit of it changed."""
        if names := self.damaged(episode):
            raise ValueError(f"{', '.join(names)} of {self.info.name} damaged")
        row = self.table[episode]
        first, steps = int(self.first_rows[episode]), int(row["num_steps"])
        action = first + episode * (self.shape.max_chunk - 1)
        return Stored(
            bytes(row["digest"]).decode(),
            self._pictures(first, steps),
            int(row["images"]),
            self.state[first : first + steps],
            self.actions[action : action + steps],
            [self.instructions[n] for n in self.language[first : first + steps].tolist()],
            row["pixels"],
            tuple(signal.part(first, steps) for signal in self.signals.values()),
        )

    def _pictures(self, first: int, steps: int) -> Pictures:
        if self.offsets is None:
            return Pictures(self.images[first : first + steps])
        cameras = self.shape.cameras
        offsets = self.offsets[first * cameras : (first + steps) * cameras + 1]
        return Pictures(self.images[offsets[0] : offsets[-1]], np.diff(offsets))


def _checksums(folder: Path) -> dict[str, str]:
    """Of the files that say what the others must be."""
    return {name: sha256_file(folder / f"{name}.npy") for name in ("episodes", "instructions")}


def _signal_checks(signals: tuple[Values, ...]) -> tuple[list[int], ...]:
    """What stands behind the other checksums of an episode: nothing where it has no signals."""
    return ([signal_crc(values) for values in signals],) if signals else ()


def _crc(array: np.ndarray) -> int:
    return isal_zlib.crc32(np.ascontiguousarray(array).data)

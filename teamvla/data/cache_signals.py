"""The signals in a shard of the cache: an array each, beside the pictures and vectors.

signal-NAME.npy          [rows, ...]  as many numbers in each step
                         [sum, ...]   or the rows of all steps, one behind another
signal-NAME-offsets.npy  int64 [rows + 1]  then: where each step's begin
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from teamvla.data.cache_files import ArrayFile, MappedArray
from teamvla.data.ragged import OFFSETS, Ragged

_I8 = np.dtype("<i8")
#: what an episode has of one signal: [T, ...], or steps of different lengths
Values = np.ndarray | Ragged


@dataclass(frozen=True)
class SignalShape:
    """One signal as a shard holds it."""

    field: str
    dtype: str
    shape: tuple[int, ...]  # of a step; a first size of -1 varies

    @property
    def varies(self) -> bool:
        """Whether a step has as many rows as there are."""
        return self.shape[:1] == (-1,)

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of a step, or of each of its rows where their number varies."""
        return self.shape[self.varies :]

    @property
    def stored(self) -> np.dtype:
        """The dtype on the disk."""
        return np.dtype(np.dtype(self.dtype).newbyteorder("<").str)

    @property
    def file(self) -> str:
        """Name of its file, without ``.npy``: no field has a - in it."""
        return f"signal-{self.field}"


class SignalWriter:
    """Writes the files of one signal, episode by episode.

    Attributes:
        rows: written so far: of steps, or of all steps together where they vary.
    """

    def __init__(self, folder: Path, shape: SignalShape, files: ExitStack) -> None:
        path = folder / f"{shape.file}.npy"
        self._values = files.enter_context(ArrayFile(path, shape.stored, shape.row))
        self._offsets: ArrayFile | None = None
        if shape.varies:
            path = folder / f"{shape.file}{OFFSETS}.npy"
            self._offsets = files.enter_context(ArrayFile(path, _I8, ()))
            self._offsets.append(np.zeros(1, _I8))

    @property
    def rows(self) -> int:
        return self._values.rows

    def append(self, values: Values) -> int:
        """Add an episode; how many bytes it took."""
        if isinstance(values, np.ndarray):
            self._values.append(values)
            return values.nbytes
        assert self._offsets is not None
        self._offsets.append(self.rows + values.offsets[1:].astype(_I8))
        self._values.append(values.values)
        return values.nbytes


class SignalArray:
    """One signal of a shard, mapped read-only.

    Args:
        folder: of the shard.
        shape: what is expected.
        steps: of the shard.
        rows: that its steps have together, where their number varies.

    Raises:
        ValueError: a file is missing or of another length.
    """

    def __init__(self, folder: Path, shape: SignalShape, steps: int, rows: int) -> None:
        count = rows if shape.varies else steps
        path = folder / f"{shape.file}.npy"
        self._map = MappedArray(path, shape.stored, (count, *shape.row))
        self.values = self._map.array
        self.offsets: np.ndarray | None = None
        if shape.varies:
            path = folder / f"{shape.file}{OFFSETS}.npy"
            self.offsets = MappedArray(path, _I8, (steps + 1,)).array

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def part(self, first: int, steps: int) -> Values:
        """An episode's values, as they were put in; ValueError for offsets that are none."""
        if self.offsets is None:
            return self.values[first : first + steps]
        offsets = self.offsets[first : first + steps + 1]
        self._require(int(offsets[0]), int(offsets[-1]))
        if (np.diff(offsets) < 0).any():
            raise ValueError("offsets that fall")
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def step(self, row: int) -> np.ndarray:
        """The rows of one step, where their number varies; ValueError as :meth:`part`."""
        assert self.offsets is not None
        start, stop = self.offsets[row : row + 2].tolist()
        self._require(start, stop)
        rows: np.ndarray = self.values[start:stop]
        return rows

    def _require(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self.values):
            raise ValueError(f"rows {start} to {stop} of {len(self.values)}")

    def will_need(self, row: int) -> None:
        """Let the values of a step be read from the disk."""
        size = self.values.strides[0]
        first, count = (row, 1) if self.offsets is None else self._bounds(row)
        self._map.will_need(first * size, count * size)

    def _bounds(self, row: int) -> tuple[int, int]:
        assert self.offsets is not None
        start, stop = self.offsets[row : row + 2].tolist()
        return (start, stop - start) if 0 <= start <= stop <= len(self.values) else (0, 0)


def signal_crc(values: Values) -> int:
    """CRC-32 of an episode's values, and of the steps' lengths where they vary."""
    start = 0
    if isinstance(values, Ragged):
        start = isal_zlib.crc32(values.lengths.astype(_I8).data)
        values = values.values
    return isal_zlib.crc32(np.ascontiguousarray(values).data, start)


def padded(steps: Sequence[np.ndarray], like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of different lengths [P_i, ...] as one array, and which of its rows are there.

    Args:
        steps: N of them.
        like: an array of their dtype whose rows have their rows' shape.

    Returns:
        values [N, P, ...] with zeros behind each step, and bool [N, P]; P is the longest of
        them, and at least 1, so that there is a row to reduce over.
    """
    lengths = np.array([len(step) for step in steps], np.int64)
    longest = max(1, int(lengths.max(initial=0)))
    values = np.zeros((len(steps), longest, *like.shape[1:]), like.dtype)
    for place, step in zip(values, steps, strict=True):
        place[: len(step)] = step
    mask: np.ndarray = np.arange(longest) < lengths[:, None]
    return values, mask

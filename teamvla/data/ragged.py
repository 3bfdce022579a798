"""Arrays whose steps have different lengths: point clouds, radar targets, inertial samples.

All steps' rows stand one after another in ``values``; ``offsets`` says where each step
begins, and where the last one ends. A step is a slice, never a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Self, overload

import numpy as np

OFFSETS = "-offsets"
"""What the name of a member of offsets has behind the name of its field."""


class Ragged:
    """T arrays that differ in their first size alone.

    Args:
        values: the rows of all steps, ``[sum, ...]``.
        offsets: int64[T+1], from 0 to the number of rows, never falling. Step t is
            ``values[offsets[t] : offsets[t + 1]]``. They are taken as they are: what
            comes from a file has been checked by its reader.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, steps: Sequence[np.ndarray]) -> Self:
        """Steps put one behind another; at least one, alike but for their first sizes."""
        lengths = [len(step) for step in steps]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return cls(np.concatenate(steps), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int | np.integer[Any]) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> Ragged: ...
    def __getitem__(self, at: int | np.integer[Any] | slice) -> np.ndarray | Ragged:
        """One step as a view, or a run of steps that shares the values."""
        if isinstance(at, slice):
            return self._run(at)
        index = int(at) + len(self) if at < 0 else int(at)
        if not 0 <= index < len(self):
            raise IndexError(f"step {at} of {len(self)}")
        rows: np.ndarray = self.values[self.offsets[index] : self.offsets[index + 1]]
        return rows

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same steps of the same dtype; NaN is not equal to itself."""
        if not isinstance(other, Ragged):
            return NotImplemented
        alike = self.dtype == other.dtype and self.shape == other.shape
        return alike and all(map(np.array_equal, self, other))

    __hash__ = None  # type: ignore[assignment]  # its arrays can change

    def __array__(self, *_: object, **__: object) -> NoReturn:
        """NumPy would make an array of objects, or fail, depending on the lengths."""
        raise TypeError("steps of different lengths are not one array: use .values and .offsets")

    def __repr__(self) -> str:
        sizes = ",".join("P" if size == -1 else str(size) for size in self.shape)
        return f"Ragged({self.dtype}[{sizes}], {len(self.values)} rows)"

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(T, -1, ...)``: -1 is the size that varies."""
        return (len(self), -1, *self.values.shape[1:])

    @property
    def ndim(self) -> int:
        return self.values.ndim + 1

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.offsets.nbytes

    @property
    def lengths(self) -> np.ndarray:
        """How many rows each step has, int64[T]."""
        return np.diff(self.offsets)

    def _run(self, at: slice) -> Ragged:
        start, stop, stride = at.indices(len(self))
        if stride != 1:
            raise IndexError("runs of steps have a stride of 1")
        offsets = self.offsets[start : max(start, stop) + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

"""One field of all samples, read without touching the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # not on Windows

    def _blocks_read() -> int:
        return -1
else:

    def _blocks_read() -> int:
        return getrusage(RUSAGE_SELF).ru_inblock


Read = Callable[[np.ndarray], Any]


class FieldView:
    """The values of one field: ``view[5]``, ``view[10:20]``, ``np.asarray(view)``.

    Nothing is read before it is asked for, and only of this field: going through all states
    reads no picture. Values are those of the dataset without its transforms.

    Args:
        name: of the field.
        size: number of samples.
        read: gives the values [B,...] of sample numbers int64 [B].
    """

    def __init__(self, name: str, size: int, read: Read) -> None:
        self.name, self._size, self._read = name, size, read

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: int | slice | np.ndarray | list[int]) -> Any:
        """Value of one sample, or of several along a first axis; negative numbers count back."""
        numbers = np.arange(self._size)[rows]
        return self._read(numbers) if numbers.ndim else self._read(numbers[None])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the values are gathered: they cannot be had without a copy")
        return np.asarray(self[:], dtype)

    def __repr__(self) -> str:
        return f"FieldView({self.name}: {self._size} samples)"


class DiskReads:
    """Tells whether this process has lately read from a disk at all.

    Asking the system to read ahead costs a call for every row: worth it while rows are
    cold, a waste once all are in memory.
    """

    def __init__(self) -> None:
        self._blocks = -1

    def noticed(self) -> bool:
        """Whether blocks were read since the last call; true at the first."""
        before, self._blocks = self._blocks, _blocks_read()
        return self._blocks != before

"""The ``.npy`` files of a shard: written row by row without knowing how many, mapped for reading.

Their headers are always :data:`HEADER` bytes long, so that the number of rows can be put in
last. A file is what its shard says to the byte, or it is refused.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np

from teamvla.files import naming

HEADER = 512


class ArrayFile:
    """A ``.npy`` file that grows block by block.

    Plain writes, not a memory map: on a full disk a write fails, a mapped page kills
    the process.
    """

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row, self.rows = path, dtype, row, 0
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))

    def append(self, block: np.ndarray) -> None:
        """Add rows."""
        assert block.dtype == self.dtype
        assert block.shape[1:] == self.row
        with naming(self.path):
            self._file.write(np.ascontiguousarray(block).data)
        self.rows += len(block)

    def close(self) -> None:
        """Put the number of rows in and make the file durable."""
        with naming(self.path), self._file as file:
            file.seek(0)
            file.write(header(self.dtype, (self.rows, *self.row)))
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # what went wrong first is what matters
                self._file.close()


class MappedArray:
    """A file of :class:`ArrayFile`, mapped read-only.

    Raises:
        ValueError: it is missing, or of another length, dtype or shape.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        try:
            with path.open("rb") as file:
                expected = HEADER + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                size = os.fstat(file.fileno()).st_size
                if size != expected:
                    raise ValueError(f"{path.name}: {size} bytes instead of {expected}")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"{path.name}: {str(error.strerror).lower()}") from None
        if self._map[:HEADER] != header(dtype, shape):
            raise ValueError(f"{path.name}: another header than {dtype}{[*shape]}")
        self.array: np.ndarray = np.ndarray(shape, dtype, self._map, HEADER)

    def will_need(self, first: int, length: int) -> None:
        """Ask the system to read bytes of the content from the disk, without waiting."""
        start = HEADER + first
        below = start % mmap.PAGESIZE
        with suppress(OSError):  # advice; not every file system takes it
            self._map.madvise(mmap.MADV_WILLNEED, start - below, length + below)


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The first :data:`HEADER` bytes of a ``.npy`` file, version 1."""
    descr = np.lib.format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER - 10).to_bytes(2, "little")
        + (text.ljust(HEADER - 11) + "\n").encode("latin-1")
    )

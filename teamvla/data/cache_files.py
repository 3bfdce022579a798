"""The ``.npy`` files of a shard: written row by row without knowing how many, mapped for reading.

Their headers are always :data:`HEADER` bytes long, so that the number of rows can be put in
last. A file is what its shard says to the byte, or it is refused.
"""

from __future__ import annotations

import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

import numpy as np

from teamvla.files import naming

HEADER = 512
#: bytes that are written at a time: the system finds room for few pages faster than for many
_PIECE = 128 << 10
#: bytes after which the disk begins to take what was written, while more comes
_SYNC_AFTER = 64 << 20


class ArrayFile:
    """A ``.npy`` file that grows block by block.

    Plain writes, not a memory map: on a full disk a write fails, a mapped page kills
    the process.
    """

    def __init__(self, path: Path, dtype: np.dtype, row: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row, self.rows = path, dtype, row, 0
        self._file = path.open("wb")
        self._file.seek(HEADER)
        self._waiting = 0
        self._syncing: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def append(self, block: np.ndarray) -> None:
        """Add rows."""
        assert block.dtype == self.dtype
        assert block.shape[1:] == self.row
        content = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        with naming(self.path):
            for start in range(0, len(content), _PIECE):
                self._file.write(content[start : start + _PIECE])
            self._sync_some(len(content))
        self.rows += len(block)

    def _sync_some(self, more: int) -> None:
        """Now and then let another thread wait for the disk, so that the end comes soon."""
        self._waiting += more
        if self._waiting < _SYNC_AFTER or not (self._syncing is None or self._syncing.done()):
            return
        self._waiting = 0
        self._synced()
        self._thread = self._thread or ThreadPoolExecutor(1, "sync")
        self._syncing = self._thread.submit(os.fdatasync, self._file.fileno())

    def _synced(self) -> None:
        """Wait for the other thread; OSError if the disk refused what was written."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def close(self) -> None:
        """Put the number of rows in and make the file durable."""
        with naming(self.path), self._file as file, self._thread or nullcontext():
            self._synced()
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
            with suppress(OSError), self._file, self._thread or nullcontext():
                self._synced()  # what went wrong first is what matters


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

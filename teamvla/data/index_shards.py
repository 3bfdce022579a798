"""The shards of an index while it is being built: those that stay, and new ones."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from teamvla.data.cache_shards import RowShape, ShardInfo, ShardWriter, Stored

#: pictures and signals in a shard, at most (an episode is never torn apart)
MAX_BYTES = 64 << 30


class NewShards:
    """Writes episodes into as many shards as they need.

    Args:
        folder: of the index.
        number: the first shard's.
        first: row numbers that the first episode gets, among the steps and the actions.
    """

    def __init__(self, folder: Path, number: int, first: tuple[int, int]) -> None:
        self.folder, self._number, self._first = folder, number, first
        self.infos: list[ShardInfo] = []
        self.folders: list[Path] = []
        self._writer: ShardWriter | None = None
        self._open = ExitStack()

    def append(self, stored: Stored, shape: RowShape) -> tuple[int, int]:
        """Add an episode; its row numbers."""
        if self._writer is not None and self._writer.large_bytes >= MAX_BYTES:
            self.close()
        if self._writer is None:
            path = self.folder / f"shard-{self._number + len(self.folders):04d}"
            self.folders.append(path)
            self._writer = self._open.enter_context(ShardWriter(path, shape))
        row, action = self._writer.append(stored)
        return self._first[0] + row, self._first[1] + action

    def close(self) -> None:
        """Make what was written durable."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        self._open.close()
        self.infos.append(writer.info())
        self._first = self._first[0] + writer.rows, self._first[1] + writer.actions

    def abandon(self, error: BaseException) -> None:
        """Close files without caring for what is in them."""
        self._open.__exit__(type(error), error, None)


def row_ends(infos: list[ShardInfo]) -> np.ndarray:
    """Where each shard's steps end when they are numbered through, int64."""
    return np.cumsum([info.rows for info in infos], dtype=np.int64)


def renumbered(numbers: np.ndarray, ends: np.ndarray, kept: list[int]) -> np.ndarray:
    """Row numbers after all but the ``kept`` shards were taken out; -1 stays."""
    lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    new_starts = np.zeros(len(ends), np.int64)
    new_starts[kept] = np.cumsum(lengths[kept]) - lengths[kept]
    shard = np.searchsorted(ends, np.maximum(numbers, 0), side="right")
    moved = numbers + (new_starts - starts)[np.minimum(shard, len(ends) - 1)]
    return np.where(numbers >= 0, moved, -1)

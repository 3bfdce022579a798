"""The packed cache: arrays in which a step is a row and an action chunk is a plain slice.

It is made of shards (:mod:`teamvla.data.cache_shards`) whose rows count on from each other:
the manifest's ``first_row`` and ``first_action`` are numbers over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from teamvla.data.cache_codecs import decode_jpeg
from teamvla.data.cache_shards import RowShape, Shard, ShardInfo
from teamvla.data.cache_signals import padded
from teamvla.errors import InputError

_MEND = "Look with `teamvla index --verify`, build it anew with `teamvla index --rebuild`."


class Cache:
    """The shards of an index, mapped read-only.

    Attributes:
        folder: where the shards stand.
        shape: what a row looks like.
        shards: in the order of their rows.

    Raises:
        ValueError: a file is missing or of another length.
    """

    def __init__(self, folder: Path, infos: Sequence[ShardInfo], shape: RowShape) -> None:
        self.folder, self.shape = folder, shape
        self.shards = [Shard(folder, info, shape) for info in infos]
        self.row_ends = np.cumsum([info.rows for info in infos], dtype=np.int64)
        self.action_ends = np.cumsum(
            [info.actions(shape.max_chunk) for info in infos], dtype=np.int64
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(shard.nbytes for shard in self.shards)

    @cached_property
    def instructions(self) -> list[str]:
        """The texts that ``take("language")`` gives the numbers of; some may occur twice."""
        return [text for shard in self.shards for text in shard.instructions]

    @cached_property
    def _first_instructions(self) -> list[int]:
        counts = [len(shard.instructions) for shard in self.shards]
        return [sum(counts[:at]) for at in range(len(counts))]

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of an array, always a copy.

        Args:
            name: ``images`` (uint8 [*, V,H,W,C]), ``state`` (float32 [*, S]), ``language``
                (int64 [*], numbers of :attr:`instructions`) or ``actions`` (float32 [*, A],
                rows of the padded actions).
            rows: row numbers, int64 of any shape; they are not checked but clipped.

        Raises:
            InputError: a picture or number cannot be what was written.
        """
        if name == "images":
            return self._pictures(rows)
        if name == "language":
            return self._numbers(rows)
        arrays = [getattr(shard, name) for shard in self.shards]
        return self._rows(arrays, rows, self.action_ends if name == "actions" else self.row_ends)

    def signal(self, field: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """A signal in some steps, always a copy.

        Args:
            field: one of ``shape.signals``.
            rows: row numbers, int64 of any shape.

        Returns:
            The values [*, ...] and None; where their number varies [*, P, ...], padded with
            zeros to the longest of these steps (and to 1 at least), and bool [*, P], the
            rows that are there.

        Raises:
            InputError: the numbers of rows cannot be what was written.
        """
        arrays = [shard.signals[field] for shard in self.shards]
        if arrays[0].offsets is None:
            return self._rows([array.values for array in arrays], rows, self.row_ends), None
        try:
            steps = [s.signals[field].step(row) for s, row in self._places(rows.reshape(-1))]
        except ValueError as error:
            where, expected = str(self.folder), f"the cached rows of {field}"
            raise InputError(where, expected, str(error), _MEND) from None
        values, mask = padded(steps, arrays[0].values)
        longest = mask.shape[1:]
        return values.reshape(*rows.shape, *values.shape[1:]), mask.reshape(*rows.shape, *longest)

    def chunks(self, first: np.ndarray, length: int) -> np.ndarray:
        """The ``length`` actions from each row ``first`` on: float32 [*first.shape, length, A]."""
        if not 1 <= length <= self.shape.max_chunk:
            raise ValueError(f"chunks of 1 to {self.shape.max_chunk} actions, not {length}")
        if len(self.shards) == 1:
            return _chunks(self.shards[0], first, length)
        out = np.empty((*first.shape, length, self.shape.actions), np.float32)
        for number, chosen, local in self._split(first, self.action_ends):
            out[chosen] = _chunks(self.shards[number], local, length)
        return out

    def prefetch(self, rows: np.ndarray) -> None:
        """Ask the system to read the pictures of ``rows`` from the disk, without waiting."""
        for shard, row in self._places(rows.reshape(-1)):
            shard.will_need(row)

    def prefetch_signal(self, field: str, rows: np.ndarray) -> None:
        """The same for a signal."""
        for shard, row in self._places(rows.reshape(-1)):
            shard.signals[field].will_need(row)

    def _rows(self, arrays: list[np.ndarray], rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
        first = arrays[0]
        if len(arrays) == 1:
            return first.take(rows, axis=0, mode="clip")
        out = np.empty((*rows.shape, *first.shape[1:]), first.dtype)
        for number, chosen, local in self._split(rows, ends):
            out[chosen] = arrays[number].take(local, axis=0, mode="clip")
        return out

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        if len(self.shards) == 1:
            return _numbers(self.shards[0], rows)
        out = np.empty(rows.shape, np.int64)
        for number, chosen, local in self._split(rows, self.row_ends):
            numbers = _numbers(self.shards[number], local)
            out[chosen] = numbers + self._first_instructions[number]
        return out

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        if self.shape.codec == "raw" and len(self.shards) == 1:
            return self._rows([self.shards[0].images], rows, self.row_ends)
        out = np.empty((*rows.shape, self.shape.cameras, *self.shape.picture), np.uint8)
        flat = out.reshape(-1, *out.shape[rows.ndim :])
        places = list(self._places(rows.reshape(-1)))
        if self.shape.codec == "raw":
            # A picture is large: one plain copy each costs less than gathering twice.
            for at, (shard, row) in enumerate(places):
                flat[at] = shard.images[row]
        else:
            self._decode(places, flat)
        return out

    def _places(self, rows: np.ndarray) -> Iterator[tuple[Shard, int]]:
        numbers = np.searchsorted(self.row_ends, rows, side="right")
        numbers = np.minimum(numbers, len(self.shards) - 1)
        starts = self.row_ends - [shard.info.rows for shard in self.shards]
        local = rows - starts[numbers]
        for number, row in zip(numbers.tolist(), local.tolist(), strict=True):
            yield self.shards[number], row

    def _decode(self, places: list[tuple[Shard, int]], out: np.ndarray) -> None:
        pieces = []
        for shard, row in places:
            assert shard.offsets is not None
            cameras = self.shape.cameras
            bounds = shard.offsets[row * cameras : (row + 1) * cameras + 1].tolist()
            pieces += [shard.images[a:b] for a, b in pairwise(bounds)]
        try:
            decode_jpeg(pieces, out.reshape(-1, *self.shape.picture))
        except ValueError as error:
            raise InputError(str(self.folder), "the cached pictures", str(error), _MEND) from None

    def _split(
        self, rows: np.ndarray, ends: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each shard that is needed: its number, which of ``rows`` it has, and where."""
        numbers = np.minimum(np.searchsorted(ends, rows, side="right"), len(ends) - 1)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            start = int(ends[number - 1]) if number else 0
            yield number, chosen, rows[chosen] - start


def _chunks(shard: Shard, first: np.ndarray, length: int) -> np.ndarray:
    """The actions from each row on: float32 [*first.shape, length, A]."""
    actions = shard.actions
    # One opaque item per chunk lets the gather copy each with a single memcpy.
    chunk = np.dtype((np.void, actions.strides[0] * length))
    starts = len(actions) - length + 1
    chunks = np.ndarray((starts,), chunk, actions.data, strides=actions.strides[:1])
    taken: np.ndarray = chunks[first].view(np.float32)
    return taken.reshape(*first.shape, length, actions.shape[1])


def _numbers(shard: Shard, rows: np.ndarray) -> np.ndarray:
    """Numbers of the shard's instructions, int64; InputError if there is none of that number."""
    numbers, count = shard.language.take(rows, mode="clip"), len(shard.instructions)
    if numbers.size and numbers.view(np.uint32).max() >= count:  # those below 0 too
        where, expected = str(shard.folder), f"numbers below {count} in language.npy"
        raise InputError(where, expected, "others", _MEND)
    return numbers.astype(np.int64)

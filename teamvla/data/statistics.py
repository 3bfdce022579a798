"""Normalisation statistics over the steps that train: exact, streamed, in bounded memory.

Whatever the order of the blocks and wherever they lie, the figures of the same numbers are
the same: minimum, maximum and quantiles to the bit, mean and deviation to rounding (the
index adds up in the order of its table, so that there they are equal to the bit, too).

Quantiles are found by selection on the bits (a radix select): floats that are read as
integers in the right way sort as they do as floats. One pass counts the upper 16 bits; that
says in which of 65,536 drawers each wanted rank lies; a second pass counts the different
numbers in those drawers, at most 65,536 in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_DRAWERS = 1 << 16

Blocks = Callable[[], Iterator[np.ndarray]]


def column_statistics(blocks: Blocks) -> dict[str, list[float]]:
    """Figures of each column of float32 [rows, D], given in blocks, finite.

    Args:
        blocks: gives the same blocks every time it is called (twice); at least one row.

    Returns:
        mean, std (population), min, max and the quantiles (linear, as NumPy's), each a list
        of D numbers.
    """
    moments, drawers = Moments(), None
    for block in blocks():
        moments.add(block)
        keys = _sortable(block)
        drawers = np.zeros((block.shape[1], _DRAWERS), np.int64) if drawers is None else drawers
        for column, counts in enumerate(drawers):
            counts += np.bincount(keys[:, column] >> 16, minlength=_DRAWERS)
    if drawers is None:
        raise ValueError("statistics of nothing")
    ranks = _ranks(moments.count)
    if not len(drawers):  # a robot that has no state
        return {**moments.figures(), **{name: [] for name in QUANTILES}}
    sorted_at = _select(blocks, drawers, ranks)
    return {**moments.figures(), **_interpolate(sorted_at, ranks, moments.count)}


class Moments:
    """Mean, deviation and range of columns, block by block (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = np.zeros(0)
        self._low = self._high = np.zeros(0)

    def add(self, block: np.ndarray) -> None:
        """Take in rows [n, D]."""
        values = block.astype(np.float64)
        mean = values.mean(axis=0)
        squares = np.square(values - mean).sum(axis=0)
        low, high = values.min(axis=0), values.max(axis=0)
        if not self.count:
            self.count, self._mean, self._squares = len(values), mean, squares
            self._low, self._high = low, high
            return
        total = self.count + len(values)
        apart = mean - self._mean
        self._squares = self._squares + squares + apart**2 * (self.count * len(values) / total)
        self._mean = self._mean + apart * (len(values) / total)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self.count = total

    def figures(self) -> dict[str, list[float]]:
        """mean, std, min and max, each a list of D numbers."""
        std = np.sqrt(self._squares / self.count)
        named = {"mean": self._mean, "std": std, "min": self._low, "max": self._high}
        return {name: figure.tolist() for name, figure in named.items()}


def pixel_figures(sums: np.ndarray) -> dict[str, list[float]]:
    """Mean and deviation of each colour from [episodes, 3, C]: number, sum, sum of squares."""
    number, total, squares = sums.sum(axis=0)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - mean**2, 0))
    return {"mean": mean.tolist(), "std": std.tolist()}


def length_figures(lengths: np.ndarray) -> dict[str, float]:
    """Figures of the numbers of steps of episodes."""
    column = lengths.astype(np.float32)[:, None]
    return {name: values[0] for name, values in column_statistics(lambda: iter([column])).items()}


def describe(statistics: dict[str, Any]) -> list[str]:
    """One readable line per vector: the range of its means, deviations and values."""
    return [
        f"{name}: {len(figures['mean'])} numbers in [{min(figures['min']):.3g}, "
        f"{max(figures['max']):.3g}], deviations {min(figures['std']):.3g} to "
        f"{max(figures['std']):.3g}"
        for name, figures in ((name, statistics[name]) for name in ("state", "actions"))
        if figures["mean"]
    ]


def _ranks(count: int) -> np.ndarray:
    """The two neighbours of every quantile among ``count`` sorted numbers, int64 [Q, 2]."""
    below = np.floor(np.array([*QUANTILES.values()]) * (count - 1)).astype(np.int64)
    return np.stack([below, np.minimum(below + 1, count - 1)], axis=1)


def _interpolate(sorted_at: np.ndarray, ranks: np.ndarray, count: int) -> dict[str, list[float]]:
    named = {}
    for (name, share), (below, _), pair in zip(QUANTILES.items(), ranks, sorted_at, strict=True):
        low, high = pair.astype(np.float64)
        named[name] = (low + (high - low) * (share * (count - 1) - below)).tolist()
    return named


def _sortable(block: np.ndarray) -> np.ndarray:
    """float32 as uint32 of the same order; -0.0 counts as 0.0."""
    bits = (np.asarray(block, np.float32) + np.float32(0)).view(np.uint32)
    negative = bits >> 31
    keys: np.ndarray = bits ^ (negative * np.uint32(0x7FFFFFFF) | np.uint32(0x80000000))
    return keys


def _unsortable(keys: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_sortable`."""
    positive = keys >> 31
    flipped = keys ^ ((1 - positive) * np.uint32(0x7FFFFFFF) | np.uint32(0x80000000))
    values: np.ndarray = flipped.astype(np.uint32).view(np.float32)
    return values


def _select(blocks: Blocks, drawers: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The numbers of the given ranks [Q, 2] in each column: float32 [Q, 2, D]."""
    ends = np.cumsum(drawers, axis=1)
    wanted = np.stack([np.searchsorted(end, ranks.reshape(-1), side="right") for end in ends])
    looked_into = np.zeros(drawers.shape, bool)
    np.put_along_axis(looked_into, wanted, True, axis=1)
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in ends]
    for block in blocks():
        keys = _sortable(block)
        for column, (seen, marked) in enumerate(zip(found, looked_into, strict=True)):
            mine = keys[:, column]
            seen.append(np.unique(mine[marked[mine >> 16]], return_counts=True))
    columns = [
        _values(ranks.reshape(-1), end, drawer, seen)
        for end, drawer, seen in zip(ends, wanted, found, strict=True)
    ]
    return np.stack(columns, axis=-1).reshape(*ranks.shape, len(columns))


def _values(
    ranks: np.ndarray,
    ends: np.ndarray,
    wanted: np.ndarray,
    found: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Numbers of one column by their ranks, of the keys in the wanted drawers and their counts."""
    keys, inverse = np.unique(np.concatenate([k for k, _ in found]), return_inverse=True)
    counts = np.bincount(inverse, np.concatenate([count for _, count in found]))
    upto = np.cumsum(counts).astype(np.int64)
    first = np.searchsorted(keys >> 16, wanted)  # of each drawer among the keys
    before_drawer = np.where(wanted > 0, ends[wanted - 1], 0)
    before_keys = np.where(first > 0, upto[first - 1], 0)
    at = np.searchsorted(upto, ranks - before_drawer + before_keys, side="right")
    return _unsortable(keys[at])

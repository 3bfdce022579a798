"""Figures and histograms of columns that are seen once, a piece at a time."""

from __future__ import annotations

import math

import numpy as np

_BINS = 512
#: bins are never finer than 2**-20 (rad, m, s: a millionth), nor so fine that indices overflow
_FINEST, _INDEX_BITS = -20, 40
_ENOUGH = 4096  # rows that are taken in at once


class Histogram:
    """Exact counts over bins whose width is a power of two.

    The bins are as fine as ``_BINS`` of them allow over everything seen so far; where
    the range grows, neighbours are merged. Bin edges are multiples of the width, so the
    result is the same in whatever order the values come.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._exponent, self._first = _FINEST, 0
        self._counts = np.zeros(0, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count finite ``values`` [T]."""
        if not len(values):
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self._coarsen(_exponent(self.low, self.high))
        places = np.floor(np.ldexp(values.astype(np.float64), -self._exponent)).astype(np.int64)
        first = min(int(places.min()), self._first if len(self._counts) else int(places.min()))
        last = max(int(places.max()), self._first + len(self._counts) - 1)
        counts = np.bincount(places - first, minlength=last - first + 1)
        at = self._first - first
        counts[at : at + len(self._counts)] += self._counts
        self._first, self._counts = first, counts

    def bars(self, most: int = 48) -> tuple[np.ndarray, np.ndarray]:
        """Edges [n + 1] and counts [n] of at most ``most`` bars; none without values."""
        merged = Histogram()
        merged._exponent, merged._first = self._exponent, self._first
        merged._counts = self._counts
        while len(merged._counts) > most:
            merged._coarsen(merged._exponent + 1)
        places = merged._first + np.arange(len(merged._counts) + 1, dtype=np.float64)
        return np.ldexp(places, merged._exponent), merged._counts

    def _coarsen(self, exponent: int) -> None:
        steps = exponent - self._exponent
        if steps <= 0:
            return
        self._exponent = exponent
        if len(self._counts):
            places = (self._first + np.arange(len(self._counts))) >> min(steps, 62)
            self._first = int(places[0])
            merged = np.zeros(int(places[-1]) - self._first + 1, np.int64)
            np.add.at(merged, places - self._first, self._counts)
            self._counts = merged


def _exponent(low: float, high: float) -> int:
    """The finest width, as a power of two, at which ``low`` .. ``high`` fits the bins."""
    largest = max(abs(low), abs(high))
    exponent = _FINEST
    if largest > 0:
        exponent = max(exponent, math.frexp(largest)[1] - _INDEX_BITS)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / _BINS)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= _BINS:
        exponent += 1
    return exponent


class Spread:
    """Count, mean, deviation, range and histogram of each of D columns.

    Rows are set aside until there are enough of them to be worth a pass.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._waiting: list[np.ndarray] = []
        self._rows = 0
        self._columns = [Column() for _ in range(width)]

    def add(self, values: np.ndarray) -> None:
        """Take in rows [T, D]; what is not finite is left out, column by column."""
        self._waiting.append(values)
        self._rows += len(values)
        if self._rows >= _ENOUGH:
            self._settle()

    @property
    def columns(self) -> list[Column]:
        """The figures of each column, of everything added so far."""
        if self._waiting:
            self._settle()
        return self._columns

    def to_dict(self) -> dict[str, list[float | None]]:
        """The figures of each column as JSON data; ``None`` where nothing was finite."""
        names = {"count": "count", "low": "min", "high": "max", "mean": "mean", "std": "std"}
        return {
            said: [getattr(one, name) if one.count else None for one in self.columns]
            for name, said in names.items()
        }

    def _settle(self) -> None:
        values = np.concatenate(self._waiting)
        self._waiting, self._rows = [], 0
        for index, column in enumerate(self._columns):
            one = np.ascontiguousarray(values[:, index], np.float64)
            finite = np.isfinite(one)
            column.add(one if finite.all() else one[finite])


class Column:
    """The figures of one column."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        self.histogram = Histogram()

    @property
    def low(self) -> float:
        return self.histogram.low

    @property
    def high(self) -> float:
        return self.histogram.high

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        # Two running sums in one (Chan, Golub & LeVeque 1979): no cancellation.
        before, now = self.count, len(values)
        mean = float(values.mean())
        apart = mean - self.mean
        self.count = total = before + now
        self.mean += apart * now / total
        spread = float(np.square(values - mean).sum())
        self._squares += spread + apart**2 * before * now / total
        self.histogram.add(values)

"""Reading a conversion back and comparing: what differs is in the report, with figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from teamvla.data.formats.base import Source
from teamvla.data.formats.joined import DERIVED_META
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.logs import progress

_LOSSLESS_DB = 100.0  # stands for an infinite ratio in a mean


@dataclass
class _Difference:
    """What was seen of one field over all episodes."""

    episodes: int = 0
    worst: float = 0.0
    squared: float = 0.0
    count: int = 0
    lowest_db: float = math.inf

    def why(self) -> str:
        if not self.count:
            return "reads back as another value"
        if math.isinf(self.lowest_db):
            return f"reads back within {self.worst:.3g}"
        mean = decibels(self.squared / self.count)
        return f"lossy: PSNR {mean:.1f} dB, {self.lowest_db:.1f} dB in the worst episode"


def decibels(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures."""
    return _LOSSLESS_DB if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)


def verify(source: Source, output: Source, report: Report) -> None:
    """Compare every episode of ``source`` with what ``output`` gives for it, field by field."""
    differences: dict[str, _Difference] = {}
    quiet = Report()
    pairs = list(zip(source.names(), output.names(), strict=True))
    with progress("verify", len(pairs), "episode") as bar:
        for ours, theirs in pairs:
            original, back = source.read(ours, quiet), output.read(theirs, quiet)
            for name, missing in _compare(original, back, differences):
                if missing and name not in report.of("lost"):
                    report.note("lost", name, "", "does not come back")
            bar.advance()
    for name, difference in differences.items():
        report.settle("changed", name, name, difference.why(), difference.episodes)


def _compare(
    original: Episode, back: Episode, differences: dict[str, _Difference]
) -> Iterator[tuple[str, bool]]:
    for name, values in original.fields.items():
        if name not in back.fields:
            yield name, True
        elif not same(values, back.fields[name]):
            _measure(differences.setdefault(name, _Difference()), values, back.fields[name])
    for key, value in original.meta.items():
        if key in DERIVED_META:
            continue
        if key not in back.meta:
            yield f"metadata.{key}", True
        elif back.meta[key] != value:
            differences.setdefault(f"metadata.{key}", _Difference()).episodes += 1


def same(left: Any, right: Any) -> bool:
    """Whether two columns are equal to the bit (texts: whatever width they are stored in)."""
    if not isinstance(left, np.ndarray) or not isinstance(right, np.ndarray):
        return bool(type(left) is type(right) and left == right)
    if left.dtype.kind != "U" and left.dtype != right.dtype:
        return False
    return bool(np.array_equal(left, right, equal_nan=left.dtype.kind == "f"))


def _measure(seen: _Difference, left: Any, right: Any) -> None:
    seen.episodes += 1
    numbers = all(isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for v in (left, right))
    if not numbers or left.shape != right.shape:
        return
    squared = _squared_error(left, right)
    seen.squared, seen.count = seen.squared + squared, seen.count + left.size
    seen.worst = max(seen.worst, float(np.max(np.abs(left.astype(float) - right))))
    if left.dtype == np.uint8 and left.ndim == 4:
        seen.lowest_db = min(seen.lowest_db, decibels(squared / left.size))


def _squared_error(left: np.ndarray, right: np.ndarray) -> float:
    return float(sum(np.sum((a.astype(float) - b) ** 2) for a, b in zip(left, right, strict=True)))

"""What of a standing index can be kept, and which of its shards are worth writing anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teamvla.data.index_format import Index, IndexConfig
from teamvla.data.manifest import FileState, Manifest

#: more shards than this are merged: every one costs a little at every batch
MAX_SHARDS = 16
#: a shard is written anew when less than this part of its steps is still used
LEAST_USED = 0.5


@dataclass(frozen=True)
class Match:
    """The files beside what stood.

    Attributes:
        rows: rows of the standing table that hold for files as they are now, in their order.
        fresh: the other files, to be looked at.
        places: where these stand among all files, int64.
        changed: how many of them were known in another state.
        removed: how many known files are gone.
    """

    rows: np.ndarray
    fresh: list[FileState]
    places: np.ndarray
    changed: int
    removed: int


def match(files: Sequence[FileState], table: Manifest | None, usable: np.ndarray) -> Match:
    """Compare files with a standing table, of which only ``usable`` rows (bool) can be kept."""
    known: dict[tuple[int, bytes], int] = {}
    states: list[tuple[int, int]] = []
    if table is not None:
        keys = zip(table["root"].tolist(), table["path"].tolist(), strict=True)
        known = {key: row for row, key in enumerate(keys)}
        states = list(zip(table["size"].tolist(), table["mtime_ns"].tolist(), strict=True))
    can_stay = usable.tolist()
    rows, fresh, places, met, changed = [], [], [], 0, 0
    for place, file in enumerate(files):
        row = known.get((file.root, os.fsencode(file.path)), -1)
        met += row >= 0
        same = row >= 0 and states[row] == (file.size, file.mtime_ns)
        if same and can_stay[row]:
            rows.append(row)
            continue
        changed += row >= 0 and not same
        fresh.append(file)
        places.append(place)
    as_int = (np.array(numbers, np.int64) for numbers in (rows, places))
    return Match(next(as_int), fresh, next(as_int), changed, len(known) - met)


def wanted(table: Manifest, config: IndexConfig) -> np.ndarray:
    """Which rows belong into the cache, bool."""
    usable: np.ndarray = table["problem"] == b""
    return usable & (table["success"] | (not config.only_successful))


def usable_rows(table: Manifest, config: IndexConfig) -> np.ndarray:
    """Which rows of a standing table say enough under (other) settings, bool."""
    placed = table["first_row"] >= 0
    skipped = (table["problem"] != b"") & (table["digest"] != b"") & config.skip_invalid
    failed = (table["problem"] == b"") & ~wanted(table, config)
    usable: np.ndarray = placed | skipped | failed
    return usable


def same_rows(index: Index, config: IndexConfig) -> bool:
    """Whether pictures that are stored already are stored as the settings want them."""
    before = index.config
    if before.codec != config.codec:
        return False
    return config.codec == "raw" or before.jpeg_quality == config.jpeg_quality


def shards_to_copy(rows: Sequence[int], used: Sequence[int], new: int) -> set[int]:
    """The shards whose episodes are to be written anew.

    Those that are mostly holes; and, when there are too many, the smallest: as many as are
    no larger than the sum of those before them, so that no step is copied more often than
    the logarithm of how much was added.

    Args:
        rows: steps in each shard.
        used: steps in each that an episode of the index still has.
        new: shards that are new in any case.
    """
    kept = [number for number, count in enumerate(used) if count]
    copied = {number for number in kept if used[number] < LEAST_USED * rows[number]}
    rest = sorted((n for n in kept if n not in copied), key=lambda number: (used[number], number))
    if len(rest) + new + bool(copied) <= MAX_SHARDS:
        return copied
    total = 0
    for at, number in enumerate(rest):
        if at >= MAX_SHARDS // 2 and used[number] > total:
            break
        total += used[number]
        copied.add(number)
    return copied

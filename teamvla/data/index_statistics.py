"""The statistics of an index: over its train split, in the order of its table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from teamvla.data.cache import Cache
from teamvla.data.layout import Layout
from teamvla.data.manifest import Manifest
from teamvla.data.packing import EVERY
from teamvla.data.statistics import column_statistics, length_figures, pixel_figures

_BLOCK = 1 << 17


def index_statistics(cache: Cache, manifest: Manifest, layout: Layout) -> dict[str, Any]:
    """Figures of the state, the actions, the pictures and the lengths of the train split."""
    rows = manifest.rows("train")
    steps = manifest["num_steps"][rows]

    def vectors(name: str, first: str) -> dict[str, list[float]]:
        starts = manifest[first][rows]
        return column_statistics(lambda: _blocks(cache, name, starts, steps))

    return {
        "state": vectors("state", "first_row"),
        "actions": vectors("actions", "first_action"),
        "count": int(steps.sum()),
        "columns": {"state": layout.state_columns, "actions": layout.action_columns},
        "pictures": _pictures(cache, manifest["first_row"][rows], layout),
        "lengths": length_figures(steps),
    }


def _blocks(cache: Cache, name: str, starts: np.ndarray, steps: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of episodes, whole episodes at a time; where shards end makes no difference."""
    block = (np.cumsum(steps) - 1) // _BLOCK
    for number in np.unique(block).tolist():
        chosen = block == number
        yield cache.take(name, _ranges(starts[chosen], steps[chosen]))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``starts[i], starts[i] + 1, ...``, each ``lengths[i]`` numbers, one after the other."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    numbers: np.ndarray = np.repeat(starts, lengths) + within
    return numbers


def _pictures(cache: Cache, first_rows: np.ndarray, layout: Layout) -> dict[str, Any]:
    sums = np.zeros((1, cache.shape.cameras, 3, layout.picture[-1]))
    starts = cache.row_ends - [shard.info.rows for shard in cache.shards]
    # Whole numbers below 2**53: whatever the order, the sums are the same.
    for shard, start in zip(cache.shards, starts.tolist(), strict=True):
        local = first_rows[(first_rows >= start) & (first_rows < start + shard.info.rows)] - start
        episodes = np.searchsorted(shard.first_rows, local)
        sums += shard.table["pixels"][episodes].sum(axis=0)
    figures = {name: pixel_figures(sums[:, at]) for at, name in enumerate(layout.cameras)}
    return {"every": EVERY, **figures}

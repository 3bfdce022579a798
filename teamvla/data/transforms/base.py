"""What every transform shares: its type, and randomness that belongs to the sample.

A transform is any callable from batch to batch. Batches carry ``index`` and ``epoch``
(int64 [B]): randomness that is a function of (seed, epoch, index) alone gives each
sample the same picture whatever batch, worker or order it comes in. The T frames of a
sample's history get the same randomness: they are one moving picture.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from teamvla.seeds import Domain, sequence

Batch = dict[str, Any]
Transform = Callable[[Batch], Batch]


class Stream(IntEnum):
    """Whose draws they are. Values are stable: they are part of every training's numbers."""

    SHIFT = 0
    COLOR = 1
    MIRROR = 2


def random_words(batch: Batch, seed: int, stream: Stream, count: int) -> np.ndarray:
    """``count`` uniform 32-bit numbers for each sample of a batch, uint64 [B,count]."""
    epochs, which = np.unique(batch["epoch"], return_inverse=True)
    sequences = [sequence(seed, Domain.AUGMENT, int(epoch)) for epoch in epochs]
    keys = np.stack([words.generate_state(stream + 1, "u8")[stream] for words in sequences])
    counters = np.asarray(batch["index"])[:, None] * count + np.arange(count)
    words: np.ndarray = _mix(counters.astype(np.uint64), keys[which][:, None]) >> np.uint64(32)
    return words


def random_units(batch: Batch, seed: int, stream: Stream, count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) for each sample of a batch, float64 [B,count]."""
    units: np.ndarray = random_words(batch, seed, stream, count) * 2.0**-32
    return units


def with_pictures(batch: Batch, pictures: np.ndarray) -> Batch:
    """The batch with other pictures, given with channels last [B,(T),V,H,W,C]."""
    image = np.moveaxis(pictures, -1, -3)
    return {**batch, "observations": {**batch["observations"], "image": image}}


def pictures_of(batch: Batch) -> np.ndarray | None:
    """The pictures [B,(T),V,H,W,C], contiguous, or None if the batch has none."""
    image = batch["observations"].get("image")
    return None if image is None else np.ascontiguousarray(np.moveaxis(image, -3, -1))


def _mix(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Uniform 64-bit words from counters: SplitMix64 (Steele et al. 2014, OOPSLA) at ``key``."""
    word = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = word ^ (word >> np.uint64(31))
    return mixed

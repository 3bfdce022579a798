"""What is done to a batch before training sees it.

A transform is any callable from batch to batch. Batches carry ``index`` and ``epoch``
(int64 [B]): randomness that is a function of (seed, epoch, index) alone gives each
sample the same picture whatever batch, worker or order it comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from teamvla.config import Settings
from teamvla.seeds import Domain, sequence

Batch = dict[str, Any]
Transform = Callable[[Batch], Batch]


class RandomShiftConfig(Settings):
    """Shift every camera's picture by a few pixels, each on its own."""

    type: Literal["random_shift"] = "random_shift"
    pixels: int = Field(default=4, ge=1, le=64, description="Largest shift, in pixels, either way.")

    def build(self, seed: int) -> RandomShift:
        return RandomShift(self.pixels, seed)


#: the settings of any transform that a configuration can name by its `type`
TransformConfig = RandomShiftConfig


class RandomShift:
    """Random translation with replicated edges (DrQ: Kostrikov et al. 2020, arXiv 2004.13649).

    Args:
        pixels: the shift is uniform over whole numbers in [-pixels, pixels], for each
            sample, camera and axis alone.
        seed: of the run.
    """

    def __init__(self, pixels: int = 4, seed: int = 0) -> None:
        self.pixels, self.seed = pixels, seed

    def __call__(self, batch: Batch) -> Batch:
        """Shift ``observations.image`` [B,V,C,H,W]; everything else passes through."""
        observations = batch["observations"]
        pictures = np.ascontiguousarray(np.moveaxis(observations["image"], 2, -1))
        shifts = self.shifts(batch["index"], batch["epoch"], pictures.shape[1])
        shifted = np.moveaxis(shift_pictures(pictures, shifts), -1, 2)
        return {**batch, "observations": {**observations, "image": shifted}}

    def shifts(self, index: np.ndarray, epoch: np.ndarray, cameras: int) -> np.ndarray:
        """(dy, dx) of each sample and camera, int64 [B,V,2]."""
        epochs, which = np.unique(epoch, return_inverse=True)
        keys = [sequence(self.seed, Domain.AUGMENT, int(e)).generate_state(1, "u8") for e in epochs]
        key = np.stack(keys)[which]
        draws = index[:, None] * (2 * cameras) + np.arange(2 * cameras)
        words = _mix(draws.astype(np.uint64), key) >> np.uint64(32)
        steps = words * np.uint64(2 * self.pixels + 1) >> np.uint64(32)
        return steps.astype(np.int64).reshape(len(index), cameras, 2) - self.pixels


def _mix(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Uniform 64-bit words from counters: SplitMix64 (Steele et al. 2014, OOPSLA) at ``key``."""
    word = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = word ^ (word >> np.uint64(31))
    return mixed


def shift_pictures(pictures: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move the pictures' content by minus (dy, dx), repeating the border.

    Whole lines are gathered from one flat copy at their shifted starting points; the few
    pixels that then come from a neighbouring line are overwritten with the border's.

    Args:
        pictures: any dtype [B,V,H,W,C], contiguous.
        shifts: int [B,V,2], (dy, dx) of each picture, smaller than the picture.
    """
    *_, height, width, channels = pictures.shape
    by_picture = shifts.reshape(-1, 2)
    lines = np.clip(np.arange(height) + by_picture[:, :1], 0, height - 1)
    lines += np.arange(len(by_picture))[:, None] * height
    moved = _gather_lines(pictures, lines * width + by_picture[:, 1:])
    pixel = np.dtype((np.void, channels * pictures.itemsize))
    pixels = moved.view(pixel).reshape(-1, height, width)
    for dx in np.unique(by_picture[:, 1]):
        chosen = np.flatnonzero(by_picture[:, 1] == dx)
        if dx < 0:
            pixels[chosen, :, :-dx] = pixels[chosen, :, -dx : 1 - dx]
        elif dx > 0:
            pixels[chosen, :, width - dx :] = pixels[chosen, :, width - dx - 1 : width - dx]
    return moved.reshape(pictures.shape)


def _gather_lines(pictures: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The line of pixels behind each starting pixel, from -W to the last pixel: [lines, W*C]."""
    width, channels = pictures.shape[-2:]
    flat = np.empty((pictures.size // channels + 2 * width, channels), pictures.dtype)
    flat[width:-width] = pictures.reshape(-1, channels)
    # One opaque item per line lets the gather copy each with a single memcpy.
    line = np.dtype((np.void, width * channels * pictures.itemsize))
    step = channels * pictures.itemsize
    windows = np.ndarray((len(flat) - width + 1,), line, flat.data, strides=(step,))
    lines: np.ndarray = windows[starts.ravel() + width]
    return lines.view(pictures.dtype).reshape(-1, width * channels)

"""Random translation of the pictures."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.data.transforms.base import Batch, Stream, pictures_of, random_words, with_pictures


class RandomShiftConfig(Settings):
    """Shift every camera's picture by a few pixels, each on its own."""

    type: Literal["random_shift"] = "random_shift"
    pixels: int = Field(default=4, ge=1, le=64, description="Largest shift, in pixels, either way.")

    def build(self, seed: int, contract: Contract | None = None) -> RandomShift:
        return RandomShift(self.pixels, seed)


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
        """Shift ``observations.image`` [B,(T),V,C,H,W]; everything else passes through."""
        pictures = pictures_of(batch)
        if pictures is None:
            return batch
        *history, cameras, _, _, _ = pictures.shape[1:]
        shifts = self.shifts(batch, cameras)
        for length in history:
            shifts = np.repeat(shifts[:, None], length, axis=1)
        return with_pictures(batch, shift_pictures(pictures, shifts))

    def shifts(self, batch: Batch, cameras: int) -> np.ndarray:
        """(dy, dx) of each sample and camera, int64 [B,V,2]."""
        words = random_words(batch, self.seed, Stream.SHIFT, 2 * cameras)
        steps = words * np.uint64(2 * self.pixels + 1) >> np.uint64(32)
        return steps.astype(np.int64).reshape(-1, cameras, 2) - self.pixels


def shift_pictures(pictures: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Move the pictures' content by minus (dy, dx), repeating the border.

    Whole lines are gathered from one flat copy at their shifted starting points; the few
    pixels that then come from a neighbouring line are overwritten with the border's.

    Args:
        pictures: any dtype [...,H,W,C], contiguous.
        shifts: int [...,2], (dy, dx) of each picture, smaller than the picture.
    """
    height, width, channels = pictures.shape[-3:]
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

"""Rectangles on the ground, and which of them touch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_CORNERS = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], float)


@dataclass(frozen=True)
class Footprints:
    """Rectangles: centres float[V, 2] m, headings float[V] rad, half sizes float[V, 2] m."""

    centres: FloatArray
    headings: FloatArray
    halves: FloatArray

    def axes(self) -> FloatArray:
        """Unit vectors along length and width, float[V, 2, 2]."""
        cosine, sine = np.cos(self.headings), np.sin(self.headings)
        rows = np.stack([cosine, sine, -sine, cosine], axis=-1)
        return rows.reshape(-1, 2, 2)

    def corners(self) -> FloatArray:
        """float[V, 4, 2] m."""
        arms = _CORNERS * self.halves[:, None]
        axes = self.axes()
        turned = arms[..., :1] * axes[:, None, 0] + arms[..., 1:] * axes[:, None, 1]
        return np.asarray(self.centres[:, None] + turned)

    def touching(self, other: Footprints) -> NDArray[np.bool_]:
        """bool[V, W], by the separating axis theorem: no side of either divides them."""
        near = self._near(other)
        if not near.any():  # nearly always; the exact test costs ten times as much
            return near
        return ~(_divided(self, other) | _divided(other, self).T)

    def _near(self, other: Footprints) -> NDArray[np.bool_]:
        """bool[V, W]: whether the circles around them meet."""
        gaps = self.centres[:, None] - other.centres
        one, two = (np.hypot(shapes.halves[:, 0], shapes.halves[:, 1]) for shapes in (self, other))
        return np.asarray(np.hypot(gaps[..., 0], gaps[..., 1]) <= one[:, None] + two)


def _divided(by: Footprints, other: Footprints) -> NDArray[np.bool_]:
    """bool[V, W]: whether a side of the first lies between both."""
    offsets = other.corners()[None] - by.centres[:, None, None]  # V, W, 4, 2
    spans = np.einsum("vwcx,vax->vwca", offsets, by.axes())
    low, high = spans.min(axis=2), spans.max(axis=2)
    beside = (low > by.halves[:, None]) | (high < -by.halves[:, None])
    return np.asarray(beside.any(axis=-1))

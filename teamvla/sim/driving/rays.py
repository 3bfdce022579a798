"""Rays of a level sensor, cast cell by cell.

``mj_multiRay`` tests every ray against every geom. Rays that are sorted into cells of a few
degrees, each cast with only those geoms that it can meet, or not at all where there are none,
find the same hits in a fraction of the time. The ground is the plane z = 0, met by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
GROUND, NOTHING = -2, -1  # where a hit has no geom
_SEEN = np.array([1, 0, 0, 0, 0, 0], np.uint8)
_HIDDEN_GROUP = 5
_SLACK_RAD = 1e-3
_COLUMN_RAD = np.deg2rad(20.0)
_BANDS_RAD = np.deg2rad([-14.0, -6.0, 0.0, 8.0, 16.0])


@dataclass(frozen=True)
class Hits:
    """What a fan of rays met, in the fan's own order.

    Attributes:
        origin: where the rays start, m.
        rays: unit vectors in the world's frame, float[N, 3].
        geoms: int32[N]; ``GROUND`` or ``NOTHING`` where it is none.
        distances: m, float[N]; infinite where nothing was met.
        normals: of what was met, float[N, 3].
    """

    origin: FloatArray
    rays: FloatArray
    geoms: NDArray[np.int32]
    distances: FloatArray
    normals: FloatArray

    def cosines(self) -> FloatArray:
        """Of the angles between rays and what they met, 0..1, float[N]."""
        straight = self.rays * self.normals
        return np.asarray(np.abs(straight[:, 0] + straight[:, 1] + straight[:, 2]))


class Fan:
    """The rays of one sensor, which stands level, in cells of a few degrees each way.

    Args:
        rays: unit vectors in the sensor's frame (x ahead, y left, z up), float[N, 3].
        ground: whether rays meet the ground.

    Attributes:
        rays: the same, sorted by cell: the order of all hits.
        order: where each of them stood before.
    """

    def __init__(self, rays: FloatArray, ground: bool = True) -> None:
        azimuths, elevations = np.arctan2(rays[:, 1], rays[:, 0]), np.arcsin(rays[:, 2])
        columns = np.floor((azimuths + np.pi) / _COLUMN_RAD).astype(np.intp)
        cells = columns * (len(_BANDS_RAD) + 1) + np.digitize(elevations, _BANDS_RAD)
        self.order = np.argsort(cells, kind="stable")
        self.rays = np.ascontiguousarray(rays[self.order])
        starts = np.unique(cells[self.order], return_index=True)[1]
        self._bounds = [*starts.tolist(), len(rays)]
        self._azimuths = _spans(azimuths[self.order], starts)
        self._elevations = _spans(elevations[self.order], starts)
        self._ground = ground
        self._geoms = np.empty(len(rays), np.int32)
        self._distances, self._normals = np.empty(len(rays)), np.empty((len(rays), 3))

    def cast(
        self, model: Any, data: Any, origin: FloatArray, heading: float, reach: float, but: int
    ) -> Hits:
        """What the rays meet within ``reach`` m, leaving out the body ``but``."""
        rays = self._turned(heading)
        inside = self._inside(model, data, origin, heading, reach)
        inside &= np.asarray(model.geom_bodyid) != but
        groups, hidden = model.geom_group, np.where(inside, 0, _HIDDEN_GROUP).astype(np.int32)
        before = groups.copy()
        self._geoms[:] = NOTHING
        for cell in np.flatnonzero(inside.any(axis=1)).tolist():
            groups[:] = hidden[cell]
            first, last = self._bounds[cell], self._bounds[cell + 1]
            part = slice(first, last)
            mujoco.mj_multiRay(
                model, data, origin, rays[part].reshape(-1), _SEEN, True, but, self._geoms[part],
                self._distances[part], self._normals[part].reshape(-1), last - first, reach,
            )  # fmt: skip
        groups[:] = before
        return self._collect(origin, rays, reach)

    def _turned(self, heading: float) -> FloatArray:
        """The rays in the world's frame."""
        cosine, sine = np.cos(heading), np.sin(heading)
        ahead, left = self.rays[:, 0], self.rays[:, 1]
        rays = np.empty_like(self.rays)
        rays[:, 0] = ahead * cosine - left * sine
        rays[:, 1] = ahead * sine + left * cosine
        rays[:, 2] = self.rays[:, 2]
        return rays

    def _inside(
        self, model: Any, data: Any, origin: FloatArray, heading: float, reach: float
    ) -> NDArray[np.bool_]:
        """bool[cells, G]: which geoms, upright boxes all, a ray of a cell could meet."""
        offsets, size = data.geom_xpos - origin, model.geom_size
        flat, radius = np.hypot(offsets[:, 0], offsets[:, 1]), np.hypot(size[:, 0], size[:, 1])
        near, far = np.maximum(flat - radius, 1e-3), flat + radius
        ratio = np.minimum(1.0, radius / np.maximum(flat, 1e-9))
        width = np.where(flat > radius, np.arcsin(ratio), np.pi)
        bearing = np.arctan2(offsets[:, 1], offsets[:, 0]) - heading
        middles, halves = self._azimuths
        apart = np.abs((bearing - middles[:, None] + np.pi) % (2 * np.pi) - np.pi)
        top, bottom = offsets[:, 2] + size[:, 2], offsets[:, 2] - size[:, 2]
        highest = np.arctan2(top, np.where(top > 0, near, far)) + _SLACK_RAD
        lowest = np.arctan2(bottom, np.where(bottom < 0, near, far)) - _SLACK_RAD
        level, spread = (part[:, None] for part in self._elevations)
        between = (level - spread <= highest) & (level + spread >= lowest)
        beside = apart > halves[:, None] + width + _SLACK_RAD
        return np.asarray(between & ~beside & (near <= reach))

    def _collect(self, origin: FloatArray, rays: FloatArray, reach: float) -> Hits:
        geoms, distances, normals = self._geoms, self._distances, self._normals
        missed = geoms < 0
        distances[missed], normals[missed] = np.inf, 0.0
        if self._ground:
            with np.errstate(divide="ignore"):
                down = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
            below = (down < distances) & (down <= reach)
            distances[below], geoms[below] = down[below], GROUND
            normals[below] = (0.0, 0.0, 1.0)
        return Hits(origin, rays, geoms, distances, normals)


def _spans(angles: FloatArray, starts: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
    """Middle and half width of the angles in each cell, rad."""
    low, high = np.minimum.reduceat(angles, starts), np.maximum.reduceat(angles, starts)
    return (low + high) / 2, (high - low) / 2

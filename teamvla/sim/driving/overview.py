"""The surroundings of the ego from above, for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import ground
from teamvla.sim.driving.footprints import Footprints
from teamvla.sim.driving.roads import FloatArray
from teamvla.sim.driving.world import DrivingWorld

_HEIGHT, _WIDTH = 240, 320
_CELL_M = 0.25
_SAMPLES = 3  # of the ground along each side of a pixel: lines are narrower than a pixel
_AHEAD_M = 12.0  # of the ego is the middle of the picture


def overview(world: DrivingWorld) -> NDArray[np.uint8]:
    """East is right, north is up; uint8[240, 320, 3]. The ego is red."""
    middle = world.vehicle.pose[:2] + np.array([_AHEAD_M, 0.0])
    points = _points(middle, 1)
    colours = _ground(middle)
    drawn = world.drawn
    _fill(colours, points, world.standing, np.concatenate(
        [drawn["parked_colour"], drawn["building_colour"]]))  # fmt: skip
    _fill(colours, points, world.traffic.footprints(), drawn["traffic_colour"])
    _fill(colours, points, world.ego_footprint(), np.array([[0.85, 0.1, 0.1]]))
    levels = np.clip(colours, 0.0, 1.0) * 255.0 + 0.5
    return np.asarray(levels.astype(np.uint8).reshape(_HEIGHT, _WIDTH, 3))


def _points(middle: FloatArray, samples: int) -> FloatArray:
    """Where the pixels are, with so many samples along each side of one; float[N, 2] m."""
    rows, columns, cell = _HEIGHT * samples, _WIDTH * samples, _CELL_M / samples
    east = middle[0] + (np.arange(columns) - columns / 2 + 0.5) * cell
    north = middle[1] - (np.arange(rows) - rows / 2 + 0.5) * cell
    return np.stack(np.meshgrid(east, north), axis=-1).reshape(-1, 2)


def _ground(middle: FloatArray) -> FloatArray:
    """Colours of the ground, of each pixel the mean; float[N, 3] in 0..1."""
    kinds = ground.surfaces(_points(middle, _SAMPLES))
    tiles = kinds.reshape(_HEIGHT, _SAMPLES, _WIDTH, _SAMPLES)
    colours = np.zeros((_HEIGHT, _WIDTH, 3))
    for kind, colour in enumerate(ground.COLOURS):
        colours += (tiles == kind).mean(axis=(1, 3))[..., None] * colour
    return colours.reshape(-1, 3)


def _fill(colours: FloatArray, points: FloatArray, shapes: Footprints, paint: FloatArray) -> None:
    for centre, axes, half, colour in zip(
        shapes.centres, shapes.axes(), shapes.halves, paint, strict=True
    ):
        offsets = points - centre
        along = offsets[:, 0] * axes[0, 0] + offsets[:, 1] * axes[0, 1]
        aside = offsets[:, 0] * axes[1, 0] + offsets[:, 1] * axes[1, 1]
        colours[(np.abs(along) < half[0]) & (np.abs(aside) < half[1])] = colour

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
_AHEAD_M = 12.0  # of the ego is the middle of the picture


def overview(world: DrivingWorld) -> NDArray[np.uint8]:
    """East is right, north is up; uint8[240, 320, 3]. The ego is red."""
    middle = world.vehicle.pose[:2] + np.array([_AHEAD_M, 0.0])
    east = middle[0] + (np.arange(_WIDTH) - _WIDTH / 2 + 0.5) * _CELL_M
    north = middle[1] - (np.arange(_HEIGHT) - _HEIGHT / 2 + 0.5) * _CELL_M
    points = np.stack(np.meshgrid(east, north), axis=-1).reshape(-1, 2)
    colours = ground.COLOURS[ground.surfaces(points)]
    drawn = world.drawn
    _fill(colours, points, world.standing, np.concatenate(
        [drawn["parked_colour"], drawn["building_colour"]]))  # fmt: skip
    _fill(colours, points, world.traffic.footprints(), drawn["traffic_colour"])
    _fill(colours, points, world.ego_footprint(), np.array([[0.85, 0.1, 0.1]]))
    levels = np.clip(colours, 0.0, 1.0) * 255.0 + 0.5
    return np.asarray(levels.astype(np.uint8).reshape(_HEIGHT, _WIDTH, 3))


def _fill(colours: FloatArray, points: FloatArray, shapes: Footprints, paint: FloatArray) -> None:
    for centre, axes, half, colour in zip(
        shapes.centres, shapes.axes(), shapes.halves, paint, strict=True
    ):
        offsets = points - centre
        along = offsets[:, 0] * axes[0, 0] + offsets[:, 1] * axes[0, 1]
        aside = offsets[:, 0] * axes[1, 0] + offsets[:, 1] * axes[1, 1]
        colours[(np.abs(along) < half[0]) & (np.abs(aside) < half[1])] = colour

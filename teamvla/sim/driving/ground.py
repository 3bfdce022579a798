"""The ground, painted: what surface lies where."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import roads
from teamvla.sim.driving.roads import CROSS_LINE_M, LANE_M, MAIN_LINE_M, FloatArray

GRASS, PAVEMENT, ASPHALT, WHITE, YELLOW = range(5)
COLOURS = np.array(
    [(0.42, 0.52, 0.32), (0.66, 0.65, 0.62), (0.31, 0.32, 0.34), (0.95, 0.95, 0.93),
     (0.93, 0.75, 0.22)]
)  # fmt: skip
#: Share of LiDAR light that comes back; road paint is made to reflect.
REFLECTIVITY = np.array([0.35, 0.3, 0.12, 0.8, 0.7])
_REACH_M, _CELL_M = 110.0, 0.1
_LINE_M = 0.16
_PAVEMENT_M = 5.5  # wide, kerbside parking included
_DASH_M, _PERIOD_M = 3.0, 7.5


def surfaces(points: FloatArray) -> NDArray[np.uint8]:
    """The surface at float[N, 2] m."""
    chart = _chart()
    cells = ((points + _REACH_M) / _CELL_M).astype(np.intp)
    np.clip(cells, 0, len(chart) - 1, out=cells)
    return np.asarray(chart[cells[:, 0], cells[:, 1]])


@lru_cache(maxsize=1)
def _chart() -> NDArray[np.uint8]:
    """Surfaces as a map of 0.1 m cells, [x, y]."""
    middles = np.arange(-_REACH_M + _CELL_M / 2, _REACH_M, _CELL_M)
    east, north = np.meshgrid(middles, middles, indexing="ij")
    chart = np.full(east.shape, GRASS, np.uint8)
    beside = (np.abs(east) < roads.CROSS_HALF_M + _PAVEMENT_M) | (
        np.abs(north) < roads.MAIN_HALF_M + _PAVEMENT_M
    )
    chart[beside] = PAVEMENT
    chart[roads.drivable(np.stack([east, north], axis=-1))] = ASPHALT
    _mark(chart, east, north, MAIN_LINE_M, lanes=2)
    _mark(chart, north, east, CROSS_LINE_M, lanes=1)
    return chart


def _mark(
    chart: NDArray[np.uint8],
    along: FloatArray,
    aside: FloatArray,
    stop_m: float,
    lanes: int,
) -> None:
    """Lines of one road: edges, lanes, middle and stop lines."""
    line = _LINE_M / 2
    open_road = np.abs(along) > stop_m
    distance = np.abs(aside)
    chart[open_road & (np.abs(distance - 0.18) < line)] = YELLOW
    chart[open_road & (np.abs(distance - (lanes * LANE_M - 0.25)) < line)] = WHITE
    dashes = (np.abs(along) - stop_m) % _PERIOD_M < _DASH_M
    if lanes > 1:
        chart[open_road & dashes & (np.abs(distance - LANE_M) < line)] = WHITE
    # Traffic keeps to the right: eastbound traffic stops at x < 0 with y < 0 and so on.
    incoming = along * aside > 0 if lanes > 1 else along * aside < 0
    on_road = (distance < lanes * LANE_M - 0.3) & (distance > 0.3)
    chart[incoming & on_road & (np.abs(np.abs(along) - stop_m - 0.25) < 0.25)] = WHITE

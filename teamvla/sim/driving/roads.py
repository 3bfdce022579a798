"""The roads: lanes, the routes of the ego vehicle, where one crosses the other, what is drivable.

Two roads cross at the origin. The main road runs along x with two lanes each way, the cross road
along y with one lane each way; traffic keeps to the right, and the cross road has the right of
way. Frame: x east, y north, z up; metres, radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
RouteName = Literal["keep_lane", "turn_left", "turn_right", "stop_behind"]
ROUTES: tuple[RouteName, ...] = ("keep_lane", "turn_left", "turn_right", "stop_behind")

LANE_M = 3.5  # width of a lane
MAIN_HALF_M, CROSS_HALF_M = 2 * LANE_M, LANE_M  # from the middle of a road to its kerb
KERB_RADIUS_M = 6.25  # of the rounded corners of the crossing
FAR_M = 160.0  # lanes begin and end so far from the crossing
MAIN_LINE_M, CROSS_LINE_M = 12.5, 15.0  # stop lines, from the middle of the crossing
CLEAR_M = 2.3  # two vehicles whose middle lines are closer than this may touch
_BENDS = {"turn_left": (11.0, 1.0), "turn_right": (8.0, -1.0)}  # radius, m, and side
_SPACING_M = 0.25  # between the samples of a route
LEAD_IN_M = 110.0  # a route begins so far before the middle of the crossing
_BEYOND_M = 120.0  # and goes on for so long behind it
_MERGED_M = 9.0  # once so far along a lane that it joins, the ego is part of its traffic


@dataclass(frozen=True)
class Lane:
    """A straight lane.

    Attributes:
        origin: where its middle line begins, m.
        heading: of its traffic, rad.
        stop_m: its stop line, along the lane.
        priority: whether its traffic has the right of way at the crossing.
    """

    name: str
    origin: tuple[float, float]
    heading: float
    stop_m: float
    priority: bool

    def along(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of points float[..., 2]: how far along the lane, how far to the left of its middle, m."""
        cosine, sine = math.cos(self.heading), math.sin(self.heading)
        east, north = points[..., 0] - self.origin[0], points[..., 1] - self.origin[1]
        return east * cosine + north * sine, north * cosine - east * sine


_HALF = LANE_M / 2
_MAIN_STOP, _CROSS_STOP = FAR_M - MAIN_LINE_M, FAR_M - CROSS_LINE_M
LANES = (
    Lane("east_inner", (-FAR_M, -_HALF), 0.0, _MAIN_STOP, False),
    Lane("east_outer", (-FAR_M, -3 * _HALF), 0.0, _MAIN_STOP, False),
    Lane("west_inner", (FAR_M, _HALF), math.pi, _MAIN_STOP, False),
    Lane("west_outer", (FAR_M, 3 * _HALF), math.pi, _MAIN_STOP, False),
    Lane("north", (_HALF, -FAR_M), math.pi / 2, _CROSS_STOP, True),
    Lane("south", (-_HALF, FAR_M), -math.pi / 2, _CROSS_STOP, True),
)
EAST_INNER, EAST_OUTER, WEST_INNER, WEST_OUTER, NORTH, SOUTH = range(6)


@dataclass(frozen=True)
class Zone:
    """Where a route and a lane share the ground: an interval along each, m."""

    lane: int
    route_m: tuple[float, float]
    lane_m: tuple[float, float]
    joins: bool


@dataclass(frozen=True)
class Route:
    """The way of the ego vehicle's rear axle, as samples every 0.25 m.

    Attributes:
        points: float[N, 2] m.
        headings: float[N] rad, without jumps.
        curvature: float[N] 1/m, positive to the left.
        stop_m: where it meets the stop line.
        goal_m: from here on the route counts as driven.
        zones: what it shares with other lanes.
    """

    name: RouteName
    points: FloatArray
    headings: FloatArray
    curvature: FloatArray
    stop_m: float
    goal_m: float
    zones: tuple[Zone, ...]

    def at(self, where_m: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Points float[..., 2] and headings float[...] at distances along the route."""
        index = np.asarray(where_m) / _SPACING_M
        low = np.clip(index.astype(np.intp), 0, len(self.points) - 2)
        part = index - low
        between = self.points[low] + part[..., None] * (self.points[low + 1] - self.points[low])
        turned = self.headings[low] + part * (self.headings[low + 1] - self.headings[low])
        return between, turned

    def project(self, point: FloatArray) -> tuple[float, float]:
        """How far along the route its nearest point is, and how far left of it ``point`` lies."""
        offsets = self.points - point
        nearest = int(np.argmin(offsets[:, 0] ** 2 + offsets[:, 1] ** 2))
        heading = float(self.headings[nearest])
        east, north = -offsets[nearest]
        along = east * math.cos(heading) + north * math.sin(heading)
        left = north * math.cos(heading) - east * math.sin(heading)
        return nearest * _SPACING_M + float(along), float(left)

    def project_all(self, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The same of float[V, 2], to a sample: along, distance aside, heading of the route."""
        gaps = self.points[None] - points[:, None]
        squares = gaps[..., 0] ** 2 + gaps[..., 1] ** 2
        nearest = squares.argmin(axis=1)
        aside = np.sqrt(squares[np.arange(len(points)), nearest])
        return nearest * _SPACING_M, aside, self.headings[nearest]

    def bend_ahead(self, from_m: float, length_m: float) -> FloatArray:
        """Absolute curvature of the samples in an interval; beyond the end it goes straight on."""
        first = max(0, int(from_m / _SPACING_M))
        samples = self.curvature[first : first + 1 + int(length_m / _SPACING_M)]
        return np.abs(samples) if len(samples) else np.zeros(1)


@lru_cache(maxsize=16)
def route(name: RouteName, lane: int) -> Route:
    """The route of that name which begins in ``lane`` (EAST_INNER or EAST_OUTER)."""
    y = LANES[lane].origin[1]
    curvature = [0.0] * int(LEAD_IN_M / _SPACING_M)
    if name in _BENDS:
        radius, sign = _BENDS[name]
        before = sign * _HALF - radius  # so that it ends in the lane of the cross road
        curvature = [0.0] * round((LEAD_IN_M + before) / _SPACING_M)
        curvature += [sign / radius] * round(radius * math.pi / 2 / _SPACING_M)
    curvature += [0.0] * int(_BEYOND_M / _SPACING_M)
    bends = np.array(curvature)
    headings = np.concatenate([[0.0], np.cumsum(bends * _SPACING_M)])
    middle = (headings[1:] + headings[:-1]) / 2
    steps = _SPACING_M * np.stack([np.cos(middle), np.sin(middle)], axis=-1)
    begin = np.array([-LEAD_IN_M, y])
    points = np.concatenate([begin[None], begin + np.cumsum(steps, axis=0)])
    stop_m, turn = LEAD_IN_M - MAIN_LINE_M, np.flatnonzero(bends)
    goal_m = (turn[-1] * _SPACING_M if len(turn) else LEAD_IN_M + CROSS_LINE_M) + 15.0
    zones = tuple(zone for index in range(len(LANES)) if (zone := _zone(points, headings, index)))
    return Route(name, points, headings, np.append(bends, 0.0), stop_m, goal_m, zones)


def _zone(points: FloatArray, headings: FloatArray, index: int) -> Zone | None:
    """What a route shares with a lane that crosses it or that it joins."""
    lane = LANES[index]
    along, left = lane.along(points)
    near = np.flatnonzero(np.abs(left) < CLEAR_M)
    if len(near) == 0 or (lane.heading == 0.0 and abs(headings[near[0]]) < 0.1):
        return None
    joins = bool(near[-1] == len(points) - 1)
    if joins:
        near = near[: max(1, int(_MERGED_M / _SPACING_M))]
    route_m = (float(near[0]) * _SPACING_M, float(near[-1]) * _SPACING_M)
    return Zone(index, route_m, (float(along[near].min()), float(along[near].max())), joins)


def drivable(points: FloatArray) -> NDArray[np.bool_]:
    """Which of float[..., 2] lie on the roads, the rounded corners of the crossing included."""
    east, north = np.abs(points[..., 0]), np.abs(points[..., 1])
    beyond_cross, beyond_main = east - CROSS_HALF_M, north - MAIN_HALF_M
    corner = (beyond_cross < KERB_RADIUS_M) & (beyond_main < KERB_RADIUS_M)
    inset = np.hypot(KERB_RADIUS_M - beyond_cross, KERB_RADIUS_M - beyond_main) > KERB_RADIUS_M
    return np.asarray((beyond_cross < 0) | (beyond_main < 0) | (corner & inset))


def lane_points(lanes: NDArray[np.intp], along: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Middle points float[V, 2] and headings float[V] of vehicles in their lanes."""
    headings = _HEADINGS[lanes]
    return _ORIGINS[lanes] + along[:, None] * _DIRECTIONS[lanes], headings


_ORIGINS = np.array([lane.origin for lane in LANES])
_HEADINGS = np.array([lane.heading for lane in LANES])
_DIRECTIONS = np.stack([np.cos(_HEADINGS), np.sin(_HEADINGS)], axis=-1).round(12)
STOPS_M = np.array([lane.stop_m for lane in LANES])
PRIORITY = np.array([lane.priority for lane in LANES])

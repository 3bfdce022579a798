"""Traffic that keeps its lanes and distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import idm, layout, roads
from teamvla.sim.driving.footprints import Footprints
from teamvla.sim.driving.idm import Manner
from teamvla.sim.driving.layout import Layout
from teamvla.sim.driving.planner import Ego, Others
from teamvla.sim.driving.roads import LANES, FloatArray
from teamvla.sim.driving.vehicle import LENGTH_M, MIDDLE_M, WIDTH_M

_MANNER = Manner(headway_s=1.1, gap_m=2.5, acceleration=1.6, braking=2.5, hardest=7.0)
_STEP_S = 0.05
_WINDOW_S = 8.0  # how long before the crossing a vehicle has the right of way
_CLEAR_M = roads.FAR_M + 12.0  # of the cross road: behind the crossing
_STILL = 0.3  # m/s
_ALIGNED = 0.7  # cosine: the ego drives in a lane, it does not cut across
_INSIDE_M = 1.7  # from a lane's middle


class Traffic:
    """All other vehicles that drive.

    Each follows the one ahead in its lane, the ego included once it is in the lane, by the
    Intelligent Driver Model. Those on the main road wait at their stop line while somebody on the
    cross road is less than 8 s away and moves. Nobody brakes for an ego that cuts across.

    Attributes:
        along: of their middles along their lanes, m, float[V].
        speeds: m/s, float[V].
        time: since the reset, s.
    """

    def __init__(self, drawn: Layout) -> None:
        rows = drawn["traffic"]
        self.lanes = rows[:, layout.LANE].astype(np.intp)
        self.along, self.speeds = rows[:, layout.ALONG].copy(), rows[:, layout.SPEED].copy()
        self._desired, self._lengths = rows[:, layout.DESIRED], rows[:, layout.LENGTH]
        self._halt_at, self._halt_until = rows[:, layout.HALT_AT], rows[:, layout.HALT_UNTIL]
        self._same_lane = self.lanes[:, None] == self.lanes[None]
        self._stops = roads.STOPS_M[self.lanes]
        self._priority = roads.PRIORITY[self.lanes]
        self.time = 0.0

    def advance(self, ego: Ego) -> None:
        """One control step of 50 ms."""
        gaps, leaders = self._leaders()
        self._behind_ego(ego, gaps, leaders)
        self._behind_lines(gaps, leaders)
        gain = idm.acceleration(self.speeds, self._desired, gaps, leaders, _MANNER)
        before = self.speeds
        self.speeds = np.maximum(0.0, before + gain * _STEP_S)
        self.along = self.along + (before + self.speeds) / 2 * _STEP_S
        self.time += _STEP_S

    def points(self) -> tuple[FloatArray, FloatArray]:
        """Middles float[V, 2] m and headings float[V] rad."""
        return roads.lane_points(self.lanes, self.along)

    def velocities(self) -> FloatArray:
        """float[V, 2] m/s."""
        _, headings = self.points()
        ways = np.stack([np.cos(headings), np.sin(headings)], axis=-1)
        return np.asarray(self.speeds[:, None] * ways)

    def others(self) -> Others:
        """What a driver knows of them."""
        points, headings = self.points()
        return Others(
            self.lanes, self.along, self.speeds, self._desired, self._lengths, points, headings
        )

    def footprints(self) -> Footprints:
        points, headings = self.points()
        halves = np.stack([self._lengths / 2, np.full(len(points), WIDTH_M / 2)], axis=-1)
        return Footprints(points, headings, halves)

    def state(self) -> NDArray[np.float64]:
        """All that decides how they go on."""
        return np.concatenate([self.along, self.speeds, [self.time]])

    def restore(self, state: NDArray[np.float64]) -> None:
        """Go back to what :meth:`state` gave."""
        count = len(self.along)
        self.along, self.speeds = state[:count].copy(), state[count : 2 * count].copy()
        self.time = float(state[-1])

    def _leaders(self) -> tuple[FloatArray, FloatArray]:
        """Gap to the next vehicle in the lane, m, and its speed, m/s."""
        ahead = self.along[None] - self.along[:, None]
        ahead = np.where(self._same_lane & (ahead > 0), ahead, np.inf)
        nearest = ahead.argmin(axis=1)
        reach = ahead[np.arange(len(ahead)), nearest]
        return reach - (self._lengths + self._lengths[nearest]) / 2, self.speeds[nearest]

    def _behind_ego(self, ego: Ego, gaps: FloatArray, leaders: FloatArray) -> None:
        middle = ego.pose[:2] + MIDDLE_M * np.array([np.cos(ego.pose[2]), np.sin(ego.pose[2])])
        for index, lane in enumerate(LANES):
            along, left = lane.along(middle)
            aligned = np.cos(ego.pose[2] - lane.heading)
            if abs(left) < _INSIDE_M and aligned > _ALIGNED:
                gap = along - self.along - (LENGTH_M + self._lengths) / 2
                closer = (self.lanes == index) & (along > self.along) & (gap < gaps)
                gaps[closer], leaders[closer] = gap[closer], ego.speed * aligned

    def _behind_lines(self, gaps: FloatArray, leaders: FloatArray) -> None:
        """Who waits: at a stop line, or where it halts of its own accord."""
        fronts = self.along + self._lengths / 2
        to_line = self._stops - fronts
        coming = self._priority & (self.speeds > _STILL) & (self.along < _CLEAR_M)
        coming &= roads.FAR_M - self.along < _WINDOW_S * self.speeds
        can_stop = to_line > self.speeds**2 / (2 * 5.0) - 0.3
        waits = ~self._priority & bool(coming.any()) & can_stop & (to_line > -1.0)
        _nearer(gaps, leaders, waits, to_line + 2.0)
        halts = self.time < self._halt_until
        _nearer(gaps, leaders, halts, self._halt_at - self.along + _MANNER.gap_m)


def _nearer(
    gaps: FloatArray, leaders: FloatArray, where: NDArray[np.bool_], gap: FloatArray
) -> None:
    """Something stands at ``gap``, if it is nearer than what is there already."""
    closer = where & (gap < gaps)
    gaps[closer], leaders[closer] = np.maximum(gap[closer], 0.05), 0.0

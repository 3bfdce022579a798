"""What a careful driver does: along the route, behind others, and at the crossing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from teamvla.sim.driving.idm import Manner, acceleration_of
from teamvla.sim.driving.roads import FloatArray, Route
from teamvla.sim.driving.vehicle import (
    FRONT_M,
    GREATEST_ACCELERATION,
    LEAST_ACCELERATION,
    MAX_STEERING,
    MIDDLE_M,
    WHEELBASE_M,
)

CRUISE = 8.5  # m/s
_SIDEWAYS = 2.2  # m/s^2 that are comfortable in a bend
_MANNER = Manner(headway_s=1.2, gap_m=3.0, acceleration=2.0, braking=2.5, hardest=6.0)
_BRAKING = 2.0  # m/s^2, ahead of bends
_LOOK_M = 30.0  # ahead for bends
_MARGIN_S = 1.3  # of time between the ego and others in the crossing
_JOINING_S = 3.0  # more where the ego becomes the leader of somebody faster
_PAUSE = 0.3  # m/s; a vehicle on the cross road that is slower has stopped and gives way
_HOLD_GAP_M = 4.5


def speed_limit(route: Route, where_m: float) -> float:
    """Speed from which every bend ahead can be met, m/s."""
    bends = route.bend_ahead(where_m, _LOOK_M)
    ahead = np.arange(len(bends)) * 0.25
    allowed = np.sqrt(_SIDEWAYS / np.maximum(bends, 1e-3)) ** 2 + 2 * _BRAKING * ahead
    return min(CRUISE, math.sqrt(float(allowed.min())))


def free_time(route: Route, from_m: float, to_m: float) -> float:
    """How long the way takes from standing still if nobody is in the way, s."""
    where, speed, time = from_m, 0.0, 0.0
    while where < to_m:
        gain = acceleration_of(speed, speed_limit(route, where), math.inf, 0.0, _MANNER)
        speed = max(0.0, speed + 0.1 * gain)
        where, time = where + 0.1 * speed, time + 0.1
    return time


@dataclass(frozen=True)
class Others:
    """The vehicles that a driver knows of.

    Attributes:
        lanes: int[V].
        along: of their middles along their lanes, m, float[V].
        speeds: m/s, float[V].
        desired: speed on a free road, m/s, float[V].
        lengths: m, float[V].
        points: float[V, 2] m.
        headings: float[V] rad.
    """

    lanes: np.ndarray
    along: FloatArray
    speeds: FloatArray
    desired: FloatArray
    lengths: FloatArray
    points: FloatArray
    headings: FloatArray

    def without(self, ignored: frozenset[int]) -> Others:
        """As a driver sees them who does not notice some."""
        keep = [index for index in range(len(self.lanes)) if index not in ignored]
        return Others(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Ego:
    """Where the ego is: pose of the rear axle, speed, place on the route, distance left of it."""

    pose: FloatArray
    speed: float
    along: float
    left: float


@dataclass(frozen=True)
class Plan:
    """A decision.

    Attributes:
        phase: in words.
        gap: to what the driver keeps behind, bumper to bumper, m; infinite if there is nothing.
        leader: its speed, m/s.
        acceleration: command, m/s^2.
        steering: command, rad.
    """

    phase: str
    gap: float
    leader: float
    acceleration: float
    steering: float


def decide(route: Route, ego: Ego, others: Others) -> Plan:
    """The command of this moment; a function of nothing but its arguments.

    Along the road the Intelligent Driver Model behind the nearest vehicle on the route, or behind
    the stop line while somebody has the right of way; sideways pure pursuit (Coulter,
    CMU-RI-TR-92-01, 1992).
    """
    gap, leader = _leader(route, ego, others)
    phase = _phase(route, ego, gap)
    to_line = route.stop_m - ego.along - FRONT_M
    if -1.0 < to_line < 40.0 and _must_yield(route, ego, others, to_line) and to_line + 2.0 < gap:
        gap, leader, phase = to_line + 2.0, 0.0, "yield at the crossing"
    limit = speed_limit(route, ego.along)
    value = acceleration_of(ego.speed, limit, gap, leader, _MANNER)
    if ego.speed < 0.4 and gap < _HOLD_GAP_M and leader < 0.2:
        value = -2.0  # the model would creep for ever
    value = min(GREATEST_ACCELERATION, max(LEAST_ACCELERATION, value))
    return Plan(phase, gap, leader, value, _pursue(route, ego))


def trajectory(route: Route, ego: Ego, plan: Plan, count: int, spacing_s: float) -> FloatArray:
    """Where the plan leads, float[count, 2] m in the ego's frame (x ahead, y left).

    The model is driven on along the route behind a leader that keeps its present speed, in steps
    of 0.1 s; the distance from the route shrinks with a time constant of 1 s.
    """
    where, speed, gap = ego.along, ego.speed, plan.gap
    every, places = max(1, round(spacing_s / 0.1)), []
    limit = speed_limit(route, where)
    for step in range(1, count * every + 1):
        if step % 5 == 0:
            limit = speed_limit(route, where)
        gain = acceleration_of(speed, limit, gap, plan.leader, _MANNER)
        if speed < 0.4 and gap < _HOLD_GAP_M and plan.leader < 0.2:
            gain = -2.0
        speed = max(0.0, speed + 0.1 * gain)
        where, gap = where + 0.1 * speed, gap + 0.1 * (plan.leader - speed)
        if step % every == 0:
            places.append(where)
    return _in_frame(route, ego, np.array(places))


def _in_frame(route: Route, ego: Ego, places: FloatArray) -> FloatArray:
    points, headings = route.at(places)
    travelled = 1.0 - np.exp(-(places - ego.along) / max(4.0, CRUISE * 0.5))
    aside = ego.left * (1.0 - travelled)
    points = points + aside[:, None] * np.stack([-np.sin(headings), np.cos(headings)], axis=-1)
    offsets = points - ego.pose[:2]
    cosine, sine = math.cos(ego.pose[2]), math.sin(ego.pose[2])
    ahead = offsets[:, 0] * cosine + offsets[:, 1] * sine
    left = offsets[:, 1] * cosine - offsets[:, 0] * sine
    return np.stack([ahead, left], axis=-1)


def _leader(route: Route, ego: Ego, others: Others) -> tuple[float, float]:
    """Gap and speed of the nearest vehicle that drives on the route ahead."""
    if len(others.lanes) == 0:
        return math.inf, 0.0
    along, aside, headings = route.project_all(others.points)
    gaps = along - others.lengths / 2 - ego.along - FRONT_M
    same_way = np.cos(others.headings - headings) > 0.5
    ahead = same_way & (aside < 1.7) & (along > ego.along + MIDDLE_M)
    if not ahead.any():
        return math.inf, 0.0
    nearest = int(np.argmin(np.where(ahead, gaps, np.inf)))
    return float(gaps[nearest]), float(others.speeds[nearest])


def _phase(route: Route, ego: Ego, gap: float) -> str:
    if gap < 25.0:
        return "stop behind the vehicle" if route.name == "stop_behind" else "follow the vehicle"
    if route.name.startswith("turn") and route.bend_ahead(ego.along, 6.0).max() > 0.0:
        return route.name.replace("_", " ")
    if route.stop_m - 25.0 < ego.along < route.stop_m:
        return "approach the crossing"
    return "keep the lane"


def _must_yield(route: Route, ego: Ego, others: Others, to_line: float) -> bool:
    """Whether the ego would be in somebody's way in the crossing, and can still stop."""
    if to_line < ego.speed**2 / (2 * 5.5) - 0.5:
        return False
    for zone in route.zones:
        inside = zone.route_m[0] - ego.along - FRONT_M, zone.route_m[1] - ego.along + 1.0
        enters = _travel_time(inside[0], ego.speed, 1.6, 7.0)
        leaves = _travel_time(inside[1], ego.speed, 1.6, 5.0 if route.name != "keep_lane" else 7.0)
        enters, leaves = enters - _MARGIN_S, leaves + _MARGIN_S
        leaves += _JOINING_S if zone.joins else 0.0
        for index in np.flatnonzero(others.lanes == zone.lane):
            if _meets(zone.lane_m, others, int(index), enters, leaves):
                return True
    return False


def _meets(
    lane_m: tuple[float, float], others: Others, index: int, enters: float, leaves: float
) -> bool:
    """Whether a vehicle is in an interval of its lane between two times from now."""
    half = float(others.lengths[index]) / 2
    along, speed = float(others.along[index]), float(others.speeds[index])
    if along - half > lane_m[1] + 0.5:
        return False
    waits = speed < _PAUSE
    if waits and others.lanes[index] >= 4:  # NORTH, SOUTH: who has the right of way and stands
        return False
    first = _travel_time(lane_m[0] - along - half, speed, 1.5, float(others.desired[index]))
    if waits:
        return first < leaves
    last = (lane_m[1] - along + half) / speed
    return first < leaves and last > enters


def _travel_time(distance: float, speed: float, gain: float, top: float) -> float:
    """Time for a distance (m) when speeding up to ``top``, s."""
    if distance <= 0:
        return 0.0
    top = max(top, speed)
    run_up = (top**2 - speed**2) / (2 * gain)
    if run_up >= distance:
        return (math.sqrt(speed**2 + 2 * gain * distance) - speed) / gain
    return (top - speed) / gain + (distance - run_up) / top


def _pursue(route: Route, ego: Ego) -> float:
    look = 2.8 + 0.3 * ego.speed
    point, _ = route.at(ego.along + look)
    east, north = point - ego.pose[:2]
    bearing = math.atan2(north, east) - float(ego.pose[2])
    angle = math.atan2(2 * WHEELBASE_M * math.sin(bearing), math.hypot(east, north))
    return min(MAX_STEERING, max(-MAX_STEERING, angle))

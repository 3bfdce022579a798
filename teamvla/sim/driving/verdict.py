"""How an episode stands: success, what went wrong, reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teamvla.sim.driving import layout, roads
from teamvla.sim.driving.planner import Ego
from teamvla.sim.driving.task import DrivingReward
from teamvla.sim.driving.vehicle import FRONT_M
from teamvla.sim.driving.world import DrivingWorld

_ASTRAY_M = 2.6  # from the middle of the route, where the neighbouring lane begins to matter
_IN_LANE_M, _ALIGNED = 0.9, 0.95  # at the goal: distance and cosine of the heading
_STANDING = 0.2  # m/s
_BEHIND_M = (1.0, 7.0)  # gap of somebody who stopped behind


@dataclass(frozen=True)
class Verdict:
    """What holds at this step.

    Attributes:
        success: the goal is met.
        collision: the ego touches a vehicle or a building.
        off_road: a corner of the ego is off the road.
        off_route: the ego is so far from its route that it is in another lane.
        progress: share of the way that is done, 0..1.
        left: of the route's middle, m.
    """

    success: bool
    collision: bool
    off_road: bool
    off_route: bool
    progress: float
    left: float

    @property
    def failed(self) -> bool:
        """Whether the episode cannot succeed any more."""
        return self.collision or self.off_road or self.off_route

    def reward(self, weights: DrivingReward) -> float:
        """``progress * share of the way + lane * exp(-(distance from the middle)^2)`` while
        under way, plus ``success`` where the goal is met; 0 after a failure."""
        if self.failed:
            return 0.0
        in_lane = self.progress * float(np.exp(-(self.left**2)))
        goal = weights.success * self.success
        return float(weights.progress * self.progress + weights.lane * in_lane + goal)


def judge(world: DrivingWorld) -> Verdict:
    """The verdict on a world as it is now."""
    ego = world.ego()
    corners = world.ego_footprint().corners()[0]
    collision = world.touched()
    off_road = not bool(roads.drivable(corners).all())
    off_route = abs(ego.left) > _ASTRAY_M
    behind = world.route.name == "stop_behind"
    met, progress = _stopped_behind(world, ego) if behind else _arrived(world, ego)
    success = bool(met and not (collision or off_road or off_route))
    return Verdict(success, collision, off_road, off_route, progress, ego.left)


def _arrived(world: DrivingWorld, ego: Ego) -> tuple[bool, float]:
    """Whether the end of the route is reached, in its lane and along it; share of the way."""
    start = float(world.drawn["start"][0]) + roads.LEAD_IN_M
    progress = (ego.along - start) / (world.route.goal_m - start)
    _, heading = world.route.at(ego.along)
    aligned = np.cos(float(heading) - ego.pose[2]) > _ALIGNED
    there = ego.along >= world.route.goal_m and abs(ego.left) < _IN_LANE_M and bool(aligned)
    return there, min(1.0, max(0.0, progress))


def _stopped_behind(world: DrivingWorld, ego: Ego) -> tuple[bool, float]:
    """Whether the ego stands behind the vehicle ahead, which stands; share of the way."""
    traffic = world.traffic
    along = float(traffic.along[0]) - roads.FAR_M + roads.LEAD_IN_M
    gap = along - layout.CAR_LENGTH_M / 2 - ego.along - FRONT_M
    halt = float(world.drawn["traffic"][0, layout.HALT_AT]) - roads.FAR_M + roads.LEAD_IN_M
    start = float(world.drawn["start"][0]) + roads.LEAD_IN_M
    way = halt - layout.CAR_LENGTH_M / 2 - FRONT_M - _BEHIND_M[1] - start
    standing = ego.speed < _STANDING and float(traffic.speeds[0]) < _STANDING
    there = standing and _BEHIND_M[0] < gap < _BEHIND_M[1] and abs(ego.left) < _IN_LANE_M
    return there, min(1.0, max(0.0, (ego.along - start) / way))

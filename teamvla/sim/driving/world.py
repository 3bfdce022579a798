"""One episode's scene: the compiled model, the ego vehicle and the traffic in it."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import layout
from teamvla.sim.driving.footprints import Footprints
from teamvla.sim.driving.layout import Layout
from teamvla.sim.driving.planner import Ego
from teamvla.sim.driving.roads import LANES, FloatArray, Route
from teamvla.sim.driving.scene import scene_xml
from teamvla.sim.driving.traffic import Traffic
from teamvla.sim.driving.vehicle import LENGTH_M, MIDDLE_M, WIDTH_M, Vehicle


class DrivingWorld:
    """The physics of one episode, and what drives in it.

    Attributes:
        drawn: what the episode was built from.
        model: the ``mujoco.MjModel``.
        data: its ``mujoco.MjData``.
        route: of the ego.
        vehicle: the ego.
        traffic: the others.
        extinction: of fog, 1/m.
        standing: footprints of parked vehicles and buildings.
        is_building: bool[geoms].
        is_hull: bool[geoms], the painted part of a vehicle, which has lamps.
        lit: bool[geoms], whose lamps shine at night.
    """

    def __init__(self, drawn: Layout) -> None:
        self.drawn = drawn
        self.model: Any = mujoco.MjModel.from_xml_string(scene_xml(drawn))
        self.data: Any = mujoco.MjData(self.model)
        self.route: Route = layout.route_of(drawn)
        self.extinction = float(drawn["weather"][5])
        self.traffic = Traffic(drawn)
        self.ego_body = int(self.model.body("ego").id)
        self.standing = _standing(drawn)
        self._name_geoms()
        x, aside = drawn["start"]
        y = LANES[int(drawn["lane"])].origin[1] + aside
        self._show_traffic()
        self.vehicle = Vehicle(self.model, self.data, np.array([x, y, 0.0]))

    def advance(self, acceleration: float, steering: float) -> None:
        """One control step of 50 ms.

        Raises:
            SimulationError: the state is not finite any more.
        """
        self.traffic.advance(self.ego())
        self._show_traffic()
        self.vehicle.advance(acceleration, steering)

    def ego(self) -> Ego:
        """Where the ego is on its route."""
        pose = self.vehicle.pose
        along, left = self.route.project(pose[:2])
        return Ego(pose, self.vehicle.speed, along, left)

    def ego_footprint(self) -> Footprints:
        x, y, heading = self.vehicle.pose
        middle = np.array([[x + MIDDLE_M * np.cos(heading), y + MIDDLE_M * np.sin(heading)]])
        halves = np.array([[LENGTH_M / 2, WIDTH_M / 2]])
        return Footprints(middle, np.array([heading]), halves)

    def touched(self) -> bool:
        """Whether the ego touches another vehicle or a building."""
        ego = self.ego_footprint()
        hit = ego.touching(self.traffic.footprints()).any() or ego.touching(self.standing).any()
        return bool(hit)

    def velocities(self) -> FloatArray:
        """Of every body, m/s in the world's frame, float[bodies, 2]; the ego's is its own."""
        speeds = np.zeros((self.model.nbody, 2))
        speeds[self._mocap_ids] = self.traffic.velocities()
        speeds[self.ego_body] = self.data.qvel[:2]
        return speeds

    def site(self, name: str) -> FloatArray:
        """Where a sensor of the ego is, m."""
        return np.array(self.data.site(name).xpos)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that decides how it goes on, besides what was drawn."""
        return {**self.vehicle.state(), "others": self.traffic.state()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`state` gave."""
        self.traffic.restore(state["others"])
        self._show_traffic()
        self.vehicle.restore(state)

    def _name_geoms(self) -> None:
        count = self.model.ngeom
        names = [self.model.body(int(body)).name for body in self.model.geom_bodyid]
        self.is_building = np.array([name.startswith("building") for name in names])
        self.is_hull = np.zeros(count, bool)
        for name in {name for name in names if name.startswith(("car", "parked"))}:
            self.is_hull[int(self.model.body(name).geomadr[0])] = True
        self._mocap_ids = np.flatnonzero(np.asarray(self.model.body_mocapid) >= 0)
        # Who broke down stands unlit, and so do the parked.
        broken = self.drawn["traffic"][:, layout.HALT_AT] <= self.drawn["traffic"][:, layout.ALONG]
        unlit = {f"car{index}" for index in np.flatnonzero(broken)}
        self.lit = np.array([name.startswith("car") and name not in unlit for name in names])

    def _show_traffic(self) -> None:
        """Put the bodies where the vehicles are."""
        points, headings = self.traffic.points()
        self.data.mocap_pos[:, :2] = points
        self.data.mocap_quat[:, 0] = np.cos(headings / 2)
        self.data.mocap_quat[:, 3] = np.sin(headings / 2)


def _standing(drawn: Layout) -> Footprints:
    """Parked vehicles and buildings."""
    parked, buildings = drawn["parked"], drawn["buildings"]
    return Footprints(
        np.concatenate([parked[:, :2], buildings[:, :2]]),
        np.concatenate([parked[:, 2], np.zeros(len(buildings))]),
        np.concatenate([parked[:, 3:5] / 2, buildings[:, 2:4]]),
    )

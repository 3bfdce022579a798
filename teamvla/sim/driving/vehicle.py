"""The ego vehicle: a kinematic bicycle that drives a body of the MuJoCo model.

Rajamani, "Vehicle Dynamics and Control", 2nd ed. 2012, section 2.2, with the reference point
on the rear axle: no tyre slips, so the turning rate is ``speed * tan(steering) / wheelbase``.
MuJoCo integrates the body and gives the inertial sensor; the forces on it are those that keep it
to the bicycle's motion.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError

FloatArray = NDArray[np.float64]
WHEELBASE_M = 2.7
LENGTH_M, WIDTH_M = 4.5, 1.8
MIDDLE_M = 1.35  # the middle of the body, ahead of the rear axle
FRONT_M = MIDDLE_M + LENGTH_M / 2
LEAST_ACCELERATION, GREATEST_ACCELERATION = -6.0, 3.0  # m/s^2
MAX_STEERING = 0.55  # of the front wheels, rad
STEERING_RATE = 0.8  # rad/s
MAX_SPEED = 15.0  # m/s
TIMESTEP_S = 0.01
SUBSTEPS = 5
CONTROL_HZ = 20.0
_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS


class Vehicle:
    """The ego vehicle in a compiled scene whose first three coordinates are its x, y and yaw.

    Attributes:
        speed: of the rear axle, m/s; never negative.
        steering: angle of the front wheels, rad, positive to the left.
        acceleration: along the vehicle in the latest physics step, m/s^2.
        inertia: samples since the row before: time against now (s), acceleration x y z
            (m/s^2, gravity included as an accelerometer has it), turning rate x y z (rad/s).
    """

    def __init__(self, model: Any, data: Any, pose: FloatArray) -> None:
        self._model, self._data = model, data
        self.speed = self.steering = self.acceleration = 0.0
        self.inertia = np.zeros((SUBSTEPS, 7))
        data.qpos[:3] = pose
        mujoco.mj_forward(model, data)
        self.advance(0.0, 0.0)  # standing still: the first row has inertial samples too

    @property
    def pose(self) -> FloatArray:
        """x, y of the rear axle (m) and yaw (rad)."""
        return np.array(self._data.qpos[:3])

    @property
    def yaw_rate(self) -> float:
        """rad/s, positive to the left."""
        return float(self._data.qvel[2])

    def advance(self, acceleration: float, steering: float) -> None:
        """One control step of 50 ms: five physics steps of 10 ms.

        Raises:
            SimulationError: the state is not finite any more.
        """
        for step in range(SUBSTEPS):
            self._drive(acceleration, steering)
            sensed = self._data.sensordata
            self.inertia[step, 0] = (step - SUBSTEPS) * TIMESTEP_S
            self.inertia[step, 1:] = sensed
        mujoco.mj_fwdPosition(self._model, self._data)
        if not np.isfinite(self._data.qpos).all():
            raise SimulationError("driving", "a finite state", "one that is not")

    def _drive(self, acceleration: float, steering: float) -> None:
        turn = min(STEERING_RATE * TIMESTEP_S, max(-STEERING_RATE * TIMESTEP_S,
                   steering - self.steering))  # fmt: skip
        self.steering = min(MAX_STEERING, max(-MAX_STEERING, self.steering + turn))
        before = self.speed
        self.speed = min(MAX_SPEED, max(0.0, before + acceleration * TIMESTEP_S))
        self.acceleration = (self.speed - before) / TIMESTEP_S
        yaw_rate = self.speed * math.tan(self.steering) / WHEELBASE_M
        heading = float(self._data.qpos[2]) + yaw_rate * TIMESTEP_S / 2
        goal = (self.speed * math.cos(heading), self.speed * math.sin(heading), yaw_rate)
        self._push((np.array(goal) - self._data.qvel[:3]) / TIMESTEP_S)

    def _push(self, acceleration: FloatArray) -> None:
        """One physics step under the forces that accelerate the coordinates so."""
        model, data = self._model, self._data
        mujoco.mj_step1(model, data)
        mujoco.mj_mulM(model, data, data.qfrc_applied, acceleration)
        data.qfrc_applied += data.qfrc_bias
        mujoco.mj_step2(model, data)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that decides how it goes on."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        own = np.array([self.speed, self.steering, self.acceleration])
        return {"physics": physics, "vehicle": own, "inertia": self.inertia.copy()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`state` gave."""
        mujoco.mj_setState(self._model, self._data, state["physics"], _STATE)
        self.speed, self.steering, self.acceleration = (float(v) for v in state["vehicle"])
        self.inertia = np.array(state["inertia"], np.float64)
        mujoco.mj_fwdPosition(self._model, self._data)

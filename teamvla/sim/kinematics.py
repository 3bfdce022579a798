"""Inverse kinematics by damped least squares.

Wampler, "Manipulator inverse kinematic solutions based on vector formulations and
damped least-squares methods", IEEE Trans. SMC 16(1), 1986.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from teamvla.errors import SimulationError
from teamvla.sim.world import FloatArray, World

_DAMPING = 0.03
_ROTATION_WEIGHT = 0.3  # metres that a radian is worth
_LONGEST_STEP = 0.2  # rad, of one joint in one iteration
_ITERATIONS = 30
_CLOSE_ENOUGH = 1e-4
_TOLERANCE_M = 0.005
_TOLERANCE_RAD = 0.1


class InverseKinematics:
    """Joint angles that bring a tool to a pose, on a scratch copy of the state.

    Args:
        world: the scene; its own state is never touched.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._follow()

    def _follow(self) -> None:
        """Take over the world's present scene."""
        self._model = self._world.model
        self._data: Any = mujoco.MjData(self._model)
        self._arms = self._world.arms
        self._position_jacobian = np.zeros((3, self._model.nv))
        self._rotation_jacobian = np.zeros((3, self._model.nv))

    def tool(self, arm: str, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position, float[3] m, and rotation, float[3, 3], of the tool at ``joints``."""
        if self._model is not self._world.model:
            self._follow()
        self._data.qpos[self._arms[arm].joints] = joints
        mujoco.mj_kinematics(self._model, self._data)
        site = self._arms[arm].tool
        rotation = self._data.site_xmat[site].reshape(3, 3)
        return self._data.site_xpos[site].copy(), rotation.copy()

    def solve(
        self, arm: str, start: FloatArray, position: FloatArray, rotation: FloatArray
    ) -> FloatArray:
        """Angles, float[6] rad within limits, near ``start`` that reach the pose.

        Raises:
            SimulationError: they would miss the position by more than 5 mm, or the rotation
                by more than 0.1 rad.
        """
        low, high = self._world.arms[arm].limits.T
        joints = np.clip(start, low, high)
        for _ in range(_ITERATIONS):
            error = self._error(arm, joints, position, rotation)
            if np.abs(error).max() < _CLOSE_ENOUGH:
                return joints
            joints = np.clip(joints + self._step(arm, error), low, high)
        self._require_reached(arm, joints, position, rotation)
        return joints

    def _require_reached(
        self, arm: str, joints: FloatArray, position: FloatArray, rotation: FloatArray
    ) -> None:
        at, facing = self.tool(arm, joints)
        miss = float(np.linalg.norm(position - at))
        cosine = 0.5 * (float(np.sum(rotation * facing)) - 1.0)
        turn = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
        if not (miss <= _TOLERANCE_M and turn <= _TOLERANCE_RAD):  # a NaN is out of reach, too
            raise SimulationError(
                f"arm {arm}: target ({', '.join(f'{x:.3f}' for x in position)}) m",
                "a point within reach",
                f"one that is missed by {1000 * miss:.0f} mm and {turn:.2f} rad",
                "Move the object nearer or narrow the task's ranges",
            )

    def _error(
        self, arm: str, joints: FloatArray, position: FloatArray, rotation: FloatArray
    ) -> FloatArray:
        at, facing = self.tool(arm, joints)
        missing = rotation @ facing.T
        turn = np.array(
            [
                missing[2, 1] - missing[1, 2],
                missing[0, 2] - missing[2, 0],
                missing[1, 0] - missing[0, 1],
            ]
        )
        return np.concatenate([position - at, 0.5 * _ROTATION_WEIGHT * turn])

    def _step(self, arm: str, error: FloatArray) -> FloatArray:
        """J^T (J J^T + lambda^2 I)^-1 error, each joint's part clipped."""
        address = self._arms[arm]
        mujoco.mj_comPos(self._model, self._data)
        moves, turns = self._position_jacobian, self._rotation_jacobian
        mujoco.mj_jacSite(self._model, self._data, moves, turns, address.tool)
        jacobian = np.vstack([moves[:, address.dofs], _ROTATION_WEIGHT * turns[:, address.dofs]])
        damped = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
        step = jacobian.T @ np.linalg.solve(damped, error)
        return np.asarray(np.clip(step, -_LONGEST_STEP, _LONGEST_STEP))


def pointing_down(yaw: float) -> FloatArray:
    """Rotation of a tool that points straight down.

    Its x axis (approach) is world -z; its y axis (along which the fingers close) lies in
    the horizontal plane, ``yaw`` rad from world x. float[3, 3].
    """
    cosine, sine = float(np.cos(yaw)), float(np.sin(yaw))
    return np.array([[0.0, cosine, sine], [0.0, sine, -cosine], [-1.0, 0.0, 0.0]])


def yaw_of(rotation: FloatArray) -> float:
    """The ``yaw`` with which :func:`pointing_down` made ``rotation``, in (-pi, pi] rad."""
    return float(np.arctan2(rotation[1, 1], rotation[0, 1]))

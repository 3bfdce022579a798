"""Kinematics of the two vx300s arms of gym-aloha, for its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError

Floats = NDArray[np.float64]
SIDES = {"a": "left", "b": "right"}
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_REACH = 0.135  # from the gripper's link to between its fingertips, m
_DAMPING = 0.03
_TURN_WEIGHT = 0.3
_ITERATIONS = 40
_STEP_RAD = 0.2
_CLOSE_ENOUGH = 2e-4
_MISSED_M = 0.02


@dataclass(frozen=True)
class Pose:
    """Where a tool is: position, m, and rotation; x points ahead, the fingers close along y."""

    position: Floats
    rotation: Floats

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Pose:
        """The pose shifted in the world's frame, m."""
        return Pose(self.position + np.array([x, y, z]), self.rotation)


class Arms:
    """Both arms: where their tools are, and joint angles that bring them elsewhere.

    Args:
        model: MjModel of the scene.
        data: its MjData, which is only read.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data = model, data
        self._scratch: Any = mujoco.MjData(model)
        self._jacobian = np.empty((6, model.nv))
        names = {arm: [f"vx300s_{side}/{joint}" for joint in JOINTS] for arm, side in SIDES.items()}
        ids = {arm: [model.joint(name).id for name in names[arm]] for arm in names}
        self._angles = {arm: model.jnt_qposadr[ids[arm]].astype(np.intp) for arm in ids}
        self._dofs = {arm: model.jnt_dofadr[ids[arm]].astype(np.intp) for arm in ids}
        self._limits = {arm: model.jnt_range[ids[arm]].copy() for arm in ids}
        self._links = {
            arm: int(model.body(f"vx300s_{side}/gripper_link").id) for arm, side in SIDES.items()
        }

    def angles(self, arm: str) -> Floats:
        """Measured joint angles, float[6] rad."""
        return np.array(self.data.qpos[self._angles[arm]])

    def tool(self, arm: str) -> Pose:
        """Where the tool is now."""
        return self._pose(arm, self.data)

    def body(self, name: str) -> Pose:
        """Where a body is now."""
        found = self.data.body(name)
        return Pose(found.xpos.copy(), found.xmat.reshape(3, 3).copy())

    def solve(self, arm: str, seed: Floats, goal: Pose) -> Floats:
        """Joint angles that bring the tool to ``goal``: damped least squares from ``seed``.

        Raises:
            SimulationError: the arm does not get there.
        """
        angles = seed.copy()
        for _ in range(_ITERATIONS):
            error = self._error(arm, angles, goal)
            if np.abs(error).max() < _CLOSE_ENOUGH:
                break
            angles = self._improved(arm, angles, error)
        missed = float(np.linalg.norm(self._error(arm, angles, goal)[:3]))
        if missed > _MISSED_M:
            expected = f"a target in reach of arm {arm}"
            raise SimulationError("expert", expected, f"one that it misses by {missed:.3f} m")
        return angles

    def _error(self, arm: str, angles: Floats, goal: Pose) -> Floats:
        self._scratch.qpos[self._angles[arm]] = angles
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_comPos(self.model, self._scratch)
        pose = self._pose(arm, self._scratch)
        turn = sum(np.cross(pose.rotation[:, k], goal.rotation[:, k]) for k in range(3)) / 2
        return np.concatenate([goal.position - pose.position, _TURN_WEIGHT * turn])

    def _improved(self, arm: str, angles: Floats, error: Floats) -> Floats:
        point = self._pose(arm, self._scratch).position
        jacobian = self._jacobian
        mujoco.mj_jac(
            self.model, self._scratch, jacobian[:3], jacobian[3:], point, self._links[arm]
        )
        own = jacobian[:, self._dofs[arm]]
        own[3:] *= _TURN_WEIGHT
        damped = own @ own.T + _DAMPING**2 * np.eye(6)
        step = own.T @ np.linalg.solve(damped, error)
        low, high = self._limits[arm].T
        return np.asarray(np.clip(angles + np.clip(step, -_STEP_RAD, _STEP_RAD), low, high))

    def _pose(self, arm: str, data: Any) -> Pose:
        link = self._links[arm]
        rotation = data.xmat[link].reshape(3, 3).copy()
        return Pose(data.xpos[link] + _REACH * rotation[:, 0], rotation)

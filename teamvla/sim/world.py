"""A compiled scene with its state, and where both arms stand in it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError
from teamvla.sim.scene import ARMS, CONTROL_HZ, HOME, JOINTS, MAX_OPENING

_LOG = logging.getLogger(__name__)
# Left alone, MuJoCo appends its warnings to MUJOCO_LOG.TXT in whatever folder one works in.
mujoco.set_mju_user_warning(lambda text: _LOG.debug("MuJoCo: %s", text))

FloatArray = NDArray[np.float64]
#: Everything that decides how the physics goes on, the solver's warm start included.
_STATE = (
    mujoco.mjtState.mjSTATE_FULLPHYSICS
    | mujoco.mjtState.mjSTATE_WARMSTART
    | mujoco.mjtState.mjSTATE_CTRL
)


@dataclass(frozen=True)
class ArmAddress:
    """Indices of one arm in the arrays of the model.

    Attributes:
        joints: into qpos, [6].
        dofs: into qvel, [6].
        fingers: into qpos, [2].
        actuators: into ctrl, joints first, [7].
        limits: least and greatest joint angles, [6, 2] rad.
        finger_geoms: ids of the two pads.
    """

    joints: NDArray[np.intp]
    dofs: NDArray[np.intp]
    fingers: NDArray[np.intp]
    actuators: NDArray[np.intp]
    limits: FloatArray
    tool: int
    finger_geoms: tuple[int, int]


class World:
    """The physics of one environment.

    Every episode has a scene of its own: :meth:`load` compiles it. So whatever one episode
    changed is gone in the next, and nobody may keep ``model`` or ``data`` beyond an episode.

    After :meth:`settle`, :meth:`advance` and :meth:`restore`, all derived quantities
    (poses, contacts) belong to the current positions.

    Args:
        xml: the scene as MJCF.

    Attributes:
        model: the ``mujoco.MjModel``.
        data: its ``mujoco.MjData``.
        arms: the addresses of ``a`` and ``b``.
    """

    model: Any
    data: Any

    def __init__(self, xml: str) -> None:
        self._xml = ""
        self.load(xml)

    def load(self, xml: str) -> None:
        """Compile a scene, which takes about 2 ms, unless it is the present one."""
        if xml != self._xml:
            self.model = mujoco.MjModel.from_xml_string(xml)
            self.data = mujoco.MjData(self.model)
            self.arms = {arm: self._address(arm) for arm in ARMS}
            count = self.model.ngeom
            self._geom_ids = {self.model.geom(index).name: index for index in range(count)}
            self._substeps = round(1.0 / (CONTROL_HZ * self.model.opt.timestep))
            self._xml = xml

    def reset(self) -> None:
        """Arms at home with open grippers, everything else where its scene puts it, at rest."""
        mujoco.mj_resetData(self.model, self.data)
        for address in self.arms.values():
            self.data.qpos[address.joints] = HOME
            self.data.qpos[address.fingers] = MAX_OPENING
            self.data.ctrl[address.actuators] = (*HOME, MAX_OPENING)

    def settle(self, steps: int) -> None:
        """Let the objects come to rest under the present command."""
        mujoco.mj_step(self.model, self.data, steps)
        mujoco.mj_step1(self.model, self.data)

    def advance(self) -> None:
        """One control step of 50 ms under the present command.

        Raises:
            SimulationError: the state is not finite any more.
        """
        # mj_step is mj_step1 (poses, contacts) then mj_step2 (forces, integration). The
        # first half of the first step was done at the end of the last call: so poses and
        # contacts are never a step behind, at no cost.
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, self._substeps - 1)
        mujoco.mj_step1(self.model, self.data)
        if not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()):
            raise SimulationError(
                f"simulation at {self.data.time:.2f} s",
                "a finite state",
                "one that is not",
                "The physics diverged; check the commands that led here",
            )

    def command(self, arm: str) -> FloatArray:
        """The present command of ``arm``: joint targets (rad) and gripper (0 open..1 closed)."""
        ctrl = self.data.ctrl[self.arms[arm].actuators]
        ctrl[-1] = 1.0 - ctrl[-1] / MAX_OPENING
        return np.asarray(ctrl)

    def set_command(self, arm: str, command: FloatArray) -> None:
        """Joint targets and gripper, float[7]; MuJoCo clips them to their ranges."""
        address = self.arms[arm].actuators
        self.data.ctrl[address[:-1]] = command[:-1]
        self.data.ctrl[address[-1]] = MAX_OPENING * (1.0 - command[-1])

    def joints(self, arm: str) -> FloatArray:
        """Measured joint angles, float[6] rad."""
        return np.asarray(self.data.qpos[self.arms[arm].joints])

    def closure(self, arm: str) -> float:
        """Measured gripper: 0 open, 1 closed."""
        opening = float(self.data.qpos[self.arms[arm].fingers].mean())
        return min(1.0, max(0.0, 1.0 - opening / MAX_OPENING))

    def tool(self, arm: str) -> FloatArray:
        """Position of the tool centre, float[3] m."""
        return np.array(self.data.site_xpos[self.arms[arm].tool])

    def pose(self, body: str) -> tuple[FloatArray, FloatArray]:
        """Position, float[3] m, and rotation matrix, float[3, 3], of a body."""
        found = self.data.body(body)
        return found.xpos.copy(), found.xmat.reshape(3, 3).copy()

    def speed(self, body: str) -> float:
        """Speed of a free body's centre, m/s."""
        start = self.model.jnt_dofadr[self.model.body(body).jntadr[0]]
        return float(np.linalg.norm(self.data.qvel[start : start + 3]))

    def place(self, body: str, position: FloatArray, yaw: float) -> None:
        """Put a free body somewhere, upright."""
        start = self.model.jnt_qposadr[self.model.body(body).jntadr[0]]
        upright = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.data.qpos[start : start + 7] = (*position, *upright)

    def push(self, body: str, velocity: FloatArray) -> None:
        """Add ``velocity``, float[3] m/s, to that of a free body."""
        start = self.model.jnt_dofadr[self.model.body(body).jntadr[0]]
        self.data.qvel[start : start + 3] += velocity

    def slide(self, joint: str) -> float:
        """Position of a sliding joint, m."""
        return float(self.data.qpos[self.model.jnt_qposadr[self.model.joint(joint).id]])

    def set_colour(self, geom: str, colour: FloatArray) -> None:
        """Paint a geom, float[3] in 0..1."""
        self.model.geom(geom).rgba[:3] = np.clip(colour, 0.0, 1.0)

    def geoms(self, *names: str) -> frozenset[int]:
        """Ids of the named geoms."""
        return frozenset(self._geom_ids[name] for name in names)

    def touching(self, left: frozenset[int], right: frozenset[int]) -> bool:
        """Whether any geom of one set is in contact with any of the other."""
        return any(
            (first in left and second in right) or (first in right and second in left)
            for first, second in self._contacts()
        )

    def fingers_on(self, arm: str, geoms: frozenset[int]) -> int:
        """How many of the arm's two fingers touch any of ``geoms``."""
        pairs = self._contacts()
        touched = {first for first, second in pairs if second in geoms}
        touched |= {second for first, second in pairs if first in geoms}
        return len(touched.intersection(self.arms[arm].finger_geoms))

    def state(self) -> FloatArray:
        """The physics state as one vector."""
        vector = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, vector, _STATE)
        return vector

    def restore(self, vector: FloatArray) -> None:
        """Put back what :meth:`state` gave."""
        mujoco.mj_setState(self.model, self.data, vector, _STATE)
        mujoco.mj_step1(self.model, self.data)

    def _contacts(self) -> list[list[int]]:
        """Pairs of geoms in contact."""
        pairs: list[list[int]] = self.data.contact.geom.tolist()
        return pairs

    def _address(self, arm: str) -> ArmAddress:
        model = self.model
        joints = [model.joint(f"{arm}_{joint.name}").id for joint in JOINTS]
        fingers = [model.joint(f"{arm}_{finger}").id for finger in ("f1", "f2")]
        drives = [f"{arm}_{joint.name}" for joint in JOINTS] + [f"{arm}_grip"]
        pads = (int(model.geom(f"{arm}_f1").id), int(model.geom(f"{arm}_f2").id))
        return ArmAddress(
            joints=model.jnt_qposadr[joints].astype(np.intp),
            dofs=model.jnt_dofadr[joints].astype(np.intp),
            fingers=model.jnt_qposadr[fingers].astype(np.intp),
            actuators=np.array([model.actuator(drive).id for drive in drives], np.intp),
            limits=model.jnt_range[joints].copy(),
            tool=int(model.site(f"{arm}_tcp").id),
            finger_geoms=pads,
        )

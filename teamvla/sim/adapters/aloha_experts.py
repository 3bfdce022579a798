"""Scripted experts for both tasks of gym-aloha."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.adapters.aloha_arms import Arms, Floats, Pose
from teamvla.sim.adapters.states import physics_of

if TYPE_CHECKING:
    from teamvla.sim.adapters.env import GymnasiumEnv

OPEN, CLOSED = 0.0, 1.0
_AHEAD = {"a": 1.0, "b": -1.0}  # along x: the arms face each other
_GAIN = 0.25  # of a correction
_APART = 0.10  # of peg and socket from where they meet, m: the peg is still outside
_TOUCHING = 0.06  # from here on it is inside
_FEED = 0.004  # of each part in a correction's time, m
_STRAIGHT = 0.005  # the peg has 8 mm of room to all sides
_RAISED = np.array([0.0, -0.9, 1.1, 0.0, -0.5, 1.5])  # a tool that looks ahead, on its side
_LOWERED = np.array([0.0, -0.4, 0.8, 0.0, 0.6, 0.0])  # one that looks down
_PICK_PITCH = np.deg2rad(60)  # of a tool that picks something up


@dataclass(frozen=True)
class Target:
    """Where a tool should be, and its gripper."""

    pose: Pose
    grip: float


@dataclass(frozen=True)
class Move:
    """A minimum-jerk motion of some arms; the others stand still.

    Tools move along straight lines. With ``near``, joint angles to start the search for the
    goal from, the joints move along straight lines instead: through free space, where a
    straight line of the tool would lead by the wrist's singularity.
    """

    phase: str
    targets: Mapping[str, Target]
    steps: int
    near: Mapping[str, Floats] = field(default_factory=dict)


class AlohaExpert(ABC):
    """Plays a script of moves; each is planned with what is there when the one before is over.

    Attributes:
        phase: of the latest action.
    """

    def __init__(self, env: GymnasiumEnv) -> None:
        physics = physics_of(env.foreign)
        assert physics is not None
        self.arms = Arms(*physics)
        self.reset()

    def reset(self) -> None:
        """Start over from where the arms are."""
        self.phase = ""
        self._angles = {arm: self.arms.angles(arm) for arm in _AHEAD}
        self.targets = {arm: Target(self.arms.tool(arm), CLOSED) for arm in _AHEAD}
        self._ticks = self._play()

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """The next command of both arms, float32[7] each.

        Raises:
            SimulationError: the script leads out of an arm's reach.
        """
        next(self._ticks, None)
        return [
            np.append(self._angles[arm], target.grip).astype(np.float32)
            for arm, target in self.targets.items()
        ]

    @abstractmethod
    def script(self) -> Iterator[Move]:
        """The moves."""

    def bring(self, arm: str, body: str, goal: Pose) -> Pose:
        """Where the tool of ``arm`` must go to take ``body``, which it holds, to ``goal``."""
        tool, held = self.arms.tool(arm), self.arms.body(body)
        turn = goal.rotation @ held.rotation.T
        return Pose(goal.position + turn @ (tool.position - held.position), turn @ tool.rotation)

    def nudge(self, arm: str, body: str, goal: Pose, ahead: float) -> Pose:
        """The commanded pose, corrected by a part of what ``body`` is off ``goal``.

        The arms are soft and creep: called again and again, this takes out what they lag
        behind. ``ahead`` (m, along x) is how far the goal moves until the next call.
        """
        told, held = self.targets[arm].pose, self.arms.body(body)
        shift = _GAIN * (goal.position - held.position) + np.array([ahead, 0.0, 0.0])
        turn = _part_of(goal.rotation @ held.rotation.T, _GAIN)
        return Pose(told.position + shift, turn @ told.rotation)

    def _play(self) -> Iterator[None]:
        """Advance targets and joint angles by one control step a time."""
        for move in self.script():
            start, before = dict(self.targets), dict(self._angles)
            ends = {
                arm: self.arms.solve(arm, near, move.targets[arm].pose)
                for arm, near in move.near.items()
            }
            for step in range(1, move.steps + 1):
                self.phase = move.phase
                eased = _eased(step / move.steps)
                for arm, goal in move.targets.items():
                    between = _between(start[arm].pose, goal.pose, eased)
                    self.targets[arm] = Target(between, goal.grip)
                    self._angles[arm] = (
                        before[arm] + eased * (ends[arm] - before[arm])
                        if arm in ends
                        else self.arms.solve(arm, self._angles[arm], between)
                    )
                yield


class TransferExpert(AlohaExpert):
    """The right arm picks up the cube and holds it out; the left arm takes it."""

    _MEET: ClassVar = np.array([0.0, 0.5, 0.25])

    def script(self) -> Iterator[Move]:
        cube = self.arms.body("box")
        over = Pose(cube.position, _facing("b", _PICK_PITCH)).moved(z=0.09)
        ready = Pose(self._MEET, _facing("a", 0.0, np.pi / 2)).moved(x=-0.12)
        apart = {"a": Target(ready, OPEN), "b": Target(over, OPEN)}
        yield Move("approach", apart, 60, near={"a": _RAISED, "b": _LOWERED})
        grasp = Pose(self.arms.body("box").position, over.rotation).moved(z=0.012)
        yield Move("descend", {"b": Target(grasp, OPEN)}, 35)
        yield Move("close", {"b": Target(grasp, CLOSED)}, 25)
        yield Move("lift", {"b": Target(Pose(self._MEET, over.rotation), CLOSED)}, 55)
        lag = self.targets["a"].pose.position - self.arms.tool("a").position
        cube = self.arms.body("box")
        reach = Pose(cube.position + lag, ready.rotation)
        yield Move("reach", {"a": Target(reach, OPEN)}, 40)
        yield Move("take", {"a": Target(reach, CLOSED)}, 40)
        yield Move("release", {"b": Target(self.targets["b"].pose, OPEN)}, 30)


class InsertionExpert(AlohaExpert):
    """The right arm picks up the peg, the left arm the socket; they meet in the air."""

    _MEET: ClassVar = np.array([0.0, 0.5, 0.15])

    def script(self) -> Iterator[Move]:
        bodies = {"a": "socket", "b": "peg"}
        facing = {arm: _facing(arm, _PICK_PITCH) for arm in bodies}
        over = {arm: self._at(body, facing[arm], 0.09) for arm, body in bodies.items()}
        apart = {arm: Target(pose, OPEN) for arm, pose in over.items()}
        yield Move("approach", apart, 60, near=dict.fromkeys(bodies, _LOWERED))
        rise = {"a": 0.0, "b": 0.01}
        low = {arm: self._at(body, facing[arm], rise[arm]) for arm, body in bodies.items()}
        yield Move("descend", {arm: Target(pose, OPEN) for arm, pose in low.items()}, 35)
        yield Move("close", {arm: Target(pose, CLOSED) for arm, pose in low.items()}, 30)
        up = {arm: pose.moved(z=0.12) for arm, pose in low.items()}
        yield Move("lift", {arm: Target(pose, CLOSED) for arm, pose in up.items()}, 35)
        goals = {
            arm: self.bring(arm, body, self._goal(arm, _APART)) for arm, body in bodies.items()
        }
        yield Move("meet", {arm: Target(pose, CLOSED) for arm, pose in goals.items()}, 55)
        yield from self._close_in(bodies)

    def _close_in(self, bodies: Mapping[str, str]) -> Iterator[Move]:
        """Correct the line of both parts again and again; go ahead while it is straight."""
        apart = _APART
        while True:
            ahead = _FEED if self._is_straight() else 0.0
            goals = {
                arm: self.nudge(arm, body, self._goal(arm, apart), _AHEAD[arm] * ahead)
                for arm, body in bodies.items()
            }
            apart -= ahead
            phase = "insert" if apart < _TOUCHING else "align"
            yield Move(phase, {arm: Target(pose, CLOSED) for arm, pose in goals.items()}, 4)

    def _is_straight(self) -> bool:
        peg, socket = self.arms.body("peg"), self.arms.body("socket")
        aside = socket.rotation.T @ (peg.position - socket.position)
        return float(np.abs(aside[1:]).max()) < _STRAIGHT

    def _at(self, body: str, rotation: Floats, rise: float) -> Pose:
        return Pose(self.arms.body(body).position, rotation).moved(z=rise)

    def _goal(self, arm: str, apart: float) -> Pose:
        """Level on one line along x, ``apart`` from where both parts meet."""
        return Pose(self._MEET - np.array([_AHEAD[arm] * apart, 0.0, 0.0]), np.eye(3))


def _facing(arm: str, pitch: float, roll: float = 0.0) -> Floats:
    """A tool that looks at the other arm, ``pitch`` down, turned by ``roll`` about its axis."""
    side = _AHEAD[arm]
    ahead = np.array([side * np.cos(pitch), 0.0, -np.sin(pitch)])
    across = np.array([0.0, side, 0.0])
    above = np.cross(ahead, across)
    turned = np.cos(roll) * across + np.sin(roll) * above
    return np.stack([ahead, turned, np.cross(ahead, turned)], axis=1)


def _eased(fraction: float) -> float:
    """Share of the way after ``fraction`` of the time, at minimum jerk."""
    return fraction**3 * (10 - 15 * fraction + 6 * fraction**2)


def _between(start: Pose, goal: Pose, eased: float) -> Pose:
    position = start.position + eased * (goal.position - start.position)
    return Pose(position, _part_of(goal.rotation @ start.rotation.T, eased) @ start.rotation)


def _part_of(rotation: Floats, fraction: float) -> Floats:
    """The rotation about the same axis by ``fraction`` of the angle."""
    quaternion, axis, turned = np.empty(4), np.empty(3), np.empty(9)
    mujoco.mju_mat2Quat(quaternion, rotation.reshape(-1))
    mujoco.mju_quat2Vel(axis, quaternion, 1.0)
    part = np.array([1.0, 0.0, 0.0, 0.0])
    mujoco.mju_quatIntegrate(part, axis, fraction)
    mujoco.mju_quat2Mat(turned, part)
    return turned.reshape(3, 3)

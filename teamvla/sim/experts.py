"""Scripted experts: a script of moves, executed as minimum-jerk motions of the tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.sim.scene import ARMS, CONTROL_HZ

if TYPE_CHECKING:
    from teamvla.sim.kinematics import InverseKinematics
    from teamvla.sim.world import FloatArray, World

OPEN, CLOSED = 0.0, 1.0
_PATIENCE = 1  # steps for which a guard may be false without consequence
_PEAK_OVER_MEAN = 1.6  # a minimum-jerk motion peaks at 1.875 times its mean speed


class ExpertConfig(Settings):
    """How briskly a scripted expert works."""

    free_speed: float = Field(
        default=0.35, gt=0, description="Speed of moves through free space, m/s."
    )
    careful_speed: float = Field(
        default=0.20, gt=0, description="Speed near and with objects, m/s."
    )
    turn_speed: float = Field(default=1.5, gt=0, description="Speed of turning a tool, rad/s.")
    close_steps: int = Field(default=8, ge=1, description="Steps that a gripper gets to close.")
    open_steps: int = Field(default=5, ge=1, description="Steps that a gripper gets to open.")
    hold_steps: int = Field(default=12, ge=1, description="Steps of standing still at the end.")


@dataclass(frozen=True)
class Target:
    """Where a downward-pointing tool should go: position (m), yaw (rad), gripper (0..1)."""

    position: FloatArray
    yaw: float
    grip: float


#: A target, or how to get it from the arm's present one; asked when the move begins.
Goal = Target | Callable[[Target], Target]


@dataclass(frozen=True)
class Move:
    """One motion of one or both arms; an arm without a goal stands still.

    Attributes:
        phase: name of what is being done, as episodes record it.
        targets: arm -> where its tool should be in the end; both arms arrive together.
        speed: about the greatest of the faster tool, m/s; ``free_speed`` if left out.
        steps: how long it takes, instead of ``speed``.
        guard: looked at before each step; the move is broken off where it stands once this
            was false twice running (under noise a finger may lose touch for one step). The
            script goes on with its next move and decides there what to do about it.
    """

    phase: str
    targets: Mapping[str, Goal]
    speed: float | None = None
    steps: int | None = None
    guard: Callable[[], bool] | None = None


#: Yields moves; each is asked for when the one before is over, so a script that looks at
#: the world plans with what is there at that moment.
Script = Callable[["World"], Iterator[Move]]


class Expert:
    """A policy that follows a script with full knowledge of the world's state.

    Both tools move along straight lines with minimum jerk (Flash and Hogan, J. Neurosci.
    5(7), 1985); inverse kinematics turns them into joint targets, seeded by the previous
    command. When the script is over the last pose is held.

    Attributes:
        phase: phase of the latest action, ``""`` before the first.
    """

    def __init__(
        self,
        world: World,
        kinematics: InverseKinematics,
        script: Script,
        config: ExpertConfig,
    ) -> None:
        self._world, self._kinematics = world, kinematics
        self._script, self._config = script, config
        self.reset()

    def reset(self) -> None:
        """Start over from the world's present state; call it after the environment's reset."""
        from teamvla.sim.kinematics import yaw_of

        self.phase = ""
        self._joints = {arm: self._world.command(arm)[:-1] for arm in ARMS}
        self._targets: dict[str, Target] = {}
        for arm in ARMS:
            position, rotation = self._kinematics.tool(arm, self._joints[arm])
            self._targets[arm] = Target(position, yaw_of(rotation), OPEN)
        self._reached: dict[str, Target] = {}
        self._ticks = self._play()

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """The next command of both arms, float32[7] each.

        Args:
            obs: ignored; the expert looks at the world itself.

        Raises:
            SimulationError: the script leads out of an arm's reach.
        """
        next(self._ticks, None)
        commands = []
        for arm, target in self._targets.items():
            if target is not self._reached.get(arm):  # an arm that stands still needs no solving
                self._joints[arm] = self._solved(arm, target)
                self._reached[arm] = target
            commands.append(np.append(self._joints[arm], target.grip).astype(np.float32))
        return commands

    def _solved(self, arm: str, target: Target) -> FloatArray:
        from teamvla.sim.kinematics import pointing_down

        facing = pointing_down(target.yaw)
        return self._kinematics.solve(arm, self._joints[arm], target.position, facing)

    def _play(self) -> Iterator[None]:
        """Advance the targets by one control step a time until the script is over."""
        for move in self._script(self._world):
            start = dict(self._targets)
            goals = {arm: _resolved(goal, start[arm]) for arm, goal in move.targets.items()}
            steps = move.steps or self._duration(move, start, goals)
            doubts = 0
            for step in range(1, steps + 1):
                doubts = doubts + 1 if move.guard and not move.guard() else 0
                if doubts > _PATIENCE:
                    break
                self.phase = move.phase
                for arm, goal in goals.items():
                    self._targets[arm] = _between(start[arm], goal, step / steps)
                yield

    def _duration(
        self, move: Move, start: Mapping[str, Target], goals: Mapping[str, Target]
    ) -> int:
        speed = move.speed or self._config.free_speed
        seconds = max(
            max(
                float(np.linalg.norm(goal.position - start[arm].position)) / speed,
                abs(goal.yaw - start[arm].yaw) / self._config.turn_speed,
            )
            for arm, goal in goals.items()
        )
        return max(1, math.ceil(_PEAK_OVER_MEAN * CONTROL_HZ * seconds))


def _resolved(goal: Goal, present: Target) -> Target:
    return goal if isinstance(goal, Target) else goal(present)


def _between(start: Target, goal: Target, fraction: float) -> Target:
    """The minimum-jerk point at ``fraction`` of the time; the gripper is switched at once."""
    eased = fraction**3 * (10 - 15 * fraction + 6 * fraction**2)
    position = start.position + eased * (goal.position - start.position)
    return Target(position, start.yaw + eased * (goal.yaw - start.yaw), goal.grip)

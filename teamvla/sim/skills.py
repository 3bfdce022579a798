"""Parts that scripts of experts are made of: picking up, putting down, keeping clear.

A skill is a generator of moves that looks at the world each time it goes on, and returns
whether it worked: ``if not (yield from pick(...)): ...``. A script that looks at what is
there, chooses a skill and starts again when it failed needs no other planning.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from teamvla.sim.experts import CLOSED, OPEN, ExpertConfig, Goal, Move, Target

if TYPE_CHECKING:
    from teamvla.sim.world import FloatArray, World

Skill = Generator[Move, None, bool]
#: Position, float[3] m, and yaw, rad, that a tool should take, as the world is now.
Pose = Callable[[], tuple["FloatArray", float]]

_MOVED_M = 0.008  # an object that moved farther on the way down is followed before closing
_CLOSINGS = 2  # times ``close_steps`` before a grasp counts as missed


@dataclass(frozen=True)
class Grasp:
    """What one arm takes, and how.

    Attributes:
        arm: which.
        geoms: names; both fingers must touch one of them for the grasp to hold.
        pose: of the tool around the object, as it lies now; asked again before each move.
        opening: gripper on the way there, 0 open .. 1 closed: less than open beside furniture.
    """

    arm: str
    geoms: tuple[str, ...]
    pose: Pose
    opening: float = OPEN


def pick(
    world: World,
    grasps: Sequence[Grasp],
    pace: ExpertConfig,
    *,
    clearance: float = 0.08,
    tries: int = 4,
    meanwhile: Mapping[str, Goal] | None = None,
    guard: Callable[[], bool] = lambda: True,
    names: tuple[str, str, str] = ("approach", "descend", "close"),
) -> Skill:
    """Take hold with one arm or both at once: go above, down, close, see whether it holds.

    A missed grasp is opened, drawn back up and tried again where the object is by then.
    The grippers stay closed around the object; lifting is a move of the script's own.

    Args:
        grasps: one per arm that takes part.
        clearance: of the tool above its grasp before it goes straight down, m.
        tries: after so many misses the skill gives up, grippers open and above.
        meanwhile: goals of the other arm during the first approach.
        guard: what must stay true, say that the other arm still holds the object; the skill
            ends at once when it does not.
        names: phases of going there, going down and closing.

    Returns:
        Whether every arm has both fingers on its geoms.

    Raises:
        SimulationError: (while it is carried out) a pose is out of reach.
    """
    for attempt in range(tries):
        aside = meanwhile if meanwhile and attempt == 0 else {}
        if not (yield from _reach(grasps, pace, clearance, aside, guard, names[:2])):
            return False
        for _ in range(_CLOSINGS):
            closing = {grasp.arm: gripped for grasp in grasps}
            yield Move(names[2], closing, steps=pace.close_steps, guard=guard)
            if (yield from confirmed(lambda: holds(world, grasps))):
                return True
            if not (yield from confirmed(guard)):
                return False
        yield Move("release", {grasp.arm: released for grasp in grasps}, steps=pace.open_steps)
        back = {grasp.arm: raised(clearance) for grasp in grasps}
        yield Move("withdraw", back, speed=pace.careful_speed)
    return False


def place(
    arm: str,
    pose: Pose,
    pace: ExpertConfig,
    *,
    held: Callable[[], bool],
    clearance: float = 0.06,
    meanwhile: Mapping[str, Goal] | None = None,
    names: tuple[str, str, str, str] = ("carry", "lower", "release", "retreat"),
) -> Skill:
    """Put down what ``arm`` holds: go above, down, let go, draw the tool up.

    Args:
        pose: of the tool when the object stands where it should; asked again above the
            place, so that it can allow for how the object lies in the hand by then.
        held: whether the arm still holds the object; the skill ends at once if not.
        clearance: of the tool above the place before it goes straight down and when it is
            drawn up in the end, m.
        meanwhile: goals of the other arm during the carrying.
        names: phases of carrying, lowering, letting go and drawing up.

    Returns:
        Whether the object was still in the hand when it was let go.

    Raises:
        SimulationError: (while it is carried out) a pose is out of reach.
    """
    carry, lower, release, retreat = names
    above = _lifted(Target(*pose(), CLOSED), clearance)
    yield Move(carry, {**(meanwhile or {}), arm: above}, speed=pace.free_speed, guard=held)
    if not (yield from confirmed(held)):
        return False
    down = Target(*pose(), CLOSED)
    yield Move(lower, {arm: down}, speed=pace.careful_speed, guard=held)
    kept = yield from confirmed(held)
    yield Move(release, {arm: released}, steps=pace.open_steps)
    yield Move(retreat, {arm: raised(clearance)}, speed=pace.careful_speed)
    return kept


def confirmed(held: Callable[[], bool], looks: int = 3) -> Skill:
    """Whether ``held``, looked at again for a step each time it seems not to be.

    Under noise a finger may lose touch for a step, and nothing was dropped.
    """
    for _ in range(looks - 1):
        if held():
            return True
        yield Move("look", {}, steps=1)
    return held()


def holds(world: World, grasps: Sequence[Grasp]) -> bool:
    """Whether every arm of ``grasps`` has both fingers on its geoms."""
    return all(world.fingers_on(grasp.arm, world.geoms(*grasp.geoms)) == 2 for grasp in grasps)


def gripped(target: Target) -> Target:
    """Goal: the same place, gripper closed."""
    return replace(target, grip=CLOSED)


def released(target: Target) -> Target:
    """Goal: the same place, gripper open."""
    return replace(target, grip=OPEN)


def raised(rise: float) -> Callable[[Target], Target]:
    """Goal: ``rise`` m straight up from where the tool was told to be."""
    return lambda target: _lifted(target, rise)


def nearest_branch(yaw: float, preferred: float, period: float = np.pi) -> float:
    """``yaw`` plus the multiple of ``period`` that brings it nearest to ``preferred``, rad.

    A parallel gripper takes a bar in two ways half a turn apart, a cube in four. A
    preference in the middle of what the wrist can do keeps the choice the same over the
    range of yaws that occur, so that demonstrations do not jump.
    """
    return float(yaw + period * np.round((preferred - yaw) / period))


def _reach(
    grasps: Sequence[Grasp],
    pace: ExpertConfig,
    clearance: float,
    aside: Mapping[str, Goal],
    guard: Callable[[], bool],
    names: tuple[str, str],
) -> Skill:
    """Go above the grasps and down to them; whether the guard held all the way."""
    above = {**aside, **_aimed(grasps, rise=clearance)}
    yield Move(names[0], above, speed=pace.free_speed, guard=guard)
    if not (yield from confirmed(guard)):
        return False
    down = _aimed(grasps)
    yield Move(names[1], down, speed=pace.careful_speed, guard=guard)
    if not (yield from confirmed(guard)):
        return False
    if _strayed(grasps, down):
        yield Move(names[1], _aimed(grasps), speed=pace.careful_speed, guard=guard)
    return True


def _aimed(grasps: Sequence[Grasp], rise: float = 0.0) -> dict[str, Target]:
    aims = {grasp.arm: Target(*grasp.pose(), grasp.opening) for grasp in grasps}
    return {arm: _lifted(aim, rise) for arm, aim in aims.items()}


def _strayed(grasps: Sequence[Grasp], aims: Mapping[str, Target]) -> bool:
    gaps = [grasp.pose()[0] - aims[grasp.arm].position for grasp in grasps]
    return max(float(np.linalg.norm(gap)) for gap in gaps) > _MOVED_M


def _lifted(target: Target, rise: float) -> Target:
    return replace(target, position=target.position + np.array([0.0, 0.0, rise]))

"""Handoff: arm a takes a bar, gives it to arm b in the air, b lays it on the goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.sim.experts import CLOSED, OPEN, ExpertConfig, Move, Target
from teamvla.sim.scene import ARMS, Element, add, paint
from teamvla.sim.skills import (
    Grasp,
    Skill,
    confirmed,
    holds,
    nearest_branch,
    pick,
    place,
    raised,
    released,
)
from teamvla.sim.tasks.base import Factor, Phrasing, Span, Task, TwoArmTaskConfig, Variation

if TYPE_CHECKING:
    from teamvla.sim.world import FloatArray, World

_HALF_SIZE = np.array([0.015, 0.10, 0.020])  # of the bar, m
_MASS = 0.10  # kg
_COLOUR = (0.16, 0.66, 0.30)
_GOAL_COLOUR = (0.93, 0.36, 0.62)
_GRASP_Z = -0.006  # of a tool above the bar's axis: fingers reach around it, m
_LOWEST_Z = 0.017  # of a tool above the table, m; the finger tips are 1 cm below it
_GRASP_SHARE = 0.5  # of half the bar's length, from its middle to a hand
_LAY_Z = 0.003  # how far above the table the expert lets the bar go, m
_LIFT_Z = 0.05  # straight up from the table before anything else, m
_FREE_Z = 0.06  # straight up from a bar that was let go, m
_MEETING = np.array([0.43, 0.0, 0.19])  # where the bar's middle is handed over, m
_WAITING = np.array([0.43, -0.075, 0.29])  # where b waits for it, m
_ASIDE = np.array([0.36, 0.30, 0.26])  # where a stands while b works alone, m
# A gripper could take the bar in two ways half a turn apart. Each arm prefers the middle of
# what its wrist can do, so that bars that lie within a quarter turn are all taken alike.
_PREFERRED = {"a": 0.5, "b": np.pi - 0.5}
_MEETING_YAW = {"a": 0.0, "b": np.pi}
_ATTEMPTS = 8
_LONGEST_FALL = 10  # steps until a bar that was dropped lies on the table


class HandoffReward(Settings):
    """Weights of the shaped reward; it lies in 0..1 if they add up to 1."""

    reach: float = Field(default=0.1, ge=0, description="The tool whose turn it is at the bar.")
    stages: float = Field(default=0.6, ge=0, description="Share of the stages that are reached.")
    carry: float = Field(
        default=0.2, ge=0, description="The bar near the goal once it was handed over."
    )
    rest: float = Field(default=0.1, ge=0, description="The bar at rest on the goal, let go.")


class HandoffPace(ExpertConfig):
    """Brisker than that of the other tasks, because the way is longer."""

    free_speed: float = Field(
        default=0.45, gt=0, description="Speed of moves through free space, m/s."
    )
    careful_speed: float = Field(
        default=0.25, gt=0, description="Speed near and with the bar, m/s."
    )
    close_steps: int = Field(default=7, ge=1, description="Steps that a gripper gets to close.")
    open_steps: int = Field(default=4, ge=1, description="Steps that a gripper gets to open.")


class HandoffConfig(TwoArmTaskConfig):
    """The handoff task. Spans are the ends of a uniform distribution."""

    name: str = Field(default="handoff", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=(
            "hand the bar over and lay it on the disc",
            "pass the bar from the left arm to the right arm and put it on the disc",
            "take the bar with one hand, give it to the other and place it on the pink disc",
            "give the green bar to the other arm, which lays it on the disc",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    max_steps: int = Field(
        default=400, ge=1, description="Control steps after which an episode ends."
    )
    bar_x: Span = Field(default=(0.34, 0.46), description="Forward position of the bar, m.")
    bar_y: Span = Field(default=(0.20, 0.32), description="Sideways position of the bar, m.")
    bar_yaw: Span = Field(default=(-0.5, 0.5), description="Heading of the bar, rad.")
    bar_length: Factor = Field(default=(0.9, 1.1), description="Factor on the length of 20 cm.")
    bar_width: Factor = Field(default=(0.85, 1.2), description="Factor on the width of 3 cm.")
    bar_mass: Factor = Field(default=(0.8, 1.3), description="Factor on the bar's 0.1 kg.")
    bar_colour: float = Field(
        default=0.08, ge=0, le=0.3, description="Greatest change of each channel."
    )
    goal_x: Span = Field(default=(0.36, 0.46), description="Forward position of the disc, m.")
    goal_y: Span = Field(default=(-0.38, -0.28), description="Sideways position of the disc, m.")
    goal_radius: float = Field(
        default=0.07, gt=0, description="Of the disc; the bar's middle must be on it, m."
    )
    max_speed: float = Field(
        default=0.05, gt=0, description="Greatest speed of the bar that counts as rest, m/s."
    )
    reward: HandoffReward = Field(default=HandoffReward(), description="Weights of the reward.")
    expert: HandoffPace = Field(default=HandoffPace(), description="The scripted expert.")


class HandoffTask(Task):
    """Success: the bar lies at rest with its middle on the disc, touched by no gripper, after
    arm a alone held it off the table, then both arms did, then arm b alone, in this order: one
    arm, a push or a throw pass through none but the first of these stages.

    Reward of a step: ``reach * near + stages * (stages reached) / 3 + carry * (1 - tanh(5 g))
    + rest * success``. ``near`` is ``1 - tanh(5 d)`` with the distance d in m from the tool
    whose turn it is (a's, then b's) to where it should grasp, and 1 once both held the bar; g
    is the distance from the bar to the disc, and counts after all stages, as success does.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = HandoffConfig
    stages: ClassVar[tuple[str, ...]] = ("held by a", "held by both", "held by b")
    objects: ClassVar[tuple[str, ...]] = ("bar",)
    paraphrases: ClassVar[tuple[str, ...]] = (
        "let the left gripper pass the stick to the right one, then set it down on the circle",
        "transfer the bar between the hands and leave it on the marked spot",
        "bring the stick over to the round target, changing hands on the way",
    )
    config: HandoffConfig

    def draw(self, rng: np.random.Generator) -> Variation:
        config = self.config
        bar, goal = (config.bar_x, config.bar_y, config.bar_yaw), (config.goal_x, config.goal_y)
        size = (config.bar_width, config.bar_length)
        return {
            "bar_pose": np.array([rng.uniform(*span) for span in bar]),
            "bar_size": np.array([rng.uniform(*span) for span in size]),
            "bar_mass": np.array(rng.uniform(*config.bar_mass)),
            "bar_colour": _COLOUR + config.bar_colour * rng.uniform(-1, 1, 3),
            "goal": np.array([rng.uniform(*span) for span in goal]),
        }

    def add_objects(self, world: Element, variation: Variation) -> None:
        width, length = variation["bar_size"]
        half = _HALF_SIZE * (width, length, 1.0)
        x, y, yaw = variation["bar_pose"]
        bar = add(world, "body", name="bar", pos=(x, y, half[2]), euler=(0.0, 0.0, yaw))
        add(bar, "freejoint")
        colour = np.clip(variation["bar_colour"], 0.0, 1.0)
        look = {"mass": _MASS * float(variation["bar_mass"]), "rgba": paint(colour)}
        add(bar, "geom", name="bar", class_="object", type="box", size=half, **look)
        disc = {"size": (self.config.goal_radius, 0.001), "pos": (*variation["goal"], 0.001)}
        look = {"rgba": paint(_GOAL_COLOUR), "contype": 0, "conaffinity": 0}
        add(world, "geom", name="goal", type="cylinder", **disc, **look)

    def reached(self, world: World, stage: int) -> bool:
        wanted = ({"a"}, {"a", "b"}, {"b"})[stage]
        fingers = {arm: world.fingers_on(arm, world.geoms("bar")) for arm in ARMS}
        held = all(fingers[arm] == (2 if arm in wanted else 0) for arm in ARMS)
        return held and not _on_table(world)

    def success(self, world: World) -> bool:
        hands = world.geoms(*(f"{arm}_{part}" for arm in ARMS for part in ("f1", "f2", "palm")))
        touched = world.touching(world.geoms("bar"), hands)
        there = _gap_to_goal(world) < self.config.goal_radius
        still = world.speed("bar") < self.config.max_speed
        return there and still and _on_table(world) and not touched

    def reward(self, world: World, stage: int) -> float:
        weights, share = self.config.reward, stage / len(self.stages)
        turn = ARMS[min(stage, 1)]
        gap = float(np.linalg.norm(world.tool(turn) - _grasp_pose(world, turn)[0]))
        near = 1.0 if stage > 1 else 1.0 - np.tanh(5.0 * gap)
        reward = weights.reach * near + weights.stages * share
        if stage == len(self.stages):
            reward += weights.carry * (1.0 - np.tanh(5.0 * _gap_to_goal(world)))
            reward += weights.rest * self.success(world)
        return float(reward)

    def script(self, world: World) -> Iterator[Move]:
        """Take, hand over, lay down; what was dropped is picked up again."""
        return _Handover(world, self.config.expert).play(lambda: self.success(world))


class _Handover:
    """The expert's script: sees who holds the bar or where it lies, and does what is due.

    Attributes:
        shared: whether both arms held the bar, so that b may also take it from the table.
    """

    def __init__(self, world: World, pace: ExpertConfig) -> None:
        self._world, self._pace = world, pace
        self._a_holds, self._b_holds = _holding(world, "a"), _holding(world, "b")
        self._aside = {"a": Target(_ASIDE, _MEETING_YAW["a"], OPEN)}
        self.shared = False

    def play(self, success: Callable[[], bool]) -> Iterator[Move]:
        """Until the bar lies on the disc, or often enough."""
        for _ in range(_ATTEMPTS):
            if (yield from self._give()):
                yield from self._lay()
            if self.shared and success():
                break
        yield Move("rest", {}, steps=self._pace.hold_steps)

    def _give(self) -> Skill:
        """Bring the bar into b's hand alone, from wherever it is."""
        yield from confirmed(self._has_come_to_rest, _LONGEST_FALL)
        on_table = _on_table(self._world)
        if self.shared and not on_table and (yield from confirmed(self._b_holds)):
            return (yield from self._part())
        if self.shared and on_table and self._world.pose("bar")[0][1] < 0:
            return (yield from self._fetch())
        if not ((yield from self._bring()) and (yield from self._share())):
            return False
        return (yield from self._part())

    def _bring(self) -> Skill:
        """Arm a takes the bar, unless it has it, to where it is handed over."""
        pace, held = self._pace, self._a_holds
        waiting = {"b": Target(_WAITING, _MEETING_YAW["b"], OPEN)}
        if _on_table(self._world) or not (yield from confirmed(held)):
            hand = _hand(self._world, "a")
            if not (yield from pick(self._world, [hand], pace, meanwhile=waiting)):
                return False
            yield Move("lift", {"a": raised(_LIFT_Z)}, speed=pace.careful_speed, guard=held)
        if not (yield from confirmed(held)):
            return False
        goals = {"a": _presenting(self._world), **waiting}
        yield Move("present", goals, speed=pace.free_speed, guard=held)
        return (yield from confirmed(held))

    def _share(self) -> Skill:
        """Arm b takes hold of the bar that a holds out."""
        hand, names = _hand(self._world, "b"), ("join", "reach", "take")
        yield from pick(self._world, [hand], self._pace, guard=self._watch, names=names)
        # Under noise a finger loses touch now and then: no arm lets go before all four held on.
        if not self.shared:
            steps = 2 * self._pace.close_steps
            yield Move(names[-1], {}, steps=steps, guard=self._waits_for_b)
        return self.shared and (yield from confirmed(self._b_holds))

    def _has_come_to_rest(self) -> bool:
        return _on_table(self._world) or self._a_holds() or self._b_holds()

    def _watch(self) -> bool:
        """Whether a holds the bar; notes when b does at the same time."""
        held = self._a_holds()
        self.shared = self.shared or (held and self._b_holds() and not _on_table(self._world))
        return held

    def _waits_for_b(self) -> bool:
        return self._watch() and not self.shared

    def _part(self) -> Skill:
        """Arm a lets go and leaves upwards."""
        self._watch()
        yield Move("give", {"a": released}, steps=self._pace.open_steps)
        yield Move("part", {"a": raised(_FREE_Z)}, speed=self._pace.careful_speed)
        return (yield from confirmed(self._b_holds))

    def _fetch(self) -> Skill:
        """Arm b takes a bar that was handed over, but dropped, from the table."""
        hand, pace = _hand(self._world, "b"), self._pace
        if not (yield from pick(self._world, [hand], pace, meanwhile=self._aside)):
            return False
        up = {"b": raised(_LIFT_Z)}
        yield Move("lift", up, speed=pace.careful_speed, guard=self._b_holds)
        return (yield from confirmed(self._b_holds))

    def _lay(self) -> Skill:
        """Arm b lays the bar on the disc, while a gets out of the way."""
        pose, held = lambda: _laying(self._world), self._b_holds
        return (yield from place("b", pose, self._pace, held=held, meanwhile=self._aside))


def _on_table(world: World) -> bool:
    return world.touching(world.geoms("bar"), world.geoms("table"))


def _gap_to_goal(world: World) -> float:
    """Horizontal distance from the bar's middle to that of the disc, m."""
    return float(np.linalg.norm((world.pose("bar")[0] - world.data.geom("goal").xpos)[:2]))


def _hand(world: World, arm: str) -> Grasp:
    return Grasp(arm, ("bar",), lambda: _grasp_pose(world, arm))


def _holding(world: World, arm: str) -> Callable[[], bool]:
    return lambda: holds(world, [_hand(world, arm)])


def _grasp_pose(world: World, arm: str) -> tuple[FloatArray, float]:
    """The tool of ``arm`` at its end of the bar, wherever that is, its fingers across it.

    The fingers close along the yaw, so that the bar runs along yaw + pi/2. Both arms hand the
    bar over with one yaw each, a's half a turn from b's: the end that lies at + pi/2 is then
    the one on the arm's own side, and so the other end is left for the other arm.
    """
    position, rotation = world.pose("bar")
    axis = rotation[:, 1]
    yaw = nearest_branch(float(np.arctan2(-axis[0], axis[1])), _PREFERRED[arm])
    own_end = axis * np.sign(axis @ _heading(yaw + np.pi / 2))
    reach = _GRASP_SHARE * float(world.model.geom("bar").size[1])
    x, y, z = position + reach * own_end
    return np.array([x, y, max(z + _GRASP_Z, _LOWEST_Z)]), yaw


def _presenting(world: World) -> Target:
    """Arm a's tool when the bar's middle, as it lies in the hand, is at the meeting place."""
    offset = world.tool("a") - world.pose("bar")[0]
    turn = _MEETING_YAW["a"] - _grasp_pose(world, "a")[1]
    along, across = _heading(turn), _heading(turn + np.pi / 2)
    turned = offset[0] * along + offset[1] * across + offset[2] * np.array([0.0, 0.0, 1.0])
    return Target(_MEETING + turned, _MEETING_YAW["a"], CLOSED)


def _laying(world: World) -> tuple[FloatArray, float]:
    """Arm b's tool when the bar, as it lies in the hand, just touches the disc."""
    position, rotation = world.pose("bar")
    depth = float(np.abs(rotation[2]) @ world.model.geom("bar").size)  # below the bar's middle
    x, y, _ = world.data.geom("goal").xpos
    place = np.array([x, y, depth + _LAY_Z])
    return place + world.tool("b") - position, _grasp_pose(world, "b")[1]


def _heading(yaw: float) -> FloatArray:
    return np.array([np.cos(yaw), np.sin(yaw), 0.0])

"""Lift: both arms take a tray by its handles and raise it, level."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.sim.experts import OPEN, Goal, Move, Target
from teamvla.sim.scene import ARMS, Element, add, paint
from teamvla.sim.skills import gripped, raised, released
from teamvla.sim.tasks.base import Factor, Phrasing, Span, Task, TwoArmTaskConfig, Variation

if TYPE_CHECKING:
    from teamvla.sim.world import FloatArray, World

_REST_Z = 0.012  # height of the tray's centre when it lies on the table, m
_HANDLE_Y = {"a": 0.19, "b": -0.19}  # along the tray, m
_HANDLE_COLOUR = {"a": (0.90, 0.10, 0.14), "b": (0.08, 0.20, 0.90)}
_TRAY_COLOUR = (0.90, 0.72, 0.32)
_PARTS = ("tray", "handle_a", "handle_b")
_GRASP_Z = 0.016  # of the tools above the tray's centre, m
_CLEARANCE_Z = 0.12  # of the tools above the handles before they go down, m
_RAISE_Z = 0.20  # how far the expert lifts, m
_LOST_M = 0.03  # a tool this far from its handle has lost it
# A parallel gripper could take a handle in two ways half a turn apart. Each arm always
# uses the one that turns its wrist less: were the nearer one chosen anew every time, the
# demonstrations would jump where the tray's yaw is 0.
_BRANCH = {"a": 0.0, "b": np.pi}


class LiftReward(Settings):
    """Weights of the shaped reward; it lies in 0..1 if they add up to 1."""

    reach: float = Field(default=0.25, ge=0, description="Tools near their handles.")
    grasp: float = Field(default=0.25, ge=0, description="Fingers on their handles.")
    height: float = Field(
        default=0.5, ge=0, description="Rise of the tray while both arms hold it."
    )


class LiftConfig(TwoArmTaskConfig):
    """The lift task. Spans are the ends of a uniform distribution."""

    instructions: tuple[Phrasing, ...] = Field(
        default=(
            "lift the tray with both arms",
            "raise the tray off the table together",
            "pick up the tray by its two handles",
            "grab both handles and lift the tray",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    tray_x: Span = Field(default=(0.36, 0.48), description="Forward position of the tray, m.")
    tray_y: Span = Field(default=(-0.06, 0.06), description="Sideways position of the tray, m.")
    tray_yaw: Span = Field(default=(-0.25, 0.25), description="Heading of the tray, rad.")
    tray_mass: Factor = Field(default=(0.8, 1.3), description="Factor on the tray's 0.35 kg.")
    tray_colour: float = Field(
        default=0.08, ge=0, le=0.3, description="Greatest change of each channel."
    )
    tray_size: Factor = Field(
        default=(0.9, 1.1), description="Factor on the tray's width of 10 cm."
    )
    rise: float = Field(
        default=0.12, gt=0, description="Rise of the tray that counts as lifted, m."
    )
    max_tilt: float = Field(
        default=0.25, gt=0, description="Greatest tilt that counts as level, rad."
    )
    max_speed: float = Field(
        default=0.15, gt=0, description="Greatest speed that counts as slow, m/s."
    )
    reward: LiftReward = Field(default=LiftReward(), description="Weights of the reward.")


class LiftTask(Task):
    """Success: the tray is high, level and slow, off the table, and each gripper has both
    fingers on its own handle. One arm alone can never meet it.

    Reward of a step: ``reach * mean_arms(1 - tanh(5 d)) + grasp * (fingers on handles) / 4
    + height * min(1, rise / goal)``, the last part only while both arms hold; d is the
    distance in m from a tool to its handle.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = LiftConfig
    objects: ClassVar[tuple[str, ...]] = ("tray",)
    paraphrases: ClassVar[tuple[str, ...]] = (
        "hoist the tray, one hand at each end",
        "take the tray up from the table",
        "get the tray into the air using both grippers",
    )
    config: LiftConfig

    def draw(self, rng: np.random.Generator) -> Variation:
        config = self.config
        spans = (config.tray_x, config.tray_y, config.tray_yaw)
        return {
            "tray_pose": np.array([rng.uniform(*span) for span in spans]),
            "tray_mass": np.array(rng.uniform(*config.tray_mass)),
            "tray_colour": _TRAY_COLOUR + config.tray_colour * rng.uniform(-1, 1, 3),
            "tray_size": np.array(rng.uniform(*config.tray_size)),
        }

    def add_objects(self, world: Element, variation: Variation) -> None:
        x, y, yaw = variation["tray_pose"]
        mass, scale = float(variation["tray_mass"]), float(variation["tray_size"])
        colour = np.clip(variation["tray_colour"], 0.0, 1.0)
        tray = add(world, "body", name="tray", pos=(x, y, _REST_Z), euler=(0.0, 0.0, yaw))
        add(tray, "freejoint")
        plate = {"size": (0.05 * scale, 0.17, _REST_Z), "mass": 0.25 * mass}
        add(tray, "geom", name="tray", class_="object", type="box", **plate, rgba=paint(colour))
        inset = {"size": (0.04 * scale, 0.155, _REST_Z), "pos": (0.0, 0.0, 0.0006)}
        look = {"contype": 0, "conaffinity": 0, "mass": 0, "rgba": paint(0.8 * colour)}
        add(tray, "geom", name="tray_inset", type="box", **inset, **look)
        for arm in ARMS:
            block = {"size": (0.014, 0.03, 0.022), "pos": (0.0, _HANDLE_Y[arm], 0.012)}
            look = {"mass": 0.05 * mass, "rgba": paint(_HANDLE_COLOUR[arm])}
            name = f"handle_{arm}"
            add(tray, "geom", name=name, class_="object", type="box", **block, **look)

    def success(self, world: World) -> bool:
        config = self.config
        position, rotation = world.pose("tray")
        high = position[2] - _REST_Z > config.rise
        level = rotation[2, 2] > np.cos(config.max_tilt)
        slow = world.speed("tray") < config.max_speed
        return bool(high and level and slow and self._held(world) and not self._resting(world))

    def reward(self, world: World, stage: int) -> float:
        weights = self.config.reward
        position, rotation = world.pose("tray")
        gaps = [
            float(np.linalg.norm(world.tool(arm) - _handle(arm, position, rotation)))
            for arm in ARMS
        ]
        near = sum(1.0 - np.tanh(5.0 * gap) for gap in gaps) / len(ARMS)
        fingers = sum(self._fingers(world, arm) for arm in ARMS) / (2 * len(ARMS))
        rise = np.clip((position[2] - _REST_Z) / self.config.rise, 0.0, 1.0)
        raised = rise if self._held(world) else 0.0
        return float(weights.reach * near + weights.grasp * fingers + weights.height * raised)

    def script(self, world: World) -> Iterator[Move]:
        pace = self.config.expert

        def kept() -> bool:
            return all(_keeps(world, arm) for arm in ARMS)

        while True:
            yield from self._take(world)
            yield Move("lift", _both(raised(_RAISE_Z)), speed=pace.careful_speed, guard=kept)
            if kept():
                yield Move("hold", {}, steps=pace.hold_steps, guard=kept)
            while self.success(world):
                yield Move("hold", {}, steps=pace.hold_steps)
            # A tray that is let go up here would fall and roll away.
            yield Move("lower", _both(_lowered), speed=pace.free_speed)
            yield from self._draw_back()

    def _take(self, world: World) -> Iterator[Move]:
        """Take both handles, as often as it takes."""
        pace = self.config.expert
        while True:
            yield Move("approach", _grasps(world, _CLEARANCE_Z), speed=pace.free_speed)
            # The tray is looked at again: something may have moved it on the way.
            yield Move("descend", _grasps(world), speed=pace.careful_speed)
            yield Move("close", _both(gripped), steps=pace.close_steps)
            if all(_keeps(world, arm) for arm in ARMS):
                return
            yield from self._draw_back()

    def _draw_back(self) -> Iterator[Move]:
        pace = self.config.expert
        yield Move("release", _both(released), steps=pace.open_steps)
        yield Move("withdraw", _both(raised(_CLEARANCE_Z)), speed=pace.free_speed)

    def _fingers(self, world: World, arm: str) -> int:
        return world.fingers_on(arm, world.geoms(f"handle_{arm}"))

    def _held(self, world: World) -> bool:
        return all(self._fingers(world, arm) == 2 for arm in ARMS)

    def _resting(self, world: World) -> bool:
        return world.touching(world.geoms(*_PARTS), world.geoms("table"))


def _handle(arm: str, position: FloatArray, rotation: FloatArray) -> FloatArray:
    """Where the tool of ``arm`` belongs on its handle, m."""
    along: FloatArray = rotation[:, 1] * _HANDLE_Y[arm]
    above = np.array([0.0, 0.0, _GRASP_Z])
    return np.asarray(position + along + above)


def _grasps(world: World, above: float = 0.0) -> dict[str, Goal]:
    """Targets of both tools, open, ``above`` m over the handles as they lie now."""
    position, rotation = world.pose("tray")
    yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    rise = np.array([0.0, 0.0, above])
    return {
        arm: Target(_handle(arm, position, rotation) + rise, yaw + _BRANCH[arm], OPEN)
        for arm in ARMS
    }


def _keeps(world: World, arm: str) -> bool:
    """Whether the handle is still where ``arm`` took it.

    Touch says less: two arms that pull at one tray make single fingers lose it for a moment.
    """
    gap = world.tool(arm) - _handle(arm, *world.pose("tray"))
    return bool(np.linalg.norm(gap) < _LOST_M)


def _lowered(target: Target) -> Target:
    """The same place, down where the tray lies on the table."""
    x, y, _ = target.position
    return replace(target, position=np.array([x, y, _REST_Z + _GRASP_Z]))


def _both(goal: Goal) -> dict[str, Goal]:
    return dict.fromkeys(ARMS, goal)

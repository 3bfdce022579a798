"""Drawer: arm a pulls a drawer open and holds it, arm b puts a block inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.sim.experts import CLOSED, Move, Target
from teamvla.sim.scene import ARMS, BASES, Element, add, paint
from teamvla.sim.skills import Grasp, confirmed, nearest_branch, pick, place, raised, released
from teamvla.sim.tasks.base import Factor, Phrasing, Span, Task, TwoArmTaskConfig, Variation

if TYPE_CHECKING:
    from teamvla.sim.world import FloatArray, World

_EDGE = 0.020  # half of the block's edge before it is scaled, m
_MASS = 0.05  # of the block, kg
_FRICTION = 1.0  # force that the runners take, N

# The cabinet, in its own frame: x into it, z up, origin below its middle on the table. The
# drawer lies at rest in it with the same axes and slides along -x. Room is left wherever a
# gripper works: an open one reaches 5.4 cm to either side of its tool, and its palm, as wide,
# ends 6 cm above; the bar stands 8.5 cm off the drawer's front.
_FLOOR_Z = 0.024  # of the inside
_RIM_Z = 0.080
_INSIDE_X = (-0.111, 0.087)
_INSIDE_Y = 0.097
_FRONT_X = -0.117
_BAR = (-0.208, 0.0, 0.070)
_TRAVEL = 0.19  # of the drawer
_PULL = 0.16  # how far the expert draws it out
_PLACE = (-0.042, -0.025, _FLOOR_Z)  # where the expert puts the block: b's side, off the panel

_GRASP_Z = {"a": -0.012, "b": -0.002}  # of the tools above the bar's and the block's middle, m
_CARRY_Z = 0.17  # of b's tool while a pulls, m
_OVER_RIM = 0.10  # of b's tool above the place in the drawer before it goes down, m
_DROP = 0.008  # how far the block falls when it is let go, m
_BESIDE_Y = 0.19  # a block nearer to the middle is too near for a finger, m
_SHOULDER = (0.0, 0.0, 0.20)  # from an arm's base, m
_WRIST_Z = 0.235  # of b's wrist above the block before it goes down, m
_REACH = 0.62  # of a wrist from its shoulder, m
_TRIES = 10  # of the whole, before the expert gives up

_WOOD = (0.55, 0.36, 0.22)
_FRONT = (0.86, 0.67, 0.44)
_INSIDE = (0.95, 0.90, 0.80)
_METAL = (0.25, 0.27, 0.31)
_BLOCK = (0.16, 0.66, 0.36)
_HANDS = tuple(f"{arm}_{part}" for arm in ARMS for part in ("f1", "f2", "palm"))


class DrawerReward(Settings):
    """Weights of the shaped reward; it lies in 0..1 if they add up to 1."""

    reach: float = Field(default=0.2, ge=0, description="Tools near the handle and the block.")
    open: float = Field(default=0.3, ge=0, description="How far the drawer is open.")
    place: float = Field(default=0.5, ge=0, description="Carried block near its place inside.")


class DrawerConfig(TwoArmTaskConfig):
    """The drawer task. Spans are the ends of a uniform distribution."""

    name: str = Field(default="drawer", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=(
            "open the drawer and put the block inside",
            "pull the drawer open and place the block in it",
            "put the block into the drawer",
            "store the block in the drawer of the cabinet",
            "one arm opens the drawer, the other drops the block in",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    max_steps: int = Field(
        default=300, ge=1, description="Control steps after which an episode ends."
    )
    cabinet_x: Span = Field(default=(0.54, 0.60), description="Forward place of the cabinet, m.")
    cabinet_y: Span = Field(default=(0.02, 0.12), description="Sideways place of the cabinet, m.")
    cabinet_yaw: Span = Field(default=(-0.15, 0.15), description="Heading of the cabinet, rad.")
    cabinet_colour: float = Field(
        default=0.08, ge=0, le=0.3, description="Greatest change of each channel."
    )
    drawer_friction: Factor = Field(
        default=(0.7, 1.5), description="Factor on the 1 N that move the drawer."
    )
    block_x: Span = Field(default=(0.26, 0.42), description="Forward place of the block, m.")
    block_y: Span = Field(default=(-0.38, -0.24), description="Sideways place of the block, m.")
    block_yaw: Span = Field(default=(-0.7, 0.7), description="Heading of the block, rad.")
    block_size: Factor = Field(
        default=(0.85, 1.15), description="Factor on the block's edge of 4 cm."
    )
    block_mass: Factor = Field(default=(0.6, 1.6), description="Factor on the block's 50 g.")
    block_colour: float = Field(
        default=0.15, ge=0, le=0.3, description="Greatest change of each channel."
    )
    opening: float = Field(
        default=0.12, gt=0, le=0.15, description="How far out the drawer counts as open, m."
    )
    lift: float = Field(
        default=0.06, gt=0, description="Rise of the block that counts as carried, m."
    )
    max_speed: float = Field(
        default=0.02, gt=0, description="Greatest speed of the block that counts as rest, m/s."
    )
    reward: DrawerReward = Field(default=DrawerReward(), description="Weights of the reward.")


class DrawerTask(Task):
    """Success: the block lies at rest in the open drawer, touched by no gripper, after arm a
    pulled the drawer open with both fingers on its handle, and then arm b alone carried the
    block above the table. One arm alone, a push or a throw passes through neither.

    Reward of a step: ``reach * (near_a + near_b) / 2 + open * min(1, slide / opening) + place *
    near_place``. ``near`` is ``1 - tanh(5 d)``, d the distance in m: of a's tool from the
    handle (1 once the drawer was opened), of b's tool from the block (1 once it was carried),
    of the block from the middle of the drawer (0 until it was carried, 1 inside).
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = DrawerConfig
    stages: ClassVar[tuple[str, ...]] = ("opened", "carried")
    objects: ClassVar[tuple[str, ...]] = ("block",)
    paraphrases: ClassVar[tuple[str, ...]] = (
        "slide the drawer out and drop the cube into it",
        "the cube belongs in the drawer, take it there",
        "use one gripper on the handle and the other to fill the drawer",
    )
    config: DrawerConfig

    def draw(self, rng: np.random.Generator) -> Variation:
        config = self.config
        cabinet = (config.cabinet_x, config.cabinet_y, config.cabinet_yaw)
        block = (config.block_x, config.block_y, config.block_yaw)
        return {
            "cabinet_pose": np.array([rng.uniform(*span) for span in cabinet]),
            "cabinet_colour": config.cabinet_colour * rng.uniform(-1, 1, 3),
            "drawer_friction": np.array(rng.uniform(*config.drawer_friction)),
            "block_pose": np.array([rng.uniform(*span) for span in block]),
            "block_size": np.array(rng.uniform(*config.block_size)),
            "block_mass": np.array(rng.uniform(*config.block_mass)),
            "block_colour": _BLOCK + config.block_colour * rng.uniform(-1, 1, 3),
        }

    def add_objects(self, world: Element, variation: Variation) -> None:
        tint = variation["cabinet_colour"]
        x, y, yaw = variation["cabinet_pose"]
        cabinet = add(world, "body", name="cabinet", pos=(x, y, 0.0), euler=(0.0, 0.0, yaw))
        _add_case(cabinet, tint)
        _add_drawer(cabinet, tint, _FRICTION * float(variation["drawer_friction"]))
        self._add_block(world, variation)

    def _add_block(self, world: Element, variation: Variation) -> None:
        x, y, yaw = variation["block_pose"]
        half = _EDGE * float(variation["block_size"])
        block = add(world, "body", name="block", pos=(x, y, half), euler=(0.0, 0.0, yaw))
        add(block, "freejoint")
        look = {
            "mass": _MASS * float(variation["block_mass"]),
            "rgba": paint(np.clip(variation["block_colour"], 0.0, 1.0)),
        }
        add(block, "geom", name="block", class_="object", type="box", size=(half,) * 3, **look)

    def reached(self, world: World, stage: int) -> bool:
        return self._pulled(world) if stage == 0 else self._carried(world)

    def success(self, world: World) -> bool:
        opened = world.slide("drawer") > self.config.opening
        still = world.speed("block") < self.config.max_speed
        touched = world.touching(world.geoms("block"), world.geoms(*_HANDS))
        return opened and still and _inside(world) and not touched

    def reward(self, world: World, stage: int) -> float:
        weights = self.config.reward
        opened = min(1.0, max(0.0, world.slide("drawer") / self.config.opening))
        near_a = 1.0 if stage > 0 else _closeness(world.tool("a") - _at_handle(world)[0])
        near_b = 1.0 if stage > 1 else _closeness(world.tool("b") - world.pose("block")[0])
        gap = world.pose("block")[0] - _in_world(world, "drawer", _PLACE)
        near = 1.0 if _inside(world) else _closeness(gap)
        placed = near if stage > 1 else 0.0
        reach = 0.5 * (near_a + near_b)
        return float(weights.reach * reach + weights.open * opened + weights.place * placed)

    def script(self, world: World) -> Iterator[Move]:
        pace = self.config.expert
        handle = Grasp("a", ("bar",), lambda: _at_handle(world))
        block = Grasp("b", ("block",), lambda: _at_block(world))
        for attempt in range(_TRIES):
            if attempt and _out_of_reach(world):
                break
            missing = [] if _hooked(world) else [handle]
            missing += [] if _in_hand(world) else [block]
            if missing and not (yield from pick(world, missing, pace)):
                continue
            yield self._pull(world)
            if not (yield from confirmed(lambda: self._pulled(world) and self._carried(world))):
                continue
            yield from place(
                "b",
                lambda: _at_place(world),
                pace,
                held=lambda: _in_hand(world),
                clearance=_OVER_RIM,
            )
            if _inside(world):
                break
        yield Move("let go", dict.fromkeys(ARMS, released), steps=pace.open_steps)
        away = {arm: raised(_OVER_RIM) for arm in ARMS}
        yield Move("withdraw", away, speed=pace.careful_speed)

    def _pull(self, world: World) -> Move:
        """a draws the drawer out; b raises the block meanwhile."""
        out = Target(_grip_point(world, _PULL), _yaw(world, "cabinet"), CLOSED)
        up = raised(max(0.0, _CARRY_Z - float(world.tool("b")[2])))
        pace = self.config.expert.careful_speed

        def in_both_hands() -> bool:
            return _hooked(world) and _in_hand(world)

        return Move("pull", {"a": out, "b": up}, speed=pace, guard=in_both_hands)

    def _pulled(self, world: World) -> bool:
        """The drawer is open, and a holds it by its handle."""
        held = _hooked(world) and world.fingers_on("a", world.geoms("bar")) == 2
        return held and world.slide("drawer") > self.config.opening

    def _carried(self, world: World) -> bool:
        """The block is off the table, in the fingers of b and of nobody else."""
        block = world.geoms("block")
        risen = world.pose("block")[0][2] - _EDGE > self.config.lift
        held = world.fingers_on("b", block) == 2 and world.fingers_on("a", block) == 0
        return bool(risen and held)


def _hooked(world: World) -> bool:
    """Whether a's gripper is around the bar and closed as far as it lets it, be both fingers
    in touch at this very step or not."""
    turn = world.pose("cabinet")[1]
    across, along, up = np.abs(turn.T @ (world.tool("a") - _at_handle(world)[0]))
    around = across < 0.015 and along < 0.04 and up < 0.03
    return bool(around and 0.5 < world.closure("a") < 0.85)


def _in_hand(world: World) -> bool:
    """Whether the block is between b's fingers, and at least one touches it."""
    gap = np.linalg.norm(world.tool("b") - world.pose("block")[0])
    return bool(gap < 0.03 and world.fingers_on("b", world.geoms("block")) > 0)


def _out_of_reach(world: World) -> bool:
    """Whether the block fell where b cannot pick it up again: on the far end of the cabinet,
    say, or off the table."""
    wrist = world.pose("block")[0] + np.array([0.0, 0.0, _WRIST_Z])
    return bool(np.linalg.norm(wrist - np.add(BASES["b"], _SHOULDER)) > _REACH)


def _inside(world: World) -> bool:
    """Whether the block's centre is in the drawer, below its rim."""
    origin, turn = world.pose("drawer")
    x, y, z = turn.T @ (world.pose("block")[0] - origin)
    return bool(_INSIDE_X[0] < x < _INSIDE_X[1] and abs(y) < _INSIDE_Y and _FLOOR_Z < z < _RIM_Z)


def _in_world(world: World, body: str, point: tuple[float, float, float]) -> FloatArray:
    position, rotation = world.pose(body)
    return np.asarray(position + rotation @ point)


def _grip_point(world: World, slide: float) -> FloatArray:
    """Where a's tool holds the bar when the drawer is out by ``slide``, m."""
    x, y, z = _BAR
    return _in_world(world, "cabinet", (x - slide, y, z + _GRASP_Z["a"]))


def _yaw(world: World, body: str) -> float:
    rotation = world.pose(body)[1]
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _closeness(gap: FloatArray) -> float:
    return float(1.0 - np.tanh(5.0 * np.linalg.norm(gap)))


def _at_handle(world: World) -> tuple[FloatArray, float]:
    """Tool of a around the bar, one finger in front of it and one behind."""
    return _grip_point(world, world.slide("drawer")), _yaw(world, "cabinet")


def _at_block(world: World) -> tuple[FloatArray, float]:
    """Tool of b around the block: across its two sides that turn the wrist least, but beside
    the drawer, where no finger goes between, along the drawer."""
    position, facing = world.pose("block")[0], np.pi / 2
    origin, turn = world.pose("cabinet")
    aside = abs(float((turn.T @ (position - origin))[1]))
    if _INSIDE_Y < aside < _BESIDE_Y:
        facing = np.pi + _yaw(world, "cabinet")
    yaw = nearest_branch(_yaw(world, "block"), facing, np.pi / 2)
    return position + np.array([0.0, 0.0, _GRASP_Z["b"]]), yaw


def _at_place(world: World) -> tuple[FloatArray, float]:
    """Tool of b when the block that it holds is just above its place in the drawer."""
    in_hand = world.tool("b") - world.pose("block")[0]
    above = np.array([0.0, 0.0, _EDGE + _DROP])
    return _in_world(world, "drawer", _PLACE) + above + in_hand, _yaw(world, "cabinet") + np.pi / 2


def _add_case(cabinet: Element, tint: FloatArray) -> None:
    """Bottom, sides, back and a top that stands over, but not over the front."""
    wood = paint(np.clip(_WOOD + tint, 0.0, 1.0))
    # Neither case nor drawer has an affinity: they touch everything but one another.
    look = {"type": "box", "conaffinity": 0, "rgba": wood}
    add(cabinet, "geom", size=(0.110, 0.121, 0.006), pos=(0.0, 0.0, 0.006), **look)
    for side in (1.0, -1.0):
        wall = {"size": (0.110, 0.006, 0.058), "pos": (0.0, side * 0.121, 0.058)}
        add(cabinet, "geom", **wall, **look)
    add(cabinet, "geom", size=(0.006, 0.121, 0.058), pos=(0.104, 0.0, 0.058), **look)
    top = {"size": (0.116, 0.135, 0.008), "pos": (0.006, 0.0, 0.124)}
    add(cabinet, "geom", name="cabinet_top", **top, **look)


def _add_drawer(cabinet: Element, tint: FloatArray, friction: float) -> None:
    drawer = add(cabinet, "body", name="drawer")
    runner = {"type": "slide", "axis": (-1.0, 0.0, 0.0), "range": (0.0, _TRAVEL)}
    add(drawer, "joint", name="drawer", **runner, damping=2, frictionloss=friction, armature=0.02)
    look = {"type": "box", "conaffinity": 0, "mass": 0.05}
    inside = {**look, "rgba": paint(np.clip(_INSIDE + tint, 0.0, 1.0))}
    floor = {"size": (0.101, 0.105, 0.004), "pos": (-0.010, 0.0, _FLOOR_Z - 0.004)}
    add(drawer, "geom", name="drawer_floor", **floor, **inside)
    for side in (1.0, -1.0):
        wall = {"size": (0.101, 0.004, 0.028), "pos": (-0.010, side * 0.101, _RIM_Z - 0.028)}
        add(drawer, "geom", **wall, **inside)
    back = {"size": (0.004, 0.097, 0.028), "pos": (0.087, 0.0, _RIM_Z - 0.028)}
    add(drawer, "geom", **back, **inside)
    front = {"size": (0.006, 0.124, 0.051), "pos": (_FRONT_X, 0.0, 0.063)}
    add(drawer, "geom", **front, **look, rgba=paint(np.clip(_FRONT + tint, 0.0, 1.0)))
    _add_handle(drawer, {**look, "mass": 0.02, "rgba": paint(_METAL)})


def _add_handle(drawer: Element, look: dict[str, object]) -> None:
    """A bar on two posts."""
    x, y, z = _BAR
    add(drawer, "geom", name="bar", class_="object", size=(0.012, 0.058, 0.012), pos=_BAR, **look)
    middle = 0.5 * (x + _FRONT_X)
    for side in (1.0, -1.0):
        post = {"size": (middle - x, 0.005, 0.007), "pos": (middle, y + side * 0.050, z)}
        add(drawer, "geom", **post, **look)

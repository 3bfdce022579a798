"""Sort: of two blocks, one for each arm, the one that the words name goes on the plate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from teamvla.config.settings import Settings
from teamvla.sim.experts import OPEN, Move, Target
from teamvla.sim.scene import ARMS, Element, add, paint
from teamvla.sim.skills import Grasp, holds, nearest_branch, pick, place, raised, released
from teamvla.sim.tasks.base import Factor, Phrasing, Span, Task, TwoArmTaskConfig, Variation

if TYPE_CHECKING:
    from teamvla.sim.world import FloatArray, World

BLOCKS = ("block_a", "block_b")  # each on the side of the arm of that name
#: Colours of blocks by the names that instructions give them: far apart under any light.
COLOURS = {
    "red": (0.86, 0.14, 0.12),
    "blue": (0.12, 0.28, 0.88),
    "green": (0.10, 0.62, 0.22),
    "yellow": (0.95, 0.80, 0.12),
    "purple": (0.52, 0.18, 0.68),
}
ColourName = Literal["red", "blue", "green", "yellow", "purple"]
_SIDE = {"block_a": 1.0, "block_b": -1.0}
_HALF = 0.025  # half of a block's edge, m
_MASS = 0.12  # of a block, kg
_PLATE = (0.08, 0.005)  # radius and half of the thickness, m
_PLATE_COLOUR = (0.97, 0.96, 0.93)
_INSET_COLOUR = (0.86, 0.85, 0.82)
_RISE_Z = 0.08  # how far the expert lifts before it carries, m
_DROP_Z = 0.004  # of a block above the plate when it is let go, m
_CARRIED_Z = 0.03  # rise of a block that counts as carried, m
_HOME_YAW = np.pi / 2


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a colour stands in it twice")
    return names


def _names_a_colour(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    for phrasing in phrasings:
        if "{colour}" not in phrasing:
            raise ValueError(f"'{phrasing}' does not hold {{colour}}")
    return phrasings


class BlocksReward(Settings):
    """Weights of the shaped reward; it lies in 0..1 if they add up to 1."""

    reach: float = Field(default=0.2, ge=0, description="A tool near the wanted block.")
    grasp: float = Field(default=0.2, ge=0, description="The wanted block was carried.")
    carry: float = Field(default=0.3, ge=0, description="The wanted block near the plate.")
    place: float = Field(default=0.3, ge=0, description="The goal is met at this step.")


class BlocksConfig(TwoArmTaskConfig):
    """Two blocks and a plate. Spans are the ends of a uniform distribution."""

    colours: Annotated[tuple[ColourName, ...], AfterValidator(_distinct)] = Field(
        default=("red", "blue"),
        min_length=2,
        description="What the two blocks are painted in: two different ones are drawn.",
    )
    block_x: Span = Field(default=(0.34, 0.46), description="Forward position of a block, m.")
    block_y: Span = Field(
        default=(0.16, 0.25), description="Distance of a block from the middle, m."
    )
    block_yaw: Span = Field(default=(-0.35, 0.35), description="Heading of a block, rad.")
    block_size: Factor = Field(default=(0.92, 1.08), description="Factor on an edge of 5 cm.")
    block_mass: Factor = Field(default=(0.7, 1.4), description="Factor on a block's 0.12 kg.")
    block_colour: float = Field(
        default=0.06, ge=0, le=0.3, description="Greatest change of each channel."
    )
    plate_x: Span = Field(default=(0.38, 0.44), description="Forward position of the plate, m.")
    plate_y: Span = Field(default=(-0.03, 0.03), description="Sideways position of the plate, m.")
    tolerance: float = Field(
        default=0.07,
        gt=0,
        description="Greatest distance of the block's centre from the plate's, m.",
    )
    max_shift: float = Field(
        default=0.05, gt=0, description="How far the other block may be moved, m."
    )
    max_speed: float = Field(
        default=0.05, gt=0, description="Greatest speed that counts as resting, m/s."
    )
    reward: BlocksReward = Field(default=BlocksReward(), description="Weights of the reward.")


class SortConfig(BlocksConfig):
    """The sort task; each phrasing holds ``{colour}``, which nothing else tells."""

    name: str = Field(default="sort", description="Which task.")
    instructions: Annotated[tuple[Phrasing, ...], AfterValidator(_names_a_colour)] = Field(
        default=(
            "put the {colour} block on the plate",
            "place the {colour} block onto the plate",
            "move the {colour} block to the plate",
            "pick up the {colour} block and set it on the plate",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    max_steps: int = Field(
        default=200, ge=1, description="Control steps after which an episode ends."
    )


class BlocksTask(Task):
    """One block of two belongs on the plate; what tells which one, a subclass decides.

    Success: the wanted block was carried by a gripper with both fingers on it, and rests on
    the plate, nobody's finger touching it. The other block must stay where it lies: once it
    was taken away the episode is lost, so that trying both does not pay.

    Reward of a step: ``reach * (1 - tanh(5 d)) + grasp * carried + carry * (1 - tanh(5 e)) +
    place * success``, and 0 once the episode is lost; d is the distance in m from the nearer
    tool to the wanted block, and 0 once that was carried; e is the distance from the wanted
    block to the plate.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = BlocksConfig
    stages: ClassVar[tuple[str, ...]] = ("carried",)
    objects: ClassVar[tuple[str, ...]] = BLOCKS
    config: BlocksConfig

    def draw(self, rng: np.random.Generator) -> Variation:
        config = self.config
        spans = (config.block_x, config.block_y, config.block_yaw)
        return {
            "blocks": np.array([[rng.uniform(*span) for span in spans] for _ in BLOCKS]),
            "sizes": rng.uniform(*config.block_size, len(BLOCKS)),
            "masses": rng.uniform(*config.block_mass, len(BLOCKS)),
            "colours": rng.permutation(len(config.colours))[: len(BLOCKS)].astype(np.float64),
            "tints": config.block_colour * rng.uniform(-1, 1, (len(BLOCKS), 3)),
            "plate": np.array([rng.uniform(*config.plate_x), rng.uniform(*config.plate_y)]),
            "wanted": np.array(float(rng.integers(len(BLOCKS)))),
        }

    def choices(self) -> dict[str, int]:
        return {"colours": len(self.config.colours), "wanted": len(BLOCKS)}

    def colour(self, variation: Variation) -> ColourName:
        """Name of the wanted block's colour."""
        return self.config.colours[int(variation["colours"][int(variation["wanted"])])]

    def add_objects(self, world: Element, variation: Variation) -> None:
        _add_plate(world, variation["plate"])
        for number, name in enumerate(BLOCKS):
            x, y, yaw = variation["blocks"][number]
            half = _HALF * float(variation["sizes"][number])
            start = (x, _SIDE[name] * y, half)
            block = add(world, "body", name=name, pos=start, euler=(0.0, 0.0, yaw))
            add(block, "freejoint")
            named = COLOURS[self.config.colours[int(variation["colours"][number])]]
            colour = np.clip(named + variation["tints"][number], 0.0, 1.0)
            look = {"mass": _MASS * float(variation["masses"][number]), "rgba": paint(colour)}
            add(block, "geom", name=name, class_="object", type="box", size=(half,) * 3, **look)
            _mark(world, f"start_{name}", start)
            if number == int(variation["wanted"]):
                _mark(block, "wanted", (0.0, 0.0, 0.0))

    def reached(self, world: World, stage: int) -> bool:
        block = wanted(world)
        risen = world.pose(block)[0][2] - _start(world, block)[2] > _CARRIED_Z
        geom = world.geoms(block)
        return bool(risen and any(world.fingers_on(arm, geom) == 2 for arm in ARMS))

    def success(self, world: World) -> bool:
        return self.served(world, wanted(world))

    def spoilt(self, world: World) -> bool:
        other = BLOCKS[1 - BLOCKS.index(wanted(world))]
        moved = np.linalg.norm(world.pose(other)[0] - _start(world, other))
        return bool(moved > self.config.max_shift)

    def served(self, world: World, block: str) -> bool:
        """Whether ``block`` rests on the plate, and nobody touches it."""
        config, geom = self.config, world.geoms(block)
        off = np.linalg.norm((world.pose(block)[0] - _plate(world))[:2])
        return bool(
            off < config.tolerance
            and world.speed(block) < config.max_speed
            and world.touching(geom, world.geoms("plate"))
            and not world.touching(geom, world.geoms("table"))
            and not any(world.fingers_on(arm, geom) for arm in ARMS)
        )

    def reward(self, world: World, stage: int) -> float:
        weights, block = self.config.reward, wanted(world)
        if stage < 0:
            return 0.0
        centre = world.pose(block)[0]
        gap = min(float(np.linalg.norm(world.tool(arm) - centre)) for arm in ARMS)
        carried = stage > 0
        near = 1.0 if carried else 1.0 - np.tanh(5.0 * gap)
        close = 1.0 - np.tanh(5.0 * np.linalg.norm((centre - _plate(world))[:2]))
        met = carried and self.success(world)
        parts = (near, carried, close, met)
        shares = (weights.reach, weights.grasp, weights.carry, weights.place)
        return float(sum(share * part for share, part in zip(shares, parts, strict=True)))

    def script(self, world: World) -> Iterator[Move]:
        return self.serve(world, wanted(world))

    def serve(self, world: World, block: str) -> Iterator[Move]:
        """Put ``block`` on the plate, as often as it takes, and go back."""
        pace, arm = self.config.expert, ARMS[BLOCKS.index(block)]
        home = Target(world.tool(arm), _HOME_YAW, OPEN)
        grasp = Grasp(arm, (block,), lambda: _around(world, block))

        def held() -> bool:
            return holds(world, [grasp])

        def on_plate() -> tuple[FloatArray, float]:
            return _over_plate(world, arm, block)

        while not self.served(world, block):
            if not (yield from pick(world, [grasp], pace)):
                continue
            yield Move("lift", {arm: raised(_RISE_Z)}, speed=pace.careful_speed, guard=held)
            if not (yield from place(arm, on_plate, pace, held=held)):
                yield Move("release", {arm: released}, steps=pace.open_steps)
        yield Move("return", {arm: home}, speed=pace.free_speed)


class SortTask(BlocksTask):
    """The instruction names the colour of the wanted block; no picture tells it.

    Without its words a perfect policy is right in half of the episodes.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = SortConfig
    paraphrases: ClassVar[tuple[str, ...]] = (
        "the {colour} cube belongs on the dish",
        "get the {colour} block over to the plate",
        "lay the {colour} one down on the plate",
    )

    def words(self, variation: Variation, phrasing: str) -> str:
        return phrasing.replace("{colour}", self.colour(variation))

    def other_instructions(self, variation: Variation) -> tuple[str, ...]:
        """Those that name the other block."""
        swapped = {**variation, "wanted": 1.0 - variation["wanted"]}
        return tuple(self.words(swapped, phrasing) for phrasing in self.config.instructions)


def wanted(world: World) -> str:
    """Name of the block that belongs on the plate."""
    body = int(world.model.site("wanted").bodyid[0])
    return str(world.model.body(body).name)


def _add_plate(world: Element, place: FloatArray) -> None:
    radius, half = _PLATE
    x, y = place
    shape = {"type": "cylinder", "size": (radius, half), "pos": (x, y, half)}
    add(world, "geom", name="plate", **shape, rgba=paint(_PLATE_COLOUR))
    inset = {"type": "cylinder", "size": (0.75 * radius, half), "pos": (x, y, half + 0.0004)}
    look = {"contype": 0, "conaffinity": 0, "rgba": paint(_INSET_COLOUR)}
    add(world, "geom", name="plate_inset", **inset, **look)


def _mark(parent: Element, name: str, place: Sequence[float]) -> None:
    """A point that tasks can ask for and no camera sees."""
    add(parent, "site", name=name, pos=place, size=(0.001,), group=4)


def _start(world: World, block: str) -> FloatArray:
    return np.asarray(world.data.site(f"start_{block}").xpos)


def _plate(world: World) -> FloatArray:
    return np.asarray(world.data.geom("plate").xpos)


def _around(world: World, block: str) -> tuple[FloatArray, float]:
    """Pose of the tool that takes ``block``: around its centre, square to its sides."""
    position, rotation = world.pose(block)
    # Of the edges the one that lies flattest: a block that fell over is a cube all the same.
    edge = rotation[:, int(np.argmin(np.abs(rotation[2])))]
    heading = float(np.arctan2(edge[1], edge[0]))
    return position, nearest_branch(heading, _HOME_YAW, period=np.pi / 2)


def _over_plate(world: World, arm: str, block: str) -> tuple[FloatArray, float]:
    """Pose of the tool that leaves ``block``, as it lies in the hand, just over the plate."""
    centre, yaw = _around(world, block)
    rise = np.array([0.0, 0.0, _PLATE[1] + _half(world, block) + _DROP_Z])
    return _plate(world) + rise + world.tool(arm) - centre, yaw


def _half(world: World, block: str) -> float:
    return float(world.model.geom(block).size[0])

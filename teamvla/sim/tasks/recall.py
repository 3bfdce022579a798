"""Recall: a lamp shows for a moment which block belongs on the plate; then one must remember."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator

from teamvla.sim.experts import Move
from teamvla.sim.scene import Element, add, paint
from teamvla.sim.tasks.base import Phrasing, TwoArmTaskConfig, Variation
from teamvla.sim.tasks.sort import COLOURS, BlocksConfig, BlocksTask

if TYPE_CHECKING:
    from teamvla.sim.world import World

_LAMP_PLACE = (0.60, 0.0)  # beyond the plate, in sight of both cameras, m
_SOCKET = (0.085, 0.008)  # radius and half of the thickness, m
_DOME = 0.068  # radius of the half sphere that glows, m
_SOCKET_COLOUR = (0.36, 0.38, 0.44)
_DARK = (0.12, 0.12, 0.14)


class RecallConfig(BlocksConfig):
    """The recall task: two blocks, a plate, and a lamp beyond it."""

    name: str = Field(default="recall", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=(
            "put the block of the lamp's colour on the plate",
            "remember the lamp and place the matching block onto the plate",
            "move the block that the lamp showed to the plate",
            "wait for the lamp to go dark, then set the block of its colour on the plate",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    max_steps: int = Field(
        default=240, ge=1, description="Control steps after which an episode ends."
    )
    watch_steps: int = Field(
        default=15, ge=1, description="Steps at the start for which the lamp is lit."
    )
    wait_steps: int = Field(
        default=20,
        ge=1,
        description="Steps after that until the arms' brakes are let off; more than a policy "
        "without memory plans ahead.",
    )

    @model_validator(mode="after")
    def _leave_time_to_act(self) -> RecallConfig:
        locked = self.watch_steps + self.wait_steps
        if locked >= self.max_steps:
            raise ValueError(f"max_steps is {self.max_steps}, but the arms are locked for {locked}")
        return self


class RecallTask(BlocksTask):
    """The lamp is lit in the colour of the wanted block for ``watch_steps`` steps, then dark
    for good. The instruction does not tell, and the brakes of both arms stay on until
    ``wait_steps`` later, whatever they are told: so at the moment when the arms can first
    move, everything that can be observed is the same to the bit whichever block was shown.

    A policy that sees the present only, or at most the last ``wait_steps`` steps, what it
    planned then included, can do no better than choose by chance: half of the episodes. It
    cannot carry the choice in its arms' pose, for they could not move while the lamp was
    lit; nor can it find out by trying, for the wrong block on the plate ends all hope.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = RecallConfig
    paraphrases: ClassVar[tuple[str, ...]] = (
        "the cube that looks like the light belongs on the dish",
        "bring the block whose colour you saw to the plate",
        "lay the one that the screen showed down on the plate",
    )
    config: RecallConfig

    def add_objects(self, world: Element, variation: Variation) -> None:
        super().add_objects(world, variation)
        x, y = _LAMP_PLACE
        radius, half = _SOCKET
        look = {"contype": 0, "conaffinity": 0}
        socket = {"size": (radius, half), "pos": (x, y, half), "rgba": paint(_SOCKET_COLOUR)}
        add(world, "geom", name="lamp_socket", type="cylinder", **socket, **look)
        dome = {"size": (_DOME,), "pos": (x, y, half), "rgba": paint(_DARK)}
        add(world, "geom", name="lamp", type="sphere", **dome, **look)

    def show(self, world: World, variation: Variation, step: int) -> None:
        lit = step < self.config.watch_steps
        world.set_colour("lamp", np.array(COLOURS[self.colour(variation)] if lit else _DARK))

    def locked(self, step: int) -> bool:
        return step < self.config.watch_steps + self.config.wait_steps

    def script(self, world: World) -> Iterator[Move]:
        yield Move("watch", {}, steps=self.config.watch_steps)
        yield Move("wait", {}, steps=self.config.wait_steps)
        yield from super().script(world)

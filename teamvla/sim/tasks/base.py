"""What a task is: objects in the scene, their randomisation, success, reward, expert."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from teamvla.config.settings import Settings
from teamvla.registry import Registry
from teamvla.sim.experts import ExpertConfig

if TYPE_CHECKING:
    from teamvla.sim.experts import Move
    from teamvla.sim.scene import Element
    from teamvla.sim.world import World


def _in_order(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"the first of {list(span)} is greater than the second")
    return span


#: What was drawn for one episode, by name; numbers only, so that a state can hold it.
Variation = dict[str, NDArray[np.float64]]
Span = Annotated[tuple[float, float], AfterValidator(_in_order)]
_Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[tuple[_Positive, _Positive], AfterValidator(_in_order)]
Phrasing = Annotated[str, Field(min_length=1)]


class CameraConfig(Settings):
    """The two cameras of the observation."""

    height: int = Field(default=64, ge=8, le=2048, description="Rows of a picture.")
    width: int = Field(default=64, ge=8, le=2048, description="Columns of a picture.")
    renderer: Literal["ray", "gl"] = Field(
        default="ray",
        description="ray: cast in NumPy, runs anywhere; gl: OpenGL, needs EGL or OSMesa.",
    )
    shadows: bool = Field(default=False, description="Hard shadows; they nearly double the cost.")


class TaskConfig(Settings):
    """What every task can be told; each task adds its own keys."""

    name: str = Field(default="lift", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=("do the task",), min_length=1, description="Phrasings; one is drawn per episode."
    )
    max_steps: int = Field(
        default=150, ge=1, description="Control steps after which an episode ends."
    )
    hold_steps: int = Field(
        default=5, ge=1, description="Consecutive steps for which success must hold (20 a second)."
    )
    camera: CameraConfig = Field(default=CameraConfig(), description="Cameras of both arms.")
    expert: ExpertConfig = Field(default=ExpertConfig(), description="The scripted expert.")

    @classmethod
    def choose(cls, data: dict[str, Any]) -> type[Settings]:
        """The settings class of the task that ``data["name"]`` names."""
        return TASKS.get(str(data.get("name", "lift"))).Config

    @classmethod
    def variants(cls) -> list[type[Settings]]:
        return [TASKS.get(name).Config for name in TASKS]


class Task(ABC):
    """One task. It keeps no state of its own: everything lies in the world and the variation."""

    Config: ClassVar[type[TaskConfig]] = TaskConfig

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @abstractmethod
    def add_objects(self, world: Element) -> None:
        """Append the task's bodies to the worldbody of the scene."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Variation:
        """Everything that is random in an episode, drawn in a fixed order."""

    @abstractmethod
    def vary(self, world: World, variation: Variation) -> None:
        """Give the model the masses, colours and light that were drawn."""

    @abstractmethod
    def place(self, world: World, variation: Variation) -> None:
        """Put the objects where they were drawn."""

    @abstractmethod
    def success(self, world: World) -> bool:
        """Whether the goal is met at this very step."""

    @abstractmethod
    def reward(self, world: World) -> float:
        """Shaped reward of this step, in 0..1."""

    @abstractmethod
    def script(self, world: World) -> Iterator[Move]:
        """The expert's moves."""


TASKS: Registry[type[Task]] = Registry(
    "task", {"lift": "teamvla.sim.tasks.lift:LiftTask"}, "teamvla.tasks"
)

"""What a task is: objects in the scene, their randomisation, success, reward, expert.

A task is one file: a settings class, a subclass of :class:`Task`, and a row in :data:`TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from teamvla.config.settings import Settings
from teamvla.registry import Registry
from teamvla.sim.experts import ExpertConfig
from teamvla.sim.scene import CAMERA_FIELDS, SUN_POSITION, SUN_STRENGTH, Light, Physics

if TYPE_CHECKING:
    from teamvla.sim.env import TwoArmEnv
    from teamvla.sim.experts import Move
    from teamvla.sim.interface import RobotEnv
    from teamvla.sim.scene import Element
    from teamvla.sim.world import World


def _in_order(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"the first of {list(span)} is greater than the second")
    return span


#: What was drawn for one episode, by name; numbers only, so that a state can hold it.
Variation = dict[str, NDArray[np.float64]]
EDITS = 2**32  # seeds of an episode's scene edits
Span = Annotated[tuple[float, float], AfterValidator(_in_order)]
_Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[tuple[_Positive, _Positive], AfterValidator(_in_order)]
Phrasing = Annotated[str, Field(min_length=1)]


_T = TypeVar("_T", bound="TaskConfig")


class TaskConfig(Settings):
    """What every environment can be told; each adds its own keys."""

    name: str = Field(default="lift", description="Which task.")
    instructions: tuple[Phrasing, ...] = Field(
        default=("do the task",), min_length=1, description="Phrasings; one is drawn per episode."
    )
    max_steps: int = Field(
        default=150, ge=1, description="Control steps after which an episode ends."
    )

    def completed(self, kind: type[_T]) -> _T:
        """These settings as ``kind`` has them: its defaults for all that was not said."""
        if isinstance(self, kind):
            return self
        return kind.model_validate(self.model_dump(exclude_unset=True))

    @property
    def task_name(self) -> str:
        """What episodes call the task."""
        return self.name

    @classmethod
    def choose(cls, data: dict[str, Any]) -> type[Settings]:
        """The settings class of the task that ``data["name"]`` names."""
        return TASKS.get(str(data.get("name", "lift"))).Config

    @classmethod
    def variants(cls) -> list[type[Settings]]:
        return [TASKS.get(name).Config for name in TASKS]


class EnvironmentKind(Protocol):
    """What stands in :data:`TASKS`: a settings class and the environment that is made from it."""

    Config: ClassVar[type[TaskConfig]]

    @classmethod
    def make(cls, config: Any, render_mode: str | None = None) -> RobotEnv:
        """The environment that ``config``, an instance of ``Config``, describes."""


class CameraConfig(Settings):
    """The cameras of the observation."""

    height: int = Field(default=64, ge=8, le=2048, description="Rows of a picture.")
    width: int = Field(default=64, ge=8, le=2048, description="Columns of a picture.")
    wrist: bool = Field(default=False, description="A camera on each wrist as well.")
    top: bool = Field(default=False, description="A camera above the table as well.")
    depth: bool = Field(default=False, description="Depth of every camera, from the same rays.")
    segmentation: bool = Field(
        default=False, description="What every pixel shows, from the same rays."
    )
    renderer: Literal["ray", "gl"] = Field(
        default="ray",
        description="ray: cast in NumPy, runs anywhere; gl: OpenGL, needs EGL or OSMesa.",
    )
    shadows: bool = Field(default=True, description="Hard shadows; they nearly double the cost.")
    jitter: float = Field(
        default=0.01, ge=0, le=0.3, description="Greatest shift of a fixed camera, m, per episode."
    )


class PhysicsConfig(Settings):
    """The solver; experts and success hold for every choice."""

    integrator: Literal["implicitfast", "euler"] = Field(
        default="implicitfast", description="MuJoCo's integrator: implicitfast or euler."
    )
    timestep_ms: Literal[4, 5] = Field(default=5, description="Length of a physics step, ms.")


class TwoArmTaskConfig(TaskConfig):
    """What every task of the two arms can be told."""

    hold_steps: int = Field(
        default=5, ge=1, description="Consecutive steps for which success must hold (20 a second)."
    )
    camera: CameraConfig = Field(default=CameraConfig(), description="Cameras of both arms.")
    light_shift: float = Field(
        default=0.25, ge=0, le=1, description="Greatest shift of the light, m."
    )
    light_level: Factor = Field(default=(0.9, 1.1), description="Factor on the light's strength.")
    physics: PhysicsConfig = Field(default=PhysicsConfig(), description="The solver.")
    expert: ExpertConfig = Field(default=ExpertConfig(), description="The scripted expert.")


class Task(ABC):
    """One task of the two arms.

    It keeps no state of its own: everything lies in the world, in what was drawn for the
    episode, and in the stage. ``stages`` names what must have happened before success
    counts, in this order: so that it cannot be had by accident, or by a way around.

    Attributes:
        objects: the free bodies that the task is about; perturbations act on them.
        paraphrases: phrasings that no episode is recorded with, to test how a policy takes
            words that it never saw.
    """

    Config: ClassVar[type[TwoArmTaskConfig]] = TwoArmTaskConfig
    stages: ClassVar[tuple[str, ...]] = ()
    objects: ClassVar[tuple[str, ...]] = ()
    paraphrases: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: TwoArmTaskConfig) -> None:
        self.config = config

    @classmethod
    def make(cls, config: TaskConfig, render_mode: str | None = None) -> TwoArmEnv:
        """The environment of this task."""
        from teamvla.sim.env import TwoArmEnv

        return TwoArmEnv(config, render_mode)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Variation:
        """What is random about the task in an episode, drawn in a fixed order."""

    @abstractmethod
    def add_objects(self, world: Element, variation: Variation) -> None:
        """Append the task's bodies to the worldbody, with places, sizes, masses and colours."""

    @abstractmethod
    def success(self, world: World) -> bool:
        """Whether the goal is met at this very step; it counts once all stages are reached."""

    @abstractmethod
    def reward(self, world: World, stage: int) -> float:
        """Shaped reward of this step, in 0..1."""

    @abstractmethod
    def script(self, world: World) -> Iterator[Move]:
        """The expert's moves."""

    def reached(self, world: World, stage: int) -> bool:
        """Whether ``stages[stage]``, the next one, is reached at this very step."""
        return True

    def spoilt(self, world: World) -> bool:
        """Whether what is so at this very step rules success out for the rest of the episode."""
        return False

    def choices(self) -> dict[str, int]:
        """Which of the drawn things choose among so many, by name: 0 .. that many - 1."""
        return {}

    def words(self, variation: Variation, phrasing: str) -> str:
        """The instruction that ``phrasing`` gives for what was drawn."""
        return phrasing

    def other_instructions(self, variation: Variation) -> tuple[str, ...]:
        """Instructions that mean something else here: by default those of other tasks."""
        others = [name for name in ("lift", "handoff", "drawer") if name != self.config.name]
        return tuple(w for name in others for w in TASKS.get(name).Config().instructions)

    def locked(self, step: int) -> bool:
        """Whether the arms' brakes are on, ``step`` steps after the reset: no command is heard."""
        return False

    def show(self, world: World, variation: Variation, step: int) -> None:
        """Change what is seen, never what happens, at ``step`` steps after the reset."""
        return


@dataclass(frozen=True)
class Surroundings:
    """What was drawn for an episode that is the same for every task."""

    light: Light
    camera_shift: dict[str, tuple[float, float, float]]

    @staticmethod
    def draw(config: TwoArmTaskConfig, rng: np.random.Generator) -> Variation:
        """In a fixed order: phrasing, light, cameras."""
        return {
            "instruction": np.array(float(rng.integers(len(config.instructions)))),
            "light": SUN_POSITION + config.light_shift * rng.uniform(-1, 1, 3),
            "light_level": np.array(rng.uniform(*config.light_level)),
            "camera_shift": config.camera.jitter * rng.uniform(-1, 1, (len(_JITTERED), 3)),
        }

    @staticmethod
    def choices(config: TwoArmTaskConfig) -> dict[str, int]:
        """As :meth:`Task.choices`."""
        return {"instruction": len(config.instructions), "edits": EDITS}

    @classmethod
    def of(cls, variation: Variation) -> Surroundings:
        """Those of an episode for which ``variation`` was drawn."""
        level = SUN_STRENGTH * float(variation["light_level"])
        shifts = zip(_JITTERED, variation["camera_shift"].tolist(), strict=True)
        return cls(
            Light(tuple(variation["light"].tolist()), level),
            {camera: (x, y, z) for camera, (x, y, z) in shifts},
        )


_JITTERED = (*CAMERA_FIELDS, "rgb_top")


def solver(config: PhysicsConfig) -> Physics:
    """The scene's physics that the settings ask for."""
    integrator = "Euler" if config.integrator == "euler" else config.integrator
    return Physics(config.timestep_ms / 1000, integrator)


TASKS: Registry[type[EnvironmentKind]] = Registry(
    "task",
    {
        "lift": "teamvla.sim.tasks.lift:LiftTask",
        "handoff": "teamvla.sim.tasks.handoff:HandoffTask",
        "drawer": "teamvla.sim.tasks.drawer:DrawerTask",
        "sort": "teamvla.sim.tasks.sort:SortTask",
        "recall": "teamvla.sim.tasks.recall:RecallTask",
        "driving": "teamvla.sim.driving.task:DrivingTask",
        "gymnasium": "teamvla.sim.adapters.task:GymnasiumTask",
    },
    "teamvla.tasks",
)

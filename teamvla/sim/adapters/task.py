"""Settings of a foreign environment, and how it is made. Imports no simulator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic.config import JsonDict

from teamvla.config.settings import Settings
from teamvla.sim.adapters.mapping import FieldMapping
from teamvla.sim.tasks.base import TaskConfig

if TYPE_CHECKING:
    from teamvla.sim.interface import RobotEnv


#: of a setting that names code, or its arguments: a data file may not choose it (teamvla.replay)
_CODE: JsonDict = {"code": True}


class PictureConfig(Settings):
    """All pictures of an observation: of the environment's own, size alone applies."""

    height: int = Field(default=64, ge=8, le=2048, description="Rows of a picture.")
    width: int = Field(default=64, ge=8, le=2048, description="Columns of a picture.")
    renderer: Literal["ray", "gl"] = Field(
        default="ray",
        description="Of the model's cameras. ray: cast in NumPy, runs anywhere; gl: OpenGL, "
        "needs EGL or OSMesa.",
    )
    shadows: bool = Field(default=False, description="Hard shadows; they nearly double the cost.")


class GymnasiumConfig(TaskConfig):
    """An environment of somebody else's, by its Gymnasium id."""

    name: str = Field(default="gymnasium", description="Which task.")
    id: str = Field(
        min_length=1, description="Id of the Gymnasium environment.", json_schema_extra=_CODE
    )
    slug: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9_-]{0,63})?$",
        description="Name of the task in the data; made of the id if empty.",
    )
    module: str | None = Field(
        default=None,
        description="What to import so that the id is registered.",
        json_schema_extra=_CODE,
    )
    kwargs: dict[str, Any] = Field(
        default={},
        description="Arguments that the environment is made with.",
        json_schema_extra=_CODE,
    )
    wrap: str | None = Field(
        default=None,
        description="module:name, called with the environment to wrap or mend it.",
        json_schema_extra=_CODE,
    )
    expert: str | None = Field(
        default=None,
        description="module:Class of a scripted expert, made with the environment.",
        json_schema_extra=_CODE,
    )
    control_hz: float = Field(default=20.0, gt=0, description="Control steps a second.")
    hold_steps: int = Field(
        default=1, ge=1, description="Consecutive steps for which success must hold."
    )
    seed_bits: int = Field(
        default=128, ge=8, le=128, description="Bits of a seed that it takes; 32 for RandomState."
    )
    state: tuple[str, ...] | None = Field(
        default=None,
        description="Attributes that decide, with MuJoCo's state and the random generator, how "
        "an episode goes on; null: nobody knows, and no state is saved.",
        json_schema_extra=_CODE,
    )
    camera: PictureConfig = Field(default=PictureConfig(), description="All pictures.")
    mapping: FieldMapping = Field(description="What becomes which field of a step.")

    @property
    def task_name(self) -> str:
        """Name of the task in the data."""
        words = re.sub(r"[^a-z0-9]+", "_", self.id.lower().partition("/")[2] or self.id.lower())
        return self.slug or words.strip("_")[:64]


class GymnasiumTask:
    """Any environment that is registered with Gymnasium, through a mapping of its fields."""

    Config: ClassVar[type[TaskConfig]] = GymnasiumConfig

    @classmethod
    def make(cls, config: Any, render_mode: str | None = None) -> RobotEnv:
        """The environment that ``config`` describes.

        Raises:
            MissingDependencyError: its package is not installed; names the extra.
            RegistryError: no environment has this id.
            ConfigError: the mapping does not fit what the environment gives and takes.
        """
        from teamvla.sim.adapters.env import GymnasiumEnv

        return GymnasiumEnv(config, render_mode)

"""Which column of a foreign data set is what, and how its numbers become ours.

The same settings say how a user's data set is read and how our own output is read
back: a writer of a format leaves its mapping beside the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from teamvla.config.settings import Settings


class Column(Settings):
    """Columns of one foreign field: ``value * scale + offset``."""

    field: str = Field(description="Name of the foreign field.")
    columns: tuple[int, ...] | None = Field(default=None, description="Which; all by default.")
    scale: float = Field(default=1.0, description="Degrees to rad: 0.017453292519943295.")
    offset: float = Field(default=0.0, description="Added after the scale.")
    shift: int = Field(
        default=0, ge=0, description="Row t takes row t + shift; the last rows are dropped."
    )


class Gripper(Settings):
    """One column of a foreign field, and which values mean open and closed."""

    field: str = Field(description="Name of the foreign field.")
    column: int = Field(default=0, description="Which of its columns.")
    open: float = Field(default=0.0, description="Value of an open gripper.")
    closed: float = Field(default=1.0, description="Value of a closed gripper.")
    shift: int = Field(default=0, ge=0, description="As for columns.")


class Passed(Settings):
    """A field that passes as it is, with the dtype and the shape of a step that it has here."""

    field: str = Field(description="Name of the foreign field.")
    dtype: str | None = Field(default=None, description="NumPy dtype; as it is by default.")
    shape: tuple[int, ...] | None = Field(default=None, description="Of a step.")


class ArmMapping(Settings):
    """Where one arm's numbers stand."""

    joints: tuple[str, ...] = Field(default=(), description="Names of its joints.")
    limits: tuple[tuple[float, float], ...] | None = Field(default=None, description="rad.")
    q: Column = Field(description="Measured joint positions, rad.")
    action: Column = Field(description="Joint position targets, rad.")
    grip: Gripper | None = Field(default=None, description="Gripper command; none: 0, open.")
    grip_q: Gripper | None = Field(default=None, description="Measured gripper opening.")


class MappingConfig(Settings):
    """What a foreign data set does not say about itself."""

    control_hz: float | None = Field(default=None, gt=0, description="If the files do not say it.")
    action: Literal["absolute_joint_position", "delta_joint_position"] = Field(
        default="absolute_joint_position", description="What the action columns are."
    )
    embodiment: str | None = Field(default=None, description="two_arm or single_arm by default.")
    contract: dict[str, Any] | None = Field(
        default=None, description="The whole contract, instead of the keys above and `joints`."
    )
    task: str | None = Field(default=None, description="Slug; made of the source's by default.")
    instruction: str | None = Field(default=None, description="The prompt, if none is stored.")
    success: Passed | None = Field(default=None, description="Flag of each step.")
    arms: dict[str, ArmMapping] = Field(min_length=1, description="Name of an arm -> its columns.")
    cameras: dict[str, str] = Field(default={}, description="Our picture field -> theirs.")
    fields: dict[str, Passed] = Field(default={}, description="Further fields of ours -> theirs.")

    def foreign_fields(self) -> set[str]:
        """Every foreign field that something is taken from."""
        names = {*self.cameras.values(), *(passed.field for passed in self.fields.values())}
        if self.success is not None:
            names.add(self.success.field)
        for arm in self.arms.values():
            parts = (arm.q, arm.action, arm.grip, arm.grip_q)
            names |= {part.field for part in parts if part is not None}
        return names


def slug(text: str, default: str = "task") -> str:
    """A legal name made of any text."""
    cleaned = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:64].strip("-")
    return cleaned or default


def picture_field(camera: str) -> str:
    """Our name for a foreign camera: ``cam_left_wrist`` is ``rgb_left_wrist``."""
    plain = camera.rpartition("/")[2].removeprefix("observation.images.")
    return f"rgb_{slug(plain.removeprefix('cam_').removesuffix('_image'), 'camera')}"[:64]


Columns = Mapping[str, np.ndarray]

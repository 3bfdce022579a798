"""The semantic contract: what the numbers in a dataset or checkpoint mean.

It is written by the environment that produced the data, travels in every episode,
the manifest and the checkpoint, and is compared wherever two of them meet. A
difference stops the work with a readable list; it is never averaged over.
"""

from __future__ import annotations

import hashlib
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, ValidationError

from teamvla.config.differences import differences, listed
from teamvla.config.settings import Settings
from teamvla.errors import ContractError
from teamvla.files import canonical_json

Vector = tuple[float, float, float]


class Link(Settings):
    """One joint and the link behind it.

    The joint sits at ``offset`` (m) in the frame of the link before it and turns that
    frame by its angle about ``axis`` (unit vector). ``radius`` (m) is the thickness of
    the capsule that runs from here to the next joint (or to the tool).
    """

    joint: str
    offset: Vector
    axis: Vector
    limits: tuple[float, float]
    radius: float = Field(gt=0)


class Arm(Settings):
    """One arm: where it stands (m, world frame) and its chain from base to tool."""

    name: str
    base: Vector
    links: tuple[Link, ...]
    tool: Vector = Field(description="Tool centre in the frame of the last link, m.")

    @property
    def num_joints(self) -> int:
        return len(self.links)


class Camera(Settings):
    """One picture field of a step, uint8[height, width, 3]."""

    field: str
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class Contract(Settings):
    """The meaning of the numbers of one embodiment."""

    embodiment: str = "two_arm"
    control_hz: float = Field(20.0, gt=0)
    action: Literal["absolute_joint_position"] = "absolute_joint_position"
    action_timing: Literal["from_this_observation"] = "from_this_observation"
    angle_unit: Literal["rad"] = "rad"
    length_unit: Literal["m"] = "m"
    gripper: Literal["0_open_1_closed"] = "0_open_1_closed"
    arms: tuple[Arm, ...]
    cameras: tuple[Camera, ...]

    @classmethod
    def parse(cls, data: Any, where: str) -> Contract:
        """The contract in JSON data; ContractError naming ``where`` if it is malformed."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(map(str, first["loc"])) or "contract"
            raise ContractError(f"{where}: contract.{at}: {first['msg']}") from None

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """Hex digest of the canonical JSON: equal digests, equal meaning."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    @property
    def action_dim(self) -> int:
        """Length of the joined action: each arm's joints and its gripper."""
        return sum(arm.num_joints + 1 for arm in self.arms)

    @property
    def grippers(self) -> list[int]:
        """Places of the grippers in the joined vector: behind each arm's joints."""
        ends = accumulate(arm.num_joints + 1 for arm in self.arms)
        return [end - 1 for end in ends]

    def diff(self, other: Contract) -> list[str]:
        """Lines such as ``control_hz: 20.0 != 50.0``; empty if both mean the same."""
        return differences(self.to_dict(), other.to_dict())

    def require(self, other: Contract, where: str, other_where: str, mend: str = "") -> None:
        """Raise ContractError with the differences unless ``other`` means the same.

        ``mend`` is what the caller advises besides.
        """
        lines = self.diff(other)
        if lines:
            advice = "Use data, checkpoint and environment of one contract."
            if all(line.startswith("cameras[") for line in lines):
                size = self.cameras[0]
                advice = (
                    f"For pictures like those of {where}: "
                    f"--set task.camera.height={size.height} --set task.camera.width={size.width}."
                )
            said = f"{where} and {other_where} do not mean the same:\n{listed(lines)}"
            raise ContractError(f"{said}\n{advice} {mend}".rstrip())

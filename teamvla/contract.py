"""The semantic contract: what the numbers in a dataset or checkpoint mean.

It is written by the environment that produced the data, travels in every episode,
the manifest and the checkpoint, and is compared wherever two of them meet. A
difference stops the work with a readable list; it is never averaged over.
"""

from __future__ import annotations

import hashlib
import re
from itertools import accumulate
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from teamvla.config.differences import differences, listed
from teamvla.config.settings import Settings
from teamvla.errors import ContractError
from teamvla.files import canonical_json

Vector = tuple[float, float, float]
ARM_FIELDS = ("q", "action", "grip")
"""Stems of the fields that every arm has in a step."""

_ARM = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_FIELD = re.compile(r"[a-z0-9][a-z0-9_]{0,55}")
_SIZE = re.compile(r"cameras\[\d+\]\.(height|width): ")
_COUNTS = {"two_arm": 2, "single_arm": 1}
_OTHERS = ("task", "instruction", "success", "meta")


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
    """One arm: where it stands (m, world frame) and its chain from base to tool.

    An arm whose geometry is not known has no ``links``: ``joints`` names its joints then,
    in the order of ``q_NAME`` and ``action_NAME``, and ``limits`` may bound them. Whoever
    needs the geometry calls :meth:`require_links`.
    """

    name: str
    base: Vector = (0.0, 0.0, 0.0)
    links: tuple[Link, ...] = ()
    tool: Vector = Field(
        default=(0.0, 0.0, 0.0), description="Tool centre in the last link's frame, m."
    )
    joints: tuple[str, ...] = Field(
        default=(), description="Names of the joints, if there are no links."
    )
    limits: tuple[tuple[float, float], ...] | None = Field(
        default=None, description="Smallest and largest position of each of joints, rad."
    )

    @model_validator(mode="after")
    def _joints_are_told_once(self) -> Self:
        _legal("an arm's name", self.name, _ARM)
        if bool(self.links) == bool(self.joints):
            raise ValueError(f"arm {self.name}: give either links or joints")
        if len(set(self.joints)) != len(self.joints) or "" in self.joints:
            raise ValueError(f"arm {self.name}: each of joints needs a name of its own")
        if self.limits is not None:
            self._check_limits(self.limits)
        return self

    def _check_limits(self, limits: tuple[tuple[float, float], ...]) -> None:
        if len(limits) != len(self.joints):
            count = f"{len(limits)} limits for {len(self.joints)} joints"
            raise ValueError(f"arm {self.name}: {count}; links carry limits of their own")
        for joint, (low, high) in zip(self.joints, limits, strict=True):
            if low >= high:
                raise ValueError(f"arm {self.name}: {joint} has its limits the wrong way round")

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What arms with links do not have stays out of their digest, which is older.
        data: dict[str, Any] = dump(self)
        for key in ("joints", "limits"):
            if not data[key]:
                del data[key]
        return data

    @property
    def num_joints(self) -> int:
        """Without the gripper."""
        return len(self.links or self.joints)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """In the order of ``q_NAME`` and ``action_NAME``."""
        return tuple(link.joint for link in self.links) or self.joints

    @property
    def joint_limits(self) -> tuple[tuple[float, float], ...] | None:
        """Smallest and largest position of each joint, rad; ``None`` if they are not known."""
        return tuple(link.limits for link in self.links) or self.limits

    def require_links(self, purpose: str, mend: str = "") -> tuple[Link, ...]:
        """The links; ContractError, saying what ``purpose`` needs them, if there are none."""
        if not self.links:
            where, got = f"contract: arm {self.name}", f"the names of {self.num_joints} joints"
            raise ContractError(where, f"links, for {purpose}", got, mend)
        return self.links


class Camera(Settings):
    """One picture field of a step, uint8[height, width, 3]."""

    field: str
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class Contract(Settings):
    """The meaning of the numbers of one embodiment.

    ``embodiment`` names the robot: ``two_arm`` is the simulator's, ``single_arm`` has one
    arm, any other name is yours. Arms and cameras decide which fields a step must have
    (:func:`teamvla.data.schema.step_specs`).
    """

    embodiment: str = "two_arm"
    control_hz: float = Field(20.0, gt=0)
    action: Literal["absolute_joint_position", "delta_joint_position"] = Field(
        default="absolute_joint_position",
        description="Joint targets, or targets minus the measured positions of the same row; rad.",
    )
    action_timing: Literal["from_this_observation"] = "from_this_observation"
    angle_unit: Literal["rad"] = "rad"
    length_unit: Literal["m"] = "m"
    gripper: Literal["0_open_1_closed"] = "0_open_1_closed"
    arms: tuple[Arm, ...]
    cameras: tuple[Camera, ...]

    @model_validator(mode="after")
    def _fields_are_distinct(self) -> Self:
        for camera in self.cameras:
            _legal("a camera's field", camera.field, _FIELD)
        taken = [*_OTHERS, *(camera.field for camera in self.cameras)]
        taken += [f"{stem}_{arm.name}" for arm in self.arms for stem in ARM_FIELDS]
        twice = sorted({field for field in taken if taken.count(field) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: arms and cameras need fields of their own")
        if len(self.arms) != _COUNTS.get(self.embodiment, len(self.arms)):
            told = f"arms: {_COUNTS[self.embodiment]}, not {len(self.arms)}"
            raise ValueError(f"embodiment {self.embodiment} has {told}")
        return self

    @classmethod
    def parse(cls, data: Any, where: str) -> Contract:
        """The contract in JSON data; ContractError naming ``where`` if it is malformed."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(["contract", *map(str, first["loc"])])
            said = first["msg"].removeprefix("Value error, ")
            raise ContractError(f"{where}: {at}: {said}") from None

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
            if all(_SIZE.match(line) for line in lines):
                size = self.cameras[0]
                advice = (
                    f"For pictures like those of {where}: "
                    f"--set task.camera.height={size.height} --set task.camera.width={size.width}."
                )
            said = f"{where} and {other_where} do not mean the same:\n{listed(lines)}"
            raise ContractError(f"{said}\n{advice} {mend}".rstrip())


def _legal(what: str, name: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(name):
        raise ValueError(f"{what} matches {pattern.pattern}, {name[:80]!r} does not")

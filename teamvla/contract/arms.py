"""The parts of a robot that a contract describes: arms with their chains, and cameras."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from teamvla.config.settings import Settings
from teamvla.errors import ContractError

Vector = tuple[float, float, float]

_ARM = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_FIELD = re.compile(r"[a-z0-9][a-z0-9_]{0,55}")


def require_name(what: str, name: str, pattern: re.Pattern[str]) -> None:
    """ValueError unless the whole of ``name`` matches."""
    if not pattern.fullmatch(name):
        raise ValueError(f"{what} matches {pattern.pattern}, {name[:80]!r} does not")


def require_field(what: str, name: str) -> None:
    """ValueError unless ``name`` can be the name of a field."""
    require_name(what, name, _FIELD)


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
        require_name("an arm's name", self.name, _ARM)
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

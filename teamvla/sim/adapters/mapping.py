"""How a foreign environment's numbers become the fields of a step, and a command its action."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from teamvla.config.settings import Settings
from teamvla.contract import Arm, Camera, Contract, Signal, Vector

#: ``a.b``, ``a.b[2]``, ``a.b[0:6]``, ``.``, ``info:a``; ``render()`` for pictures.
_KEY = re.compile(
    r"(?P<info>info:)?(?P<path>[^\[\]:()]+)(\[(?P<first>\d+)(?P<to>:(?P<end>\d+))?\])?"
)
RENDER = "render()"
Factor = float | tuple[float, ...]


def split_key(key: str) -> tuple[bool, tuple[str, ...], int | slice | None]:
    """Whether it is in ``info``, the keys that lead there, and which part of the vector."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} is no key such as a, a.b, a.b[2], a.b[0:6], info:a or .")
    path = () if found["path"] == "." else tuple(found["path"].split("."))
    part: int | slice | None = None
    if found["first"] is not None:
        first = int(found["first"])
        part = slice(first, int(found["end"])) if found["to"] else first
    return bool(found["info"]), path, part


def _legal_key(key: str) -> str:
    if key != RENDER:
        split_key(key)
    return key


def _spelled_out(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


Key = Annotated[str, AfterValidator(_legal_key)]
_KEY_TELLS = (
    "Where the value stands: a.b for nested dictionaries, [i] or [i:j] for a part of a vector, "
    ". for the whole observation, info:a for an entry of info."
)


class Reading(Settings):
    """One value out of an observation: ``value * scale + offset``. A key alone will do."""

    key: Key = Field(description=_KEY_TELLS)
    scale: Factor = Field(default=1.0, description="A factor, or one for each entry.")
    offset: Factor = Field(default=0.0, description="Added after it; a number, or one each.")


Readable = Annotated[Reading, BeforeValidator(_spelled_out)]


class ArmMapping(Settings):
    """One arm: its names and where its measurements stand."""

    joints: tuple[str, ...] = Field(min_length=1, description="Names, in the order of q.")
    limits: tuple[tuple[float, float], ...] | None = Field(
        default=None, description="Smallest and largest position of each joint."
    )
    base: Vector = Field(default=(0.0, 0.0, 0.0), description="Where it stands, m.")
    q: Readable = Field(description="Measured positions, rad (m for a tool's).")
    grip_q: Readable | None = Field(
        default=None, description="Measured gripper, 0 open .. 1 closed; it is clipped to that."
    )


class PictureMapping(Settings):
    """One picture: a value of the observation, or what a camera of the MuJoCo model sees."""

    key: Key | None = Field(
        default=None, description="Where the picture stands, or render() for the env's own."
    )
    camera: str | None = Field(default=None, description="Name of a camera of the MuJoCo model.")
    scale: float = Field(default=1.0, description="Factor to 0..255: 255 for pictures in 0..1.")
    layout: Literal["hwc", "chw"] = Field(default="hwc", description="Order of a picture's axes.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.key is None) == (self.camera is None):
            raise ValueError("give either key or camera")
        return self


class SignalMapping(Signal):
    """A signal of the contract, and where its value stands (but for a part of the command)."""

    field: str = Field(default="signal", description="Set by the name it stands under.")
    key: Key | None = Field(default=None, description=_KEY_TELLS)
    scale: Factor = Field(default=1.0, description="A factor, or one for each entry.")
    offset: Factor = Field(default=0.0, description="Added after it; a number, or one each.")

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if (self.key is None) != (self.role == "action"):
            raise ValueError("observations and targets have a key, actions have none")
        if self.varies:
            raise ValueError("shapes are fixed here; -1 needs an environment of your own")
        return self

    def named(self, field: str) -> Signal:
        """The signal of the contract."""
        own = {name: getattr(self, name) for name in Signal.model_fields}
        return Signal(**{**own, "field": field})


class ActionPart(Settings):
    """Some entries of the action, in its order: ``command * scale + offset``, then clipped."""

    command: str = Field(
        description="Field of the command: action_X or grip_X of arm X, or a signal; [i:j] of it."
    )
    scale: Factor = Field(default=1.0, description="A factor, or one for each entry.")
    offset: Factor = Field(default=0.0, description="Added after it; a number, or one each.")
    clip: tuple[float, float] | None = Field(
        default=None, description="Smallest and largest value that the environment is given."
    )
    values: tuple[int, ...] = Field(
        default=(), description="The environment's number of each choice; as they stand if empty."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        in_info, path, _ = split_key(self.command)
        if in_info or len(path) != 1:
            raise ValueError(f"{self.command!r} is no field of a command")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError("clip: the first is not smaller than the second")
        return self


class SuccessRule(Settings):
    """Where success comes from: exactly one of these."""

    key: Key | None = Field(default=None, description="A value that is true, such as info:success.")
    reward: float | None = Field(default=None, description="The step's reward is at least this.")
    terminated: bool = Field(default=False, description="The environment ends the episode.")

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.key is not None) + (self.reward is not None) + self.terminated != 1:
            raise ValueError("give one of key, reward and terminated: true")
        return self


class FieldMapping(Settings):
    """What the numbers of a foreign environment mean; a contract follows from it."""

    embodiment: str = Field(default="custom", description="two_arm, single_arm, or your own word.")
    action_kind: Literal[
        "absolute_joint_position", "delta_joint_position", "delta_tool_position"
    ] = Field(default="absolute_joint_position", description="What the arms' numbers command.")
    arms: dict[str, ArmMapping] = Field(default={}, description="By name, in their order.")
    pictures: dict[str, PictureMapping] = Field(default={}, description="By the step's field.")
    signals: dict[str, SignalMapping] = Field(default={}, description="By the step's field.")
    action: tuple[ActionPart, ...] = Field(
        min_length=1, description="The environment's action, front to back."
    )
    success: SuccessRule = Field(description="Where success comes from.")
    instruction: Key | None = Field(
        default=None, description="Where the words stand; if nowhere, task.instructions are drawn."
    )

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        try:
            self.contract(1.0, 8, 8)
        except ValidationError as error:  # names, limits or counts that no contract has
            said = error.errors(include_url=False)[0]["msg"]
            raise ValueError(said.removeprefix("Value error, ")) from None
        return self

    def contract(self, control_hz: float, height: int, width: int) -> Contract:
        """The contract of steps that this mapping makes, with pictures of that size."""
        arms = tuple(
            Arm(name=name, base=arm.base, joints=arm.joints, limits=arm.limits)
            for name, arm in self.arms.items()
        )
        return Contract(
            embodiment=self.embodiment,
            control_hz=control_hz,
            action=self.action_kind,
            arms=arms,
            cameras=tuple(Camera(field=f, height=height, width=width) for f in self.pictures),
            signals=tuple(signal.named(field) for field, signal in self.signals.items()),
        )

"""The semantic contract: what the numbers in a dataset or checkpoint mean.

It is written by the environment that produced the data, travels in every episode,
the manifest and the checkpoint, and is compared wherever two of them meet. A
difference stops the work with a readable list; it is never averaged over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from teamvla.config.differences import differences, listed
from teamvla.config.settings import Settings
from teamvla.contract.arms import Arm, Camera, require_field
from teamvla.contract.signals import Signal
from teamvla.errors import ContractError
from teamvla.files import canonical_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARM_FIELDS = ("q", "action", "grip")
"""Stems of the fields that every arm has in a step."""

_SIZE = re.compile(r"cameras\[\d+\]\.(height|width): ")
_COUNTS = {"two_arm": 2, "single_arm": 1}
_OTHERS = ("task", "instruction", "success", "meta")


class Contract(Settings):
    """The meaning of the numbers of one embodiment.

    ``embodiment`` names the robot: ``two_arm`` is the simulator's, ``single_arm`` has one
    arm, any other name (``grid``, ``driving``) is yours. Arms, cameras and signals decide
    which fields a step must have (:func:`teamvla.data.schema.step_specs`).

    A command has one part per arm, float32[joints + 1] with the gripper last, and behind them
    one per signal whose role is ``action``, in this order. Joined they are one vector. So are the
    arms' joints and openings and, behind them, the plain vectors that are observed: the state.
    """

    embodiment: str = "two_arm"
    control_hz: float = Field(20.0, gt=0)
    action: Literal["absolute_joint_position", "delta_joint_position", "delta_tool_position"] = (
        Field(
            default="absolute_joint_position",
            description="Joint targets, or targets minus the measured positions of the same row, "
            "rad; or how far the tool shall go, m: the arms' joints are x, y and z then.",
        )
    )
    action_timing: Literal["from_this_observation"] = "from_this_observation"
    angle_unit: Literal["rad"] = "rad"
    length_unit: Literal["m"] = "m"
    gripper: Literal["0_open_1_closed"] = "0_open_1_closed"
    arms: tuple[Arm, ...] = ()
    cameras: tuple[Camera, ...]
    signals: tuple[Signal, ...] = ()

    @model_validator(mode="after")
    def _fields_are_distinct(self) -> Self:
        for camera in self.cameras:
            require_field("a camera's field", camera.field)
        taken = [*_OTHERS, *(camera.field for camera in self.cameras)]
        taken += [f"{stem}_{arm.name}" for arm in self.arms for stem in ARM_FIELDS]
        taken += [signal.field for signal in self.signals]
        # A mask goes with an observation of padded rows and is never stored.
        taken += [f"{signal.field}_mask" for signal in self.signals if signal.varies]
        twice = sorted({field for field in taken if taken.count(field) > 1})
        if twice:
            needed = "arms and cameras need fields of their own"
            raise ValueError(f"{', '.join(twice)}: {needed}{', signals too' * bool(self.signals)}")
        return self

    @model_validator(mode="after")
    def _something_is_commanded(self) -> Self:
        if len(self.arms) != _COUNTS.get(self.embodiment, len(self.arms)):
            told = f"arms: {_COUNTS[self.embodiment]}, not {len(self.arms)}"
            raise ValueError(f"embodiment {self.embodiment} has {told}")
        if not self.arms and not self.action_signals:
            raise ValueError("nothing is commanded: give arms, or a signal whose role is action")
        fields = {signal.field for signal in self.signals}
        for field in fields:
            if field.startswith("q_") and f"action_{field[2:]}" in fields:
                raise ValueError(f"{field}, action_{field[2:]}: these are an arm's, not signals")
        if self.action == "delta_tool_position":
            self._check_tools()
        return self

    def _check_tools(self) -> None:
        for arm in self.arms:
            if arm.joint_names != ("x", "y", "z"):
                named = f"joints x, y, z, not {', '.join(arm.joint_names)}"
                raise ValueError(f"arm {arm.name}: delta_tool_position goes with {named}")

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Contracts without signals are older than these: their digest stays.
        data: dict[str, Any] = dump(self)
        if not data["signals"]:
            del data["signals"]
        return data

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
    def action_signals(self) -> tuple[Signal, ...]:
        """The parts of a command that are no arm's."""
        return tuple(signal for signal in self.signals if signal.role == "action")

    @property
    def state_signals(self) -> tuple[Signal, ...]:
        """The observations that are parts of the joined state; see :attr:`Signal.in_state`."""
        return tuple(signal for signal in self.signals if signal.in_state)

    @property
    def sensor_signals(self) -> tuple[Signal, ...]:
        """The other observations, each a field of its own: point clouds, choices, maps."""
        seen = (signal for signal in self.signals if signal.role == "observation")
        return tuple(signal for signal in seen if not signal.in_state)

    @property
    def target_signals(self) -> tuple[Signal, ...]:
        """What a policy may learn to tell and never sees."""
        return tuple(signal for signal in self.signals if signal.role == "target")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """How many numbers of the joined state each part has: arms, then signals."""
        arms = (arm.num_joints + 1 for arm in self.arms)
        return (*arms, *(signal.size for signal in self.state_signals))

    @property
    def command_sizes(self) -> tuple[int, ...]:
        """How many numbers of the joined command each part has: arms, then action signals."""
        arms = (arm.num_joints + 1 for arm in self.arms)
        return (*arms, *(signal.size for signal in self.action_signals))

    @property
    def action_dim(self) -> int:
        """Length of the joined command: each arm's joints and gripper, then the signals."""
        return sum(self.command_sizes)

    @property
    def choices(self) -> dict[int, int]:
        """Places in the joined command that are choices -> how many there are."""
        ends = accumulate(self.command_sizes)
        pairs = zip((*self.arms, *self.action_signals), ends, strict=True)
        return {
            end - 1: part.count for part, end in pairs if isinstance(part, Signal) and part.count
        }

    @property
    def grippers(self) -> list[int]:
        """Places of the grippers in the joined vector: behind each arm's joints."""
        ends = accumulate(arm.num_joints + 1 for arm in self.arms)
        return [end - 1 for end in ends]

    def split_command(self, joined: NDArray[Any]) -> list[NDArray[Any]]:
        """The parts of a joined command: one float32 vector per arm, then the action signals.

        Signals have their dtype and shape; whole numbers are rounded to.

        Raises:
            ContractError: ``joined`` is not one vector of ``action_dim`` finite numbers.
        """
        import numpy as np  # here, so that reading a contract stays light

        joined = np.asarray(joined)
        if joined.shape != (self.action_dim,) or not np.isfinite(joined).all():
            expected = f"{self.action_dim} finite numbers"
            got = f"shape {joined.shape}" if joined.shape != (self.action_dim,) else "others"
            raise ContractError("command", expected, got)
        bounds = pairwise(accumulate(self.command_sizes, initial=0))
        pieces = [joined[start:end] for start, end in bounds]
        arms = [np.asarray(piece, np.float32) for piece in pieces[: len(self.arms)]]
        pairs = zip(self.action_signals, pieces[len(self.arms) :], strict=True)
        return [*arms, *(signal.typed(piece) for signal, piece in pairs)]

    def command_fields(self, parts: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The fields of a step that hold a command.

        ``action_X`` float32[joints] and ``grip_X`` float32[] of each arm X, and each action
        signal under its own name, with its dtype and shape. What an expert or a policy gives
        goes in as it is, or what :meth:`split_command` made of a joined command.

        Raises:
            ContractError: another number of parts, or one of another size.
        """
        import numpy as np

        sizes = tuple(np.size(part) for part in parts)
        if sizes != self.command_sizes:
            expected = f"parts of {list(self.command_sizes)} numbers"
            raise ContractError("command", expected, f"parts of {list(sizes)}")
        fields: dict[str, NDArray[Any]] = {}
        for arm, part in zip(self.arms, parts, strict=False):
            vector = np.asarray(part, np.float32).reshape(-1)
            fields |= {f"action_{arm.name}": vector[:-1], f"grip_{arm.name}": vector[-1]}
        pairs = zip(self.action_signals, parts[len(self.arms) :], strict=True)
        return fields | {signal.field: signal.typed(part) for signal, part in pairs}

    def measured_state(
        self, observation: Mapping[str, Any], last: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The joined state float32[D] of an observation.

        Each arm's joints and opening, then the signals that are plain vectors, in the
        contract's order. Where an opening is not measured it is that of ``last``, the joined
        command before this observation; without one 0, open.

        Raises:
            ContractError: joints or a signal are missing, or more or fewer than the contract's.
        """
        import numpy as np

        parts: list[NDArray[Any]] = []
        for arm, gripper in zip(self.arms, self.grippers, strict=True):
            commanded = 0.0 if last is None else last[gripper]
            joints = _field(observation, f"q_{arm.name}")
            opening = observation.get(f"grip_q_{arm.name}", commanded)
            joined = np.append(joints, opening).astype(np.float32)
            if joined.shape != (arm.num_joints + 1,):
                expected = f"{arm.num_joints} joints and a gripper of arm {arm.name!r}"
                raise ContractError("observation", expected, f"{joined.size} numbers")
            parts.append(joined)
        for signal in self.state_signals:
            numbers = np.asarray(_field(observation, signal.field), np.float32).reshape(-1)
            if numbers.size != signal.size:
                expected = f"{signal.size} numbers of {signal.field!r}"
                raise ContractError("observation", expected, f"{numbers.size}")
            parts.append(numbers)
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def recorded_command(self, fields: Mapping[str, Any], step: int) -> list[NDArray[Any]]:
        """The parts of the command in row ``step`` of stacked fields.

        The way back from :meth:`command_fields`.
        """
        import numpy as np  # here, so that reading a contract stays light

        arms = [
            np.append(fields[f"action_{arm.name}"][step], fields[f"grip_{arm.name}"][step])
            for arm in self.arms
        ]
        signals = [np.asarray(fields[signal.field][step]) for signal in self.action_signals]
        return [*(arm.astype(np.float32) for arm in arms), *signals]

    def diff(self, other: Contract) -> list[str]:
        """Lines such as ``control_hz: 20.0 != 50.0``; empty if both mean the same."""
        mine, others = self.to_dict(), other.to_dict()
        mine["signals"] = {signal.field: str(signal) for signal in self.signals}
        others["signals"] = {signal.field: str(signal) for signal in other.signals}
        if mine["signals"] == others["signals"] and [*mine["signals"]] != [*others["signals"]]:
            mine["signals"], others["signals"] = [*mine["signals"]], [*others["signals"]]
        return differences(mine, others)

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


def _field(observation: Mapping[str, Any], name: str) -> Any:
    """A field of an observation; ContractError, with those it has, if it has none."""
    if name not in observation:
        raise ContractError("observation", f"field {name!r}", ", ".join(sorted(observation)))
    return observation[name]

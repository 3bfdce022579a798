"""An episode as joined vectors and pictures, which is how other formats hold it.

Order of the vectors: a joints, a grip, b joints, b grip, as the contract lists the arms.
The gripper's entry of the state is the measured opening where every arm has one, else
the command of the tick before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.formats.mapping import ArmMapping, Column, Gripper, MappingConfig, Passed
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.errors import ContractError

#: expanded from the metadata on reading
_CONSTANT = ("task", "instruction", "success")
#: what the writer derives
DERIVED_META = ("num_steps", "version", "json_fields", "ragged_fields")


@dataclass(frozen=True)
class Joined:
    """The parts of an episode.

    Attributes:
        contract: of the episode.
        state: float32[T, A*(N+1)].
        actions: float32[T, A*(N+1)].
        names: of the entries of both.
        measured: whether the state's grippers are measured.
        pictures: the contract's cameras and every other uint8 picture field.
        rest: every other field.
    """

    contract: Contract
    state: np.ndarray
    actions: np.ndarray
    names: tuple[str, ...]
    measured: bool
    pictures: dict[str, np.ndarray]
    rest: dict[str, Any]


def contract_of(episode: Episode) -> Contract:
    """The contract of an episode; ContractError if it has none."""
    if "contract" not in episode.meta:
        mend = "Write it with EpisodeWriter and a contract; docs/your_robot.md shows how."
        where = str(episode.path)
        raise ContractError(where, "a contract in the metadata", "none", mend, code="E603")
    return Contract.parse(episode.meta["contract"], str(episode.path))


def join(episode: Episode) -> Joined:
    """The episode's vectors, its pictures and what is left; ContractError without an arm."""
    contract = contract_of(episode)
    arms = [arm.name for arm in contract.arms]
    if not arms:
        got = f"{contract.embodiment}, which has none"
        raise ContractError(str(episode.path), "arms, whose joints make up the vectors", got)
    measured = all(f"grip_q_{arm}" in episode.fields for arm in arms)
    grip = {arm: episode.fields[f"grip_{arm}"] for arm in arms}
    opening = {
        arm: episode.fields[f"grip_q_{arm}"] if measured else _tick_before(grip[arm])
        for arm in arms
    }
    stems = ("q_", "action_", "grip_", *(("grip_q_",) if measured else ()))
    used = {stem + arm for stem in stems for arm in arms} | set(_CONSTANT)
    left = {name: values for name, values in episode.fields.items() if name not in used}
    pictures = {name: values for name, values in left.items() if _is_picture(values)}
    return Joined(
        contract,
        _joined(episode, "q_", opening),
        _joined(episode, "action_", grip),
        tuple(_names(contract)),
        measured,
        pictures,
        {name: values for name, values in left.items() if name not in pictures},
    )


def _tick_before(commands: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, commands.dtype), commands[:-1]])


def _is_picture(values: Any) -> bool:
    if not isinstance(values, np.ndarray):
        return False
    return values.dtype == np.uint8 and values.ndim == 4 and values.shape[-1] == 3


def _joined(episode: Episode, stem: str, grippers: dict[str, np.ndarray]) -> np.ndarray:
    parts = [
        part
        for arm, grip in grippers.items()
        for part in (episode.fields[stem + arm], grip[:, None])
    ]
    return np.concatenate(parts, axis=1)


def _names(contract: Contract) -> Iterator[str]:
    for arm in contract.arms:
        joints = arm.joint_names
        # Joints of one name in one arm (a chain of "hinge"s) get their number.
        unique = len(set(joints)) == len(joints)
        for number, joint in enumerate(joints):
            name = joint if unique else f"{joint}_{number}"
            yield name if name.startswith(f"{arm.name}_") else f"{arm.name}_{name}"
        yield f"{arm.name}_grip"


@dataclass(frozen=True)
class Places:
    """Where a format keeps the vectors, and what its grippers' numbers mean."""

    state: str
    actions: str
    state_gripper: tuple[float, float] = (0.0, 1.0)
    action_gripper: tuple[float, float] = (0.0, 1.0)


def mapping_of(
    joined: Joined,
    places: Places,
    cameras: dict[str, str],
    fields: dict[str, Passed],
    success: Passed,
) -> MappingConfig:
    """The mapping that leads back from a format to the episode."""
    arms, first = {}, 0
    for arm in joined.contract.arms:
        grip = first + arm.num_joints
        columns = tuple(range(first, grip))
        opened, closed = places.action_gripper
        command = Gripper(field=places.actions, column=grip, open=opened, closed=closed)
        opened, closed = places.state_gripper
        opening = Gripper(field=places.state, column=grip, open=opened, closed=closed)
        arms[arm.name] = ArmMapping(
            q=Column(field=places.state, columns=columns),
            action=Column(field=places.actions, columns=columns),
            grip=command,
            grip_q=opening if joined.measured else None,
        )
        first = grip + 1
    contract = joined.contract.to_dict()
    return MappingConfig(
        contract=contract, arms=arms, cameras=cameras, fields=fields, success=success
    )


def kept_meta(episode: Episode) -> dict[str, Any]:
    """The metadata that goes beside the data: all that the data do not say themselves."""
    return {key: value for key, value in episode.meta.items() if key not in ("num_steps",)}


def describe_vectors(joined: Joined, places: Places, report: Report) -> None:
    """Note what becomes of the fields that the vectors hold."""
    for arm in joined.contract.arms:
        report.note("carried", f"q_{arm.name}", places.state)
        report.note("carried", f"action_{arm.name}", places.actions)
        _describe_gripper(f"grip_{arm.name}", places.actions, places.action_gripper, report)
        if joined.measured:
            _describe_gripper(f"grip_q_{arm.name}", places.state, places.state_gripper, report)
        else:
            why = "not measured: the command of the tick before, 0 at first"
            report.note("added", f"measured gripper of arm {arm.name}", places.state, why)


def _describe_gripper(name: str, into: str, meaning: tuple[float, float], report: Report) -> None:
    if meaning == (0.0, 1.0):
        report.note("carried", name, into)
        return
    opened, closed = meaning
    why = f"0 open .. 1 closed became {opened:g} open .. {closed:g} closed"
    report.note("changed", name, into, why)

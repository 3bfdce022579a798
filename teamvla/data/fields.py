"""The fields of a step: those of ``two_arm``, the optional ones, and those of a contract."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from teamvla.contract import Contract, Signal
from teamvla.data.ragged import OFFSETS
from teamvla.data.specs import NAME, VARIABLE, FieldSpec
from teamvla.errors import ContractError, SchemaError
from teamvla.files import canonical_json


def _table(*specs: FieldSpec) -> dict[str, FieldSpec]:
    return {spec.name: spec for spec in specs}


def _spec(name: str, dtype: str, shape: tuple[int | str, ...], *rest: Any) -> FieldSpec:
    return FieldSpec(name, np.dtype(dtype), shape, *rest)


def _camera(field: str, what: str) -> FieldSpec:
    return _spec(field, "u1", ("H", "W", 3), f"Picture of {what}.")


def _joints(arm: str) -> tuple[FieldSpec, FieldSpec, FieldSpec]:
    return (
        _spec(f"q_{arm}", "f4", ("N",), f"Measured joint positions of arm {arm}, rad."),
        _spec(f"action_{arm}", "f4", ("N",),
              f"Joint command of arm {arm} sent from this observation, rad."),
        _spec(f"grip_{arm}", "f4", (), f"Gripper command of arm {arm}, 0 open .. 1 closed.",
              0.0, 1.0),
    )  # fmt: skip


_ALWAYS = (
    _spec("instruction", "U", (), "Natural-language prompt."),
    _spec("task", "U", (), "Slug of the task; the same in all steps of an episode."),
    _spec("success", "?", (), "Success predicate after this step's action."),
)

_Q_A, _ACTION_A, _GRIP_A = _joints("a")
_Q_B, _ACTION_B, _GRIP_B = _joints("b")

STEP_SPECS: dict[str, FieldSpec] = _table(
    _camera("rgb_a", "arm a's camera"),
    _camera("rgb_b", "arm b's camera"),
    *(_Q_A, _Q_B, _ACTION_A, _ACTION_B, _GRIP_A, _GRIP_B),
    *_ALWAYS,
)
"""The required fields of the embodiment ``two_arm``, by name."""

OPTIONAL_FIELDS: dict[str, FieldSpec] = _table(
    _spec("depth_*", "f4", ("H", "W"), "Depth picture, m; NaN or inf where nothing answers.",
          None, None, False),
    _spec("seg_*", "u1", ("H", "W"), "What every pixel shows, by number; 0 nothing."),
    _camera("rgb_wrist_*", "a camera on a wrist"),
    _camera("rgb_top", "the overview camera"),
    _camera("rgb_surround_*", "one of the cameras that look around"),
    _spec("grip_q_*", "f4", (), "Measured gripper opening, 0 open .. 1 closed.", -0.1, 1.1),
    _spec("phase", "U", (), "What the expert is doing."),
    _spec("timestamp", "f8", (), "Time since the episode's start, s."),
    _spec("reward", "f4", (), "Reward of this step's action."),
    _spec("qd_*", "f4", ("N",), "Measured joint velocities, rad/s."),
    _spec("ee_*", "f4", ("D",), "Pose of the tool: position, m, then quaternion w x y z."),
    _spec("points", "f4", ("P", 4), "LiDAR returns: x y z, m, sensor frame (x ahead, y left, "
          "z up); intensity 0..1."),
    _spec("points_*", "f4", ("P", 4), "The same of one LiDAR among several."),
    _spec("radar", "f4", ("P", 5), "Radar targets: x y, m, sensor frame (x ahead, y left); "
          "velocity x y relative to that frame, m/s; cross-section, dBsm."),
    _spec("radar_*", "f4", ("P", 5), "The same of one radar among several."),
    _spec("radar_map_*", "f4", ("R", "D"), "Range-Doppler map, dB: row r one range, "
          "column d one radial velocity."),
    _spec("imu", "f4", ("P", 7), "Inertial samples since the row before: time against this "
          "row's, s; acceleration x y z, m/s^2; rate of turn x y z, rad/s."),
    _spec("imu_*", "f4", ("P", 7), "The same of one inertial sensor among several."),
    _spec("rows_*", "f4", ("P", "D"), "Rows of your own, as many as there are: detections, "
          "tracks, contacts."),
)  # fmt: skip
"""Known fields that a step may have, by name or pattern."""

# The longest stem first: radar_map_x is a map, not a radar called map_x.
_STEMS = sorted(
    ((name[:-1], spec) for name, spec in OPTIONAL_FIELDS.items() if name.endswith("*")),
    key=lambda stem: -len(stem[0]),
)


def step_specs(contract: Contract | None) -> dict[str, FieldSpec]:
    """The required fields of a step, by name.

    For each arm X of the contract ``q_X``, ``action_X`` and ``grip_X``, for each camera and
    each signal its field, and always ``instruction``, ``task`` and ``success``. Without a
    contract those of ``two_arm``, :data:`STEP_SPECS`.
    """
    return STEP_SPECS if contract is None else _specs_of(contract)


@lru_cache(maxsize=256)
def _specs_of(contract: Contract) -> dict[str, FieldSpec]:
    cameras = [_camera(camera.field, "a camera") for camera in contract.cameras]
    joints = [spec for arm in contract.arms for spec in _joints(arm.name)]
    signals = [_signal(signal) for signal in contract.signals]
    specs = _table(*cameras, *joints, *signals, *_ALWAYS)
    return STEP_SPECS if specs.keys() == STEP_SPECS.keys() else specs


def _signal(signal: Signal) -> FieldSpec:
    shape = tuple(VARIABLE if size == -1 else size for size in signal.shape)
    low, high = (end if math.isfinite(end) else None for end in signal.limits)
    what = f"{signal.role.capitalize()} of the contract{', ' * bool(signal.unit)}{signal.unit}."
    return FieldSpec(signal.field, np.dtype(signal.dtype), shape, what, low, high)


class Meaning(NamedTuple):
    """What an episode's metadata says that its numbers mean.

    Attributes:
        contract: ``None`` if the metadata has none.
        digest: of the contract.
        specs: the required fields.
    """

    contract: Contract | None
    digest: str | None
    specs: Mapping[str, FieldSpec]


def meaning_in(meta: Mapping[str, Any]) -> Meaning:
    """The contract of an episode with this metadata and what follows from it.

    Raises:
        SchemaError: the contract is malformed.
    """
    if "contract" not in meta:
        return Meaning(None, None, STEP_SPECS)
    try:
        return _meaning_of(canonical_json(meta["contract"]))
    except (ContractError, TypeError, ValueError) as error:
        message = str(error)
    raise SchemaError("contract", "a contract", message, code="E411")


@lru_cache(maxsize=256)  # most episodes repeat the contract of the one before
def _meaning_of(text: bytes) -> Meaning:
    contract = Contract.parse(json.loads(text), "metadata")
    return Meaning(contract, contract.digest, step_specs(contract))


def arms_of(specs: Mapping[str, FieldSpec]) -> Iterator[str]:
    """The names of the arms that these fields belong to."""
    return (name[2:] for name in specs if name.startswith("q_") and f"action_{name[2:]}" in specs)


@lru_cache(maxsize=4096)
def _general(name: str) -> FieldSpec | None:
    if not NAME.fullmatch(name) or name.endswith(OFFSETS):
        return None
    known = STEP_SPECS.get(name) or OPTIONAL_FIELDS.get(name)
    stems = (spec for stem, spec in _STEMS if name.startswith(stem) and name != stem)
    return known or next(stems, None)


def spec_of(name: str, specs: Mapping[str, FieldSpec] = STEP_SPECS) -> FieldSpec | None:
    """The spec that governs a field; ``None`` for an unknown one or an illegal name."""
    return specs.get(name) or _general(name)

"""The checks that every step and every episode passes.

A step is a plain mapping. The fields of :data:`STEP_SPECS`, or of :func:`step_specs` for a
contract, are required, those of :data:`OPTIONAL_FIELDS` are checked where they appear, any
other field passes through untouched as long as it can be stored without pickling.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.fields import (
    OPTIONAL_FIELDS,
    STEP_SPECS,
    arms_of,
    meaning_in,
    spec_of,
    step_specs,
)
from teamvla.data.metadata import (
    EPISODE_FILE_VERSION,
    EpisodeMeta,
    check_name,
    validate_episode_meta,
)
from teamvla.data.ragged import OFFSETS
from teamvla.data.specs import (
    NAME,
    FieldSpec,
    check_text,
    describe,
    describe_value,
    is_array,
    storable,
    unfit,
)
from teamvla.errors import SchemaError
from teamvla.files import canonical_json

__all__ = [
    "EPISODE_FILE_VERSION",
    "MAX_FIELDS",
    "NAME",
    "OPTIONAL_FIELDS",
    "STEP_SPECS",
    "EpisodeMeta",
    "FieldSpec",
    "arms_of",
    "check_name",
    "check_text",
    "describe",
    "describe_value",
    "meaning_in",
    "spec_of",
    "step_specs",
    "storable",
    "validate_columns",
    "validate_episode_meta",
    "validate_sizes",
    "validate_step",
]

MAX_FIELDS = 100


def validate_step(step: Mapping[str, Any], specs: Mapping[str, FieldSpec] = STEP_SPECS) -> None:
    """Check one step.

    Args:
        step: its fields by name.
        specs: the required ones, of :func:`step_specs`.

    Raises:
        SchemaError: naming the first field that breaks a rule, with that rule's code.
    """
    if not isinstance(step, Mapping):
        raise unfit("E101", "step", "a mapping of fields", step)
    if len(step) > MAX_FIELDS // 2 and (count := _count(step)) > MAX_FIELDS:
        raise SchemaError("step", f"at most {MAX_FIELDS} fields", str(count), code="E112")
    for name in specs:
        if name not in step:
            raise SchemaError(name, str(specs[name]), "nothing", code="E102")
    for name, value in step.items():
        spec = spec_of(name, specs) if isinstance(name, str) else None
        if spec is not None:
            spec.check(name, value)
        else:
            _check_unknown(name, value)
    for arm in arms_of(specs):
        joints, action = step[f"q_{arm}"].shape, step[f"action_{arm}"].shape
        if joints != action:
            raise _unpaired(f"q_{arm}", joints, f"action_{arm}", action)


def validate_sizes(step: Mapping[str, Any], contract: Contract) -> None:
    """Check a step that keeps to the contract's specs against its numbers of joints and pixels.

    Signals need no such check: their specs say all that the contract does.

    Raises:
        SchemaError: E412, an arm has another number of joints; E413, a camera other sizes.
    """
    for arm in contract.arms:
        _check_size(step, f"q_{arm.name}", (arm.num_joints,), "the contract's arm", "E412")
    for camera in contract.cameras:
        size = (camera.height, camera.width, 3)
        _check_size(step, camera.field, size, "the contract's camera", "E413")


def _check_size(
    step: Mapping[str, Any], name: str, shape: tuple[int, ...], what: str, code: str
) -> None:
    value = step[name]
    if value.shape != shape:
        expected = f"{describe(value.dtype, shape)}, {what}"
        raise SchemaError(name, expected, describe_value(value), code=code)


def validate_columns(
    columns: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    constants: Collection[str],
    num_steps: int,
    specs: Mapping[str, FieldSpec] = STEP_SPECS,
) -> Iterator[SchemaError]:
    """Every rule that the stacked fields of an episode break, by dtypes and shapes alone.

    Args:
        columns: field -> dtype and shape, time first; a second size of -1 varies.
        constants: fields given once for the whole episode; they count as present.
        num_steps: how long the metadata says the episode is.
        specs: the required fields, of :func:`step_specs`.
    """
    for name, spec in specs.items():
        if name not in columns and name not in constants:
            yield SchemaError(name, spec.column, "nothing", code="E102")
    yield from _lengths(columns, num_steps)
    for name, (dtype, shape) in columns.items():
        governing = spec_of(name, specs)
        code = governing.fits(dtype, shape[1:]) if governing is not None and shape else None
        if governing is not None and code is not None:
            yield SchemaError(name, governing.column, describe(dtype, shape), code=code)
        if governing is None and shape[1:2] == (-1,):
            yield SchemaError(name, "steps of one shape", describe(dtype, shape), code="E113")
    for arm in arms_of(specs):
        joints, action = columns.get(f"q_{arm}"), columns.get(f"action_{arm}")
        if joints and action and joints[1][1:] != action[1][1:]:
            yield _unpaired(f"q_{arm}", joints[1][1:], f"action_{arm}", action[1][1:])


def _lengths(
    columns: Mapping[str, tuple[Any, tuple[int, ...]]], num_steps: int
) -> Iterator[SchemaError]:
    if num_steps < 1:
        yield SchemaError("metadata.num_steps", "at least one step", "none", code="E303")
    lengths = {name: shape[0] if shape else -1 for name, (_, shape) in columns.items()}
    common = set(lengths.values())
    if len(lengths) > 1 and len(common) == 1 and common != {num_steps}:
        expected = f"{common.pop()}, the length of every column"
        yield SchemaError("metadata.num_steps", expected, str(num_steps), code="E241")
        return
    for name, length in lengths.items():
        if length != num_steps:
            got = f"{length}" if length >= 0 else "a single value"
            yield SchemaError(name, f"{num_steps} steps, as the metadata says", got, code="E241")


def _unpaired(left: str, left_shape: Any, right: str, right_shape: Any) -> SchemaError:
    expected = f"as many joints as {left}, {list(left_shape)}"
    return SchemaError(right, expected, f"{list(right_shape)}", code="E106")


def _check_unknown(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or _is_reserved(name):
        expected = f"a field name matching {NAME.pattern}, other than meta and *{OFFSETS}"
        raise SchemaError(repr(name)[:80], expected, "none", code="E103")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise _numpy_scalar(name, value)
    if isinstance(value, np.ndarray):
        if not (storable(value.dtype) and is_array(value)):
            raise unfit("E111", name, "an array of numbers or fixed-width text", value)
    elif type(value) is str:
        if value:
            check_text(name, value)
    elif type(value) not in (bool, float) and not (type(value) is int and abs(value) < 1 << 63):
        _check_json(name, value)


def _numpy_scalar(name: str, value: Any) -> SchemaError:
    mend = "Use a Python number or an array of one dimension or more."
    return SchemaError(name, "no NumPy scalar", describe_value(value), mend, code="E110")


def _check_no_scalars(name: str, value: Any) -> None:
    """E110 for a NumPy scalar anywhere in lists and dicts: some pass for Python numbers."""
    if isinstance(value, np.generic):
        raise _numpy_scalar(name, value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            _check_no_scalars(name, item)


def _check_json(name: str, value: Any) -> None:
    try:
        _check_no_scalars(name, value)
        same = bool(json.loads(canonical_json(value)) == value) and type(value) is not int
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise unfit("E111", name, "an array, a number, text or JSON (lists, not tuples)", value)


def _is_reserved(name: str) -> bool:
    return name == "meta" or name.endswith(OFFSETS)


def _count(step: Mapping[str, Any]) -> int:
    """How many members the fields need: one of variable length has its offsets besides."""
    specs = (spec_of(name) for name in step if isinstance(name, str))
    return len(step) + sum(spec is not None and spec.is_ragged for spec in specs)

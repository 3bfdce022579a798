"""Your values in the schema's types: for steps that come from other programs.

Nothing is converted behind your back: ``add_step`` refuses what is not of the right type,
and :func:`as_step` is how to say that it may be converted. It rounds floats to the spec's
precision; anything else that would change a value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from teamvla.data.fields import STEP_SPECS, spec_of
from teamvla.data.specs import FieldSpec, describe, unfit
from teamvla.errors import SchemaError

#: the whole numbers that each type of the specs holds one by one
_WHOLE = {
    "u1": (0, 255),
    "b1": (0, 1),
    "f4": (-(1 << 24), 1 << 24),
    "f8": (-(1 << 53), 1 << 53),
    "i8": (-(1 << 53), 1 << 53),  # what a float, in which they may come, holds
}
_PICTURE = "If they are 0..1: np.rint(255 * picture).astype(np.uint8)."


def as_step(step: Mapping[str, Any], specs: Mapping[str, FieldSpec] = STEP_SPECS) -> dict[str, Any]:
    """The step with every value in its field's type, as ``add_step`` takes it.

    Known fields: lists, tensors on the CPU and arrays of other dtypes become arrays of the
    spec's dtype, NumPy scalars and arrays of one value become Python numbers, bytes UTF-8
    text. Unknown fields keep their values; NumPy scalars among them become Python numbers.

    Args:
        step: fields by name. It is left as it is.
        specs: the required fields, of :func:`teamvla.data.schema.step_specs`.

    Raises:
        SchemaError: a value has no counterpart in that type: floats for pictures, numbers
            that overflow, whole numbers that would be rounded.
    """
    return {name: cast(name, value, spec_of(name, specs)) for name, value in step.items()}


def cast(name: str, value: Any, spec: FieldSpec | None) -> Any:
    """One value in the type of ``spec``; ``None`` stands for an unknown field."""
    if spec is None:
        scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
        return value.item() if scalar else value
    if spec.is_text:
        return _text(name, value)
    array = _array(name, value, spec)
    if spec.shape:
        return _numbers(name, array, spec)
    if array.size != 1:
        raise unfit("E104", name, str(spec), value)
    return _numbers(name, array.reshape(()), spec).item()


def _text(name: str, value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray) and value.shape == ():
        value = value.item()
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise SchemaError(name, "UTF-8 text", repr(value[:40]), code="E109") from None


def _array(name: str, value: Any, spec: FieldSpec) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise unfit("E104", name, str(spec), value)
    return array


def _numbers(name: str, array: np.ndarray, spec: FieldSpec) -> np.ndarray:
    if array.dtype == spec.dtype:
        return array
    if array.dtype.kind == "f" and spec.dtype.kind == "u":
        got = describe(array.dtype, array.shape)
        raise SchemaError(name, "whole numbers in 0..255", got, _PICTURE, code="E105")
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(spec.dtype)
        kept = _kept(array, result)
    if not kept.all():
        expected, got = f"what {spec.dtype} can hold", f"{array[~kept].flat[0]}"
        raise SchemaError(name, expected, got, code="E108")
    return result


def _kept(array: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Where a value is still there, a float perhaps rounded."""
    if array.dtype.kind == "f" and result.dtype.kind == "f":
        return np.asarray(np.isfinite(result) == np.isfinite(array))
    low, high = _WHOLE[result.dtype.str.lstrip("<|=>")]
    return np.asarray((array >= low) & (array <= high) & (array % 1 == 0))

"""Reads the fields of a step out of a foreign observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Signal
from teamvla.errors import SimulationError
from teamvla.registry import did_you_mean
from teamvla.sim.adapters.mapping import (
    RENDER,
    FieldMapping,
    PictureMapping,
    Reading,
    SignalMapping,
    split_key,
)
from teamvla.sim.interface import Observation

Array = NDArray[Any]


class Reader:
    """Makes a step's fields of what an environment gave, all but pictures of model cameras.

    Args:
        mapping: where everything stands.
        size: height and width of every picture, pixels.
    """

    def __init__(self, mapping: FieldMapping, size: tuple[int, int]) -> None:
        self._mapping, self._size = mapping, size

    def read(
        self, observation: Any, info: Mapping[str, Any], rendered: Array | None
    ) -> Observation:
        """The fields, with the dtypes and shapes of the contract.

        Raises:
            SimulationError: the observation does not fit the mapping; it names the key.
        """
        fields: Observation = {}
        for field, picture in self._mapping.pictures.items():
            if picture.key == RENDER:
                fields[field] = _picture(field, picture, np.asarray(rendered), self._size)
            elif picture.key is not None:
                found = pick(f"pictures.{field}", picture.key, observation, info)
                fields[field] = _picture(field, picture, found, self._size)
        for name, arm in self._mapping.arms.items():
            where = f"arms.{name}"
            fields[f"q_{name}"] = _vector(
                f"{where}.q", arm.q, (len(arm.joints),), observation, info
            )
            if arm.grip_q is not None:
                closure = _vector(f"{where}.grip_q", arm.grip_q, (), observation, info)
                fields[f"grip_q_{name}"] = np.asarray(closure.clip(0.0, 1.0), np.float32)
        for field, signal in self._mapping.signals.items():
            if signal.key is not None:
                fields[field] = _signal(field, signal, observation, info)
        return fields

    def words(self, observation: Any, info: Mapping[str, Any]) -> str | None:
        """The instruction, if the environment gives it."""
        key = self._mapping.instruction
        if key is None:
            return None
        return str(pick("instruction", key, observation, info))

    def success(
        self, observation: Any, info: Mapping[str, Any], reward: float, terminated: bool
    ) -> bool:
        """Whether the rule of the mapping is met at this step."""
        rule = self._mapping.success
        if rule.key is not None:
            return bool(np.all(pick("success", rule.key, observation, info)))
        return terminated if rule.reward is None else reward >= rule.reward


def pick(where: str, key: str, observation: Any, info: Mapping[str, Any]) -> Array:
    """What stands under ``key``.

    Raises:
        SimulationError: nothing does; it names the nearest key.
    """
    in_info, path, part = split_key(key)
    found: Any = info if in_info else observation
    for depth, step in enumerate(path):
        if not isinstance(found, Mapping):
            inside = ".".join(path[:depth]) or "."
            raise _unfit(where, key, f"keys inside {inside!r}", described(found))
        if step not in found:
            keys = [".".join((*path[:depth], str(name))) for name in found]
            hint = did_you_mean(".".join(path[: depth + 1]), keys)
            raise _unfit(where, key, "a key that is there", "none like it", hint)
        found = found[step]
    if isinstance(found, Mapping):
        inner = ", ".join(map(str, found))
        raise _unfit(where, key, "a value", f"a dictionary with {inner}")
    array = np.asarray(found)
    return array if part is None else _part(where, key, array, part)


def described(value: Any) -> str:
    """Shape and dtype, or the type."""
    if isinstance(value, Mapping):
        return f"a dictionary with {', '.join(map(str, value))}"
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return "objects" if array.dtype.kind == "O" else "text"
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _part(where: str, key: str, array: Array, part: int | slice) -> Array:
    needed = part.stop if isinstance(part, slice) else part + 1
    if array.ndim != 1 or len(array) < needed:
        raise _unfit(where, key, f"a vector of {needed} or more entries", described(array))
    return np.asarray(array[part])


def _vector(
    where: str, reading: Reading, shape: tuple[int, ...], observation: Any, info: Mapping[str, Any]
) -> Array:
    array = pick(where, reading.key, observation, info)
    return _numbers(where, reading.key, array, Signal(field="x", shape=shape), reading)


def _signal(field: str, signal: SignalMapping, observation: Any, info: Mapping[str, Any]) -> Array:
    assert signal.key is not None
    where = f"signals.{field}"
    return _numbers(where, signal.key, pick(where, signal.key, observation, info), signal, signal)


def _numbers(
    where: str, key: str, array: Array, kind: Signal, factors: Reading | SignalMapping
) -> Array:
    expected = f"{kind.dtype}[{','.join(map(str, kind.shape))}]"
    if array.dtype.kind not in "fiub" or array.shape != kind.shape:
        raise _unfit(where, key, expected, described(array))
    values = _factored(where, array, factors)
    if not np.isfinite(values).all():
        raise _unfit(
            where, key, "finite numbers", f"{np.count_nonzero(~np.isfinite(values))} others"
        )
    low, high = kind.limits
    if values.size and not (low <= values.min() and values.max() <= high):
        raise _unfit(where, key, f"{low:g}..{high:g}", f"{values.min():g}..{values.max():g}")
    rounded = values if kind.dtype == "float32" else np.rint(values)
    return np.asarray(rounded.astype(kind.dtype))


def _factored(where: str, array: Array, factors: Reading | SignalMapping) -> Array:
    counts = [np.size(factor) for factor in (factors.scale, factors.offset)]
    if any(count not in (1, array.size) for count in counts):
        expected = f"scale and offset for {array.size} entries"
        got = " and ".join(map(str, counts))
        raise SimulationError(f"task.mapping.{where}", expected, got)
    scale, offset = (np.asarray(f, np.float64) for f in (factors.scale, factors.offset))
    return np.asarray(array.astype(np.float64) * scale + offset)


def _picture(field: str, picture: PictureMapping, found: Array, size: tuple[int, int]) -> Array:
    where, key = f"pictures.{field}", str(picture.key)
    order = "H,W,3" if picture.layout == "hwc" else "3,H,W"
    array = found.transpose(1, 2, 0) if picture.layout == "chw" and found.ndim == 3 else found
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "fiu":
        raise _unfit(where, key, f"a picture [{order}]", described(found))
    if array.dtype != np.uint8 or picture.scale != 1.0:
        array = np.rint(array.astype(np.float64) * picture.scale)
        if array.min() < 0 or array.max() > 255:
            got = f"{array.min():g}..{array.max():g} with scale {picture.scale:g}"
            raise _unfit(where, key, "brightness in 0..255", got)
    return _resized(np.ascontiguousarray(array, np.uint8), size)


def _resized(picture: Array, size: tuple[int, int]) -> Array:
    """Each pixel the mean of what it covers."""
    if picture.shape[:2] == size:
        return picture.copy()
    from PIL import Image

    height, width = size
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.uint8).copy()


def _unfit(where: str, key: str, expected: str, got: str, mend: str = "") -> SimulationError:
    advice = mend or "Let the mapping say what the environment gives"
    return SimulationError(f"task.mapping.{where}: key {key!r}", expected, got, advice)

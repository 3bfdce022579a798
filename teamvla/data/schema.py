"""What a step and an episode are, and the checks that every one of them passes.

A step is a plain mapping. The fields of :data:`STEP_SPECS` are required, those of
:data:`OPTIONAL_FIELDS` are checked where they appear, any other field passes through
untouched as long as it can be stored without pickling.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np

from teamvla.errors import SchemaError
from teamvla.files import canonical_json

EPISODE_FILE_VERSION = 2
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_FIELDS = 100
_MAX_STEPS = 10_000_000
_MAX_DEPTH = 32
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_SMALL = 64  # below this many entries a Python loop beats a NumPy call


@dataclass(frozen=True)
class FieldSpec:
    """What one field of a step must be.

    Args:
        name: the field, or a pattern such as ``depth_*``.
        dtype: its NumPy dtype; ``str`` dtypes mean text.
        shape: of one step. A letter stands for any size, the same within a field.
        description: meaning and unit.
        low: smallest legal value, where there is one.
        high: largest legal value.
        finite: whether NaN and infinities are refused.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str, ...]
    description: str
    low: float | None = None
    high: float | None = None
    finite: bool = True

    @property
    def is_text(self) -> bool:
        return self.dtype.kind == "U"

    def __str__(self) -> str:
        return "str" if self.is_text else describe(self.dtype, self.shape)

    @property
    def column(self) -> str:
        """How all steps of the field are stored: ``float32[T,N]``."""
        return describe(self.dtype, ("T", *self.shape))

    def fits(self, dtype: np.dtype, shape: tuple[int, ...]) -> str | None:
        """The code of the rule that a column of steps with this dtype and shape breaks."""
        if dtype.kind != "U" if self.is_text else dtype != self.dtype:
            return "E105"
        return None if _same_shape(self.shape, shape) else "E106"

    def check(self, name: str, value: Any) -> None:
        """Raise SchemaError unless ``value`` is this field's value of one step."""
        if type(value) is np.ndarray and self.shape:
            self._check_array(name, value)
        elif self.is_text:
            check_text(name, value)
        elif self.shape or not _is_scalar_of(value, self.dtype):
            raise _unfit("E104", name, str(self), value)
        elif self.dtype.kind == "f":
            self._check_number(name, float(value))

    def _check_array(self, name: str, value: np.ndarray) -> None:
        if value.dtype != self.dtype:
            raise _unfit("E105", name, str(self), value)
        if not _same_shape(self.shape, value.shape):
            raise _unfit("E106", name, str(self), value)
        if self.dtype.kind == "f" and self.finite and not _all_finite(value):
            count = int(np.count_nonzero(~np.isfinite(value)))
            raise SchemaError(name, "finite numbers", f"{count} NaN or infinite", code="E107")

    def _check_number(self, name: str, value: float) -> None:
        if self.finite and not math.isfinite(value):
            raise SchemaError(name, "a finite number", str(value), code="E107")
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            limits = f"a value in [{self.low:g}, {self.high:g}]"
            raise SchemaError(name, limits, f"{value:g}", code="E108")


def _specs(*specs: tuple[Any, ...]) -> dict[str, FieldSpec]:
    return {s[0]: FieldSpec(s[0], np.dtype(s[1]), *s[2:]) for s in specs}


STEP_SPECS: dict[str, FieldSpec] = _specs(
    ("rgb_a", "u1", ("H", "W", 3), "Picture of arm a's camera."),
    ("rgb_b", "u1", ("H", "W", 3), "Picture of arm b's camera."),
    ("q_a", "f4", ("N",), "Measured joint positions of arm a, rad."),
    ("q_b", "f4", ("N",), "Measured joint positions of arm b, rad."),
    ("action_a", "f4", ("N",), "Joint command of arm a sent from this observation, rad."),
    ("action_b", "f4", ("N",), "Joint command of arm b sent from this observation, rad."),
    ("grip_a", "f4", (), "Gripper command of arm a, 0 open .. 1 closed.", 0.0, 1.0),
    ("grip_b", "f4", (), "Gripper command of arm b, 0 open .. 1 closed.", 0.0, 1.0),
    ("instruction", "U", (), "Natural-language prompt."),
    ("task", "U", (), "Slug of the task; the same in all steps of an episode."),
    ("success", "?", (), "Success predicate after this step's action."),
)
"""The required fields of the embodiment ``two_arm``, by name."""

OPTIONAL_FIELDS: dict[str, FieldSpec] = _specs(
    ("depth_*", "f4", ("H", "W"), "Depth picture, m; NaN or inf where nothing answers.",
     None, None, False),
    ("rgb_wrist_*", "u1", ("H", "W", 3), "Picture of a camera on a wrist."),
    ("rgb_top", "u1", ("H", "W", 3), "Picture of the overview camera."),
    ("grip_q_*", "f4", (), "Measured gripper opening, 0 open .. 1 closed.", -0.1, 1.1),
    ("phase", "U", (), "What the expert is doing."),
    ("timestamp", "f8", (), "Time since the episode's start, s."),
    ("qd_*", "f4", ("N",), "Measured joint velocities, rad/s."),
    ("ee_*", "f4", ("D",), "Pose of the tool: position, m, then quaternion w x y z."),
)  # fmt: skip
"""Known fields that a step may have, by name or pattern."""


@lru_cache(maxsize=1024)
def spec_of(name: str) -> FieldSpec | None:
    """The spec that governs a field; ``None`` for an unknown one or an illegal name."""
    if not NAME.fullmatch(name):
        return None
    known = STEP_SPECS.get(name) or OPTIONAL_FIELDS.get(name)
    if known is not None:
        return known
    stems = (s for s in OPTIONAL_FIELDS.values() if s.name.endswith("*"))
    return next((s for s in stems if name.startswith(s.name[:-1]) and name != s.name[:-1]), None)


def validate_step(step: Mapping[str, Any]) -> None:
    """Check one step.

    Raises:
        SchemaError: naming the first field that breaks a rule, with that rule's code.
    """
    if not isinstance(step, Mapping):
        raise _unfit("E101", "step", "a mapping of fields", step)
    if len(step) > MAX_FIELDS:
        raise SchemaError("step", f"at most {MAX_FIELDS} fields", str(len(step)), code="E112")
    for name in STEP_SPECS:
        if name not in step:
            raise SchemaError(name, str(STEP_SPECS[name]), "nothing", code="E102")
    for name, value in step.items():
        spec = spec_of(name) if isinstance(name, str) else None
        if spec is not None:
            spec.check(name, value)
        else:
            _check_unknown(name, value)
    for arm in ("a", "b"):
        joints, action = step[f"q_{arm}"].shape, step[f"action_{arm}"].shape
        if joints != action:
            raise _unpaired(f"q_{arm}", joints, f"action_{arm}", action)


def validate_columns(
    columns: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    constants: Collection[str],
    num_steps: int,
) -> Iterator[SchemaError]:
    """Every rule that the stacked fields of an episode break, by dtypes and shapes alone.

    Args:
        columns: field -> dtype and shape, time first.
        constants: fields given once for the whole episode; they count as present.
        num_steps: how long the metadata says the episode is.
    """
    for name in STEP_SPECS:
        if name not in columns and name not in constants:
            yield SchemaError(name, STEP_SPECS[name].column, "nothing", code="E102")
    yield from _lengths(columns, num_steps)
    for name, (dtype, shape) in columns.items():
        spec = spec_of(name)
        code = spec.fits(dtype, shape[1:]) if spec is not None and shape else None
        if spec is not None and code is not None:
            yield SchemaError(name, spec.column, describe(dtype, shape), code=code)
    for arm in ("a", "b"):
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


def check_text(name: str, value: Any) -> None:
    """Raise SchemaError unless ``value`` is text that a fixed-width array keeps."""
    if type(value) is not str:
        raise _unfit("E104", name, "str", value)
    if not value or "\0" in value or not _encodable(value):
        expected = "text without NUL and lone surrogates"
        raise SchemaError(name, expected, repr(value[:40]), code="E109")


def _check_unknown(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name) or name == "meta":
        expected = f"a field name matching {NAME.pattern}, other than meta"
        raise SchemaError(repr(name)[:80], expected, "none", code="E103")
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        mend = "Use a Python number or an array of one dimension or more."
        raise SchemaError(name, "no NumPy scalar", describe_value(value), mend, code="E110")
    if isinstance(value, np.ndarray):
        if not storable(value.dtype):
            raise _unfit("E111", name, "an array of numbers or fixed-width text", value)
    elif type(value) is str:
        if value:
            check_text(name, value)
    elif type(value) not in (bool, float) and not (type(value) is int and abs(value) < 1 << 63):
        _check_json(name, value)


def _check_json(name: str, value: Any) -> None:
    try:
        same = bool(json.loads(canonical_json(value)) == value) and type(value) is not int
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise _unfit("E111", name, "an array, a number, text or JSON (lists, not tuples)", value)


def storable(dtype: np.dtype) -> bool:
    """Whether an episode file may hold arrays of this dtype."""
    if dtype.kind in "SU":
        return dtype.itemsize > 0
    return dtype.itemsize in _SIZES.get(dtype.kind, ())


def describe(dtype: np.dtype, shape: tuple[int | str, ...]) -> str:
    """``float32[6]``, ``uint8[H,W,3]``, ``float32``."""
    size = f"[{','.join(map(str, shape))}]" if shape else ""
    return f"{'str' if dtype.kind == 'U' else dtype}{size}"


def describe_value(value: Any) -> str:
    """What a value is, without its content."""
    if isinstance(value, np.ndarray | np.generic):
        kind = "NumPy scalar " if isinstance(value, np.generic) else ""
        return kind + describe(value.dtype, value.shape)
    return type(value).__name__


def _unfit(code: str, where: str, expected: str, value: Any) -> SchemaError:
    return SchemaError(where, expected, describe_value(value), code=code)


@lru_cache(maxsize=4096)
def _same_shape(expected: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(expected) == len(shape) and all(
        size > 0 if isinstance(want, str) else size == want
        for want, size in zip(expected, shape, strict=True)
    )


def _is_scalar_of(value: Any, dtype: np.dtype) -> bool:
    python = bool if dtype.kind == "b" else float
    if type(value) is python:
        return True
    return isinstance(value, np.generic | np.ndarray) and value.shape == () and value.dtype == dtype


def _all_finite(value: np.ndarray) -> bool:
    if value.size <= _SMALL:
        return all(map(math.isfinite, value.ravel().tolist()))
    return bool(np.isfinite(value).all())


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class EpisodeMeta:
    """What is said of a whole episode.

    Attributes:
        task: slug of the task; the folder the episode lies in.
        episode_id: unique within its task; the name of the file.
        success: whether the attempt succeeded.
        num_steps: length, derived when the episode ends.
        version: of the file format.
        extra: anything else JSON can hold (contract, seed, expert, software, ...).
    """

    task: str
    episode_id: str
    success: bool = False
    num_steps: int = 0
    version: int = EPISODE_FILE_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One flat dict: the attributes and, beside them, everything extra."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **known}


def validate_episode_meta(meta: Mapping[str, Any] | EpisodeMeta) -> EpisodeMeta:
    """Coerce metadata to :class:`EpisodeMeta`.

    Raises:
        SchemaError: it is not a mapping of JSON values, a key is missing, a value has the
            wrong type, a name is illegal, or the version is another.
    """
    data = meta.to_dict() if isinstance(meta, EpisodeMeta) else meta
    if not isinstance(data, Mapping):
        raise _unfit("E121", "metadata", "a mapping", data)
    for key in ("task", "episode_id"):
        if key not in data:
            raise SchemaError(f"metadata.{key}", "a name", "nothing", code="E122")
        check_name(f"metadata.{key}", data[key])
    known = {f.name: data[f.name] for f in fields(EpisodeMeta) if f.name in data}
    known["extra"] = {key: value for key, value in data.items() if key not in known}
    episode = EpisodeMeta(**known)
    _check_meta_types(episode)
    if _deeper_than(data, _MAX_DEPTH):
        raise SchemaError("metadata", f"at most {_MAX_DEPTH} levels", "more", code="E234")
    try:
        canonical_json(dict(data))
    except (TypeError, ValueError) as error:
        raise SchemaError("metadata", "JSON values", str(error), code="E121") from None
    return episode


def _deeper_than(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        groups = (item.values() if isinstance(item, Mapping) else item for item in layer)
        layer = [child for group in groups for child in group if _nests(child)]
        if not layer:
            return False
    return True


def _nests(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def check_name(where: str, value: Any) -> None:
    """Raise SchemaError unless ``value`` is a legal name of a task or an episode."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        mend = "Use small letters, digits, _ and -, at most 64."
        raise SchemaError(
            where, f"a name matching {NAME.pattern}", repr(value)[:80], mend, code="E123"
        )


def _check_meta_types(meta: EpisodeMeta) -> None:
    if type(meta.success) is not bool:
        raise _unfit("E124", "metadata.success", "bool", meta.success)
    steps = meta.num_steps
    if type(steps) is not int or not 0 <= steps <= _MAX_STEPS:
        expected = f"a count up to {_MAX_STEPS}"
        raise SchemaError("metadata.num_steps", expected, repr(steps)[:40], code="E124")
    if type(meta.version) is not int or meta.version != EPISODE_FILE_VERSION:
        raise SchemaError(
            "metadata.version", str(EPISODE_FILE_VERSION), repr(meta.version)[:40], code="E126"
        )

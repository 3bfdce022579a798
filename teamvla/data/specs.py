"""What one field of a step must be, and how arrays and texts are stored and named."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from teamvla.data.ragged import OFFSETS
from teamvla.errors import SchemaError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VARIABLE = "P"
"""The first letter of a shape whose first axis varies from step to step."""
LONGEST_RAGGED = 64 - len(OFFSETS)
"""Of the name of such a field: its offsets have a name of their own."""

_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_SMALL = 64  # below this many entries a Python loop beats a NumPy call


@dataclass(frozen=True)
class FieldSpec:
    """What one field of a step must be.

    Args:
        name: the field, or a pattern such as ``depth_*``.
        dtype: its NumPy dtype; ``str`` dtypes mean text.
        shape: of one step. A letter stands for any size, the same within a field; P, which
            stands first alone, for one that may differ from step to step and may be 0.
        description: meaning and unit.
        low: smallest legal value, where there is one.
        high: largest legal value, where there is one.
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

    @property
    def is_ragged(self) -> bool:
        """Whether the first axis of a step's value varies from step to step."""
        return self.shape[:1] == (VARIABLE,)

    @property
    def is_bounded(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def span(self) -> str:
        """The legal values in words: ``in [0, 1]``, ``>= 0`` or ``<= 1``."""
        if self.low is not None and self.high is not None:
            return f"in [{self.low:g}, {self.high:g}]"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}"

    def outside(self, values: np.ndarray) -> np.ndarray:
        """bool: which of some numbers are smaller or larger than legal; NaN is neither."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return np.asarray((values < low) | (values > high))

    def __str__(self) -> str:
        return "str" if self.is_text else describe(self.dtype, self.shape)

    @property
    def column(self) -> str:
        """How all steps of the field are stored: ``float32[T,N]``."""
        return describe(self.dtype, ("T", *self.shape))

    def fits(self, dtype: np.dtype, shape: tuple[int, ...]) -> str | None:
        """The code of the rule that a column of steps with this dtype and shape breaks.

        A first size of -1 means that it varies.
        """
        if dtype.kind != "U" if self.is_text else dtype != self.dtype:
            return "E105"
        if self.is_ragged != (shape[:1] == (-1,)):
            return "E113"
        varying = 1 if self.is_ragged else 0
        return None if _same_shape(self.shape[varying:], shape[varying:]) else "E106"

    def check(self, name: str, value: Any) -> None:
        """Raise SchemaError unless ``value`` is this field's value of one step."""
        if self.is_ragged and len(name) > LONGEST_RAGGED:
            limit = f"at most {LONGEST_RAGGED} letters, as {OFFSETS} comes behind them"
            raise SchemaError(name, limit, str(len(name)), code="E103")
        if is_array(value) and self.shape:
            self._check_array(name, value)
        elif self.is_text:
            check_text(name, value)
        elif self.shape or not _is_scalar_of(value, self.dtype):
            raise unfit("E104", name, str(self), value)
        elif self.dtype.kind != "b":
            self._check_number(name, float(value))

    def _check_array(self, name: str, value: np.ndarray) -> None:
        if value.dtype != self.dtype:
            raise unfit("E105", name, str(self), value)
        if not _same_shape(self.shape, value.shape):
            raise unfit("E106", name, str(self), value)
        if self.dtype.kind == "f" and self.finite and not _all_finite(value):
            count = int(np.count_nonzero(~np.isfinite(value)))
            raise SchemaError(name, "finite numbers", f"{count} NaN or infinite", code="E107")
        if self.is_bounded and (wrong := self.outside(value)).any():
            got = f"{value[wrong][0].item():g} ({int(wrong.sum())} of {value.size} numbers)"
            raise SchemaError(name, f"values {self.span}", got, code="E108")

    def _check_number(self, name: str, value: float) -> None:
        if self.finite and not math.isfinite(value):
            raise SchemaError(name, "a finite number", str(value), code="E107")
        if (self.low is not None and value < self.low) or (
            self.high is not None and value > self.high
        ):
            raise SchemaError(name, f"a value {self.span}", f"{value:g}", code="E108")


def check_text(name: str, value: Any) -> None:
    """Raise SchemaError unless ``value`` is text that a fixed-width array keeps."""
    if type(value) is not str:
        raise unfit("E104", name, "str", value)
    if not value or "\0" in value or not _encodable(value):
        expected = "text without NUL and lone surrogates"
        raise SchemaError(name, expected, repr(value[:40]), code="E109")


def storable(dtype: np.dtype) -> bool:
    """Whether an episode file may hold arrays of this dtype."""
    if dtype.kind in "SU":
        return dtype.itemsize > 0
    return dtype.itemsize in _SIZES.get(dtype.kind, ())


def describe(dtype: np.dtype, shape: tuple[int | str, ...]) -> str:
    """``float32[6]``, ``uint8[H,W,3]``, ``float32``; a size of -1, which varies, is P."""
    sizes = (VARIABLE if size == -1 else str(size) for size in shape)
    size = f"[{','.join(sizes)}]" if shape else ""
    return f"{'str' if dtype.kind == 'U' else dtype}{size}"


def is_array(value: Any) -> bool:
    """Whether it is an array or a memory map, but no masked array: a mask is not stored."""
    return type(value) is np.ndarray or (isinstance(value, np.ndarray) and not _is_masked(value))


def _is_masked(value: np.ndarray) -> bool:
    return hasattr(value, "mask")  # naming its class would import numpy.ma


def describe_value(value: Any) -> str:
    """What a value is, without its content."""
    if isinstance(value, np.ndarray | np.generic):
        kind = "NumPy scalar " if isinstance(value, np.generic) else ""
        kind = "masked " if isinstance(value, np.ndarray) and _is_masked(value) else kind
        return kind + describe(value.dtype, value.shape)
    return type(value).__name__


def unfit(code: str, where: str, expected: str, value: Any) -> SchemaError:
    """The error for a value that is of another kind than expected."""
    return SchemaError(where, expected, describe_value(value), code=code)


@lru_cache(maxsize=4096)
def _same_shape(expected: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(expected) == len(shape) and all(
        size > 0 or want == VARIABLE if isinstance(want, str) else size == want
        for want, size in zip(expected, shape, strict=True)
    )


def _is_scalar_of(value: Any, dtype: np.dtype) -> bool:
    if type(value) is int and dtype.kind in "iu":
        return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    if type(value) is (bool if dtype.kind == "b" else float):
        return dtype.kind in "bf"
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

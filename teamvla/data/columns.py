"""Columns under construction: the values of one field, step after step.

A column is made for the first step's value and from then on takes only values of the
same kind, dtype and shape (but for the first size of a field of variable length).
``check`` comes before ``append``, so that a refused step
leaves every column as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from teamvla.data.fields import STEP_SPECS, spec_of
from teamvla.data.ragged import OFFSETS
from teamvla.data.specs import VARIABLE, FieldSpec, describe, describe_value, is_array
from teamvla.errors import SchemaError
from teamvla.files import canonical_json

_FIRST_CAPACITY = 64
_ROWS = "If its length varies from step to step, call it rows_NAME, float32[P,D]."


class Column(Protocol):
    """What the writer needs of a column."""

    is_json: bool
    is_ragged: bool

    def size_with(self, value: Any) -> int:
        """Bytes of its members with one more value, checked before."""

    def check(self, value: Any) -> None:
        """Raise SchemaError unless the column takes ``value``."""

    def append(self, value: Any) -> None:
        """Copy a checked value."""

    def members(self) -> dict[str, np.ndarray]:
        """What the file holds of them, by the member's name, time first."""


def column_for(name: str, value: Any, specs: Mapping[str, FieldSpec] = STEP_SPECS) -> Column:
    """The column whose first value ``value`` will be; it has passed ``validate_step``."""
    spec = spec_of(name, specs)
    if is_array(value) and value.ndim:
        ragged = spec is not None and spec.is_ragged
        return RaggedColumn(name, value) if ragged else ArrayColumn(name, value)
    if spec is not None and not spec.is_text:
        return NumberColumn(name, spec.dtype, None)
    if type(value) is str:
        return TextColumn(name)
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    if type(value) in kinds:
        return NumberColumn(name, np.dtype(kinds[type(value)]), type(value))
    return JsonColumn(name)


class _Rows:
    """Rows of one shape in an array that doubles when it is full."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._rows, self._length = np.empty((_FIRST_CAPACITY, *shape), dtype), 0

    def __len__(self) -> int:
        return self._length

    def extend(self, rows: np.ndarray) -> None:
        length = self._length + len(rows)
        if length > len(self._rows):
            capacity = max(length, 2 * len(self._rows))
            grown = np.empty((capacity, *self._rows.shape[1:]), self._rows.dtype)
            grown[: self._length] = self.array
            self._rows = grown
        self._rows[self._length : length] = rows
        self._length = length

    @property
    def array(self) -> np.ndarray:
        return self._rows[: self._length]


class ArrayColumn:
    """Arrays of one shape, copied."""

    is_json = is_ragged = False

    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name = name
        self._dtype, self._shape = value.dtype, value.shape
        self._rows = _Rows(value.shape, value.dtype)

    def size_with(self, value: Any) -> int:
        return int(value.nbytes) * (len(self._rows) + 1)

    def check(self, value: Any) -> None:
        fits = is_array(value) and value.dtype == self._dtype
        if not fits or value.shape != self._shape:
            expected = describe(self._dtype, self._shape)
            longer = fits and value.shape[1:] == self._shape[1:]
            raise _changed(self._name, expected, describe_value(value), _ROWS if longer else "")

    def append(self, value: Any) -> None:
        self._rows.extend(value[None])

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: self._rows.array}


class RaggedColumn:
    """Arrays that may differ in their first size, copied one behind another."""

    is_json, is_ragged = False, True

    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name, self._dtype, self._shape = name, value.dtype, value.shape[1:]
        self._rows = _Rows(self._shape, value.dtype)
        self._offsets = [0]

    def size_with(self, value: Any) -> int:
        return int(self._rows.array.nbytes + value.nbytes) + 8 * (len(self._offsets) + 1)

    def check(self, value: Any) -> None:
        fits = is_array(value) and value.ndim and value.dtype == self._dtype
        if not fits or value.shape[1:] != self._shape:
            expected = describe(self._dtype, (VARIABLE, *self._shape))
            raise _changed(self._name, expected, describe_value(value))

    def append(self, value: Any) -> None:
        self._rows.extend(value)
        self._offsets.append(len(self._rows))

    def members(self) -> dict[str, np.ndarray]:
        offsets = np.array(self._offsets, np.int64)
        return {self._name: self._rows.array, self._name + OFFSETS: offsets}


class _ListColumn:
    is_json = is_ragged = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[Any] = []

    def append(self, value: Any) -> None:
        self._values.append(value)


class NumberColumn(_ListColumn):
    """Python numbers and booleans of one type; known fields have their spec's dtype."""

    def __init__(self, name: str, dtype: np.dtype, kind: type | None) -> None:
        super().__init__(name)
        self._dtype, self._kind = dtype, kind

    def size_with(self, value: Any) -> int:
        return self._dtype.itemsize * (len(self._values) + 1)

    def check(self, value: Any) -> None:
        if self._kind is not None and type(value) is not self._kind:
            raise _changed(self._name, self._kind.__name__, describe_value(value))

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: np.array(self._values, self._dtype)}


class _WideColumn(_ListColumn):
    """Texts, all as wide as the longest: one long text costs that much in every step."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._width = 1

    def _size_with(self, text: str) -> int:
        return 4 * max(self._width, len(text)) * (len(self._values) + 1)

    def _append(self, text: str) -> None:
        self._values.append(text)
        self._width = max(self._width, len(text))

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: np.array(self._values, f"U{self._width}")}


class TextColumn(_WideColumn):
    """Texts."""

    def size_with(self, value: Any) -> int:
        return self._size_with(value)

    def append(self, value: Any) -> None:
        self._append(value)

    def check(self, value: Any) -> None:
        if type(value) is not str:
            raise _changed(self._name, "str", describe_value(value))


class JsonColumn(_WideColumn):
    """Anything else, as JSON texts."""

    is_json = True

    def check(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise _changed(self._name, "JSON", describe_value(value))

    def size_with(self, value: Any) -> int:
        return self._size_with(_json(value))

    def append(self, value: Any) -> None:
        self._append(_json(value))


def _json(value: Any) -> str:
    return canonical_json(value).decode("utf-8")


def _changed(name: str, expected: str, got: str, mend: str = "") -> SchemaError:
    return SchemaError(name, f"{expected}, as in the first step", got, mend, code="E305")

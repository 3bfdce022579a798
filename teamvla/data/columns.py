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
from teamvla.data.specs import VARIABLE, FieldSpec, describe, describe_value
from teamvla.errors import SchemaError
from teamvla.files import canonical_json

_FIRST_CAPACITY = 64


class Column(Protocol):
    """What the writer needs of a column."""

    is_json: bool
    is_ragged: bool
    step_bytes: int
    """Of one step; 0 if that varies."""

    @property
    def nbytes(self) -> int:
        """Of all values so far; a guess for texts."""

    def check(self, value: Any) -> None:
        """Raise SchemaError unless the column takes ``value``."""

    def append(self, value: Any) -> None:
        """Copy a checked value."""

    def members(self) -> dict[str, np.ndarray]:
        """What the file holds of them, by the member's name, time first."""


def column_for(name: str, value: Any, specs: Mapping[str, FieldSpec] = STEP_SPECS) -> Column:
    """The column whose first value ``value`` will be; it has passed ``validate_step``."""
    spec = spec_of(name, specs)
    if type(value) is np.ndarray and value.ndim:
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
        self._name, self.step_bytes = name, value.nbytes
        self._dtype, self._shape = value.dtype, value.shape
        self._rows = _Rows(value.shape, value.dtype)

    @property
    def nbytes(self) -> int:
        return self.step_bytes * len(self._rows)

    def check(self, value: Any) -> None:
        fits = type(value) is np.ndarray and value.dtype == self._dtype
        if not fits or value.shape != self._shape:
            expected = describe(self._dtype, self._shape)
            raise _changed(self._name, expected, describe_value(value))

    def append(self, value: Any) -> None:
        self._rows.extend(value[None])

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: self._rows.array}


class RaggedColumn:
    """Arrays that may differ in their first size, copied one behind another."""

    is_json, is_ragged, step_bytes = False, True, 0

    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name, self._dtype, self._shape = name, value.dtype, value.shape[1:]
        self._rows = _Rows(self._shape, value.dtype)
        self._offsets = [0]

    @property
    def nbytes(self) -> int:
        return self._rows.array.nbytes + 8 * len(self._offsets)

    def check(self, value: Any) -> None:
        fits = type(value) is np.ndarray and value.ndim and value.dtype == self._dtype
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
    step_bytes = 8

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[Any] = []

    @property
    def nbytes(self) -> int:
        return self.step_bytes * len(self._values)

    def append(self, value: Any) -> None:
        self._values.append(value)


class NumberColumn(_ListColumn):
    """Python numbers and booleans of one type; known fields have their spec's dtype."""

    def __init__(self, name: str, dtype: np.dtype, kind: type | None) -> None:
        super().__init__(name)
        self._dtype, self._kind = dtype, kind

    def check(self, value: Any) -> None:
        if self._kind is not None and type(value) is not self._kind:
            raise _changed(self._name, self._kind.__name__, describe_value(value))

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: np.array(self._values, self._dtype)}


class TextColumn(_ListColumn):
    """Texts, as wide as the longest."""

    def check(self, value: Any) -> None:
        if type(value) is not str:
            raise _changed(self._name, "str", describe_value(value))

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: _texts(self._values)}


class JsonColumn(_ListColumn):
    """Anything else, as JSON texts."""

    is_json = True

    def check(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise _changed(self._name, "JSON", describe_value(value))

    def append(self, value: Any) -> None:
        self._values.append(canonical_json(value).decode("utf-8"))

    def members(self) -> dict[str, np.ndarray]:
        return {self._name: _texts(self._values)}


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, f"U{max(1, *map(len, values))}")


def _changed(name: str, expected: str, got: str) -> SchemaError:
    return SchemaError(name, f"{expected}, as in the first step", got, code="E305")

"""Columns under construction: the values of one field, step after step.

A column is made for the first step's value and from then on takes only values of the
same kind, dtype and shape. ``check`` comes before ``append``, so that a refused step
leaves every column as it was.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from teamvla.data.schema import describe_value, spec_of
from teamvla.errors import SchemaError
from teamvla.files import canonical_json

_FIRST_CAPACITY = 64


class Column(Protocol):
    """What the writer needs of a column."""

    is_json: bool
    step_bytes: int

    def check(self, value: Any) -> None:
        """Raise SchemaError unless the column takes ``value``."""

    def append(self, value: Any) -> None:
        """Copy a checked value."""

    def array(self) -> np.ndarray:
        """All values, time first."""


def column_for(name: str, value: Any) -> Column:
    """The column whose first value ``value`` will be; it has passed ``validate_step``."""
    spec = spec_of(name)
    if type(value) is np.ndarray and value.ndim:
        return ArrayColumn(name, value)
    if spec is not None and not spec.is_text:
        return NumberColumn(name, spec.dtype, None)
    if type(value) is str:
        return TextColumn(name)
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    if type(value) in kinds:
        return NumberColumn(name, np.dtype(kinds[type(value)]), type(value))
    return JsonColumn(name)


class ArrayColumn:
    """Arrays, copied into one array that doubles when it is full."""

    is_json = False

    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name, self._length, self.step_bytes = name, 0, value.nbytes
        self._rows = np.empty((_FIRST_CAPACITY, *value.shape), value.dtype)

    def check(self, value: Any) -> None:
        rows = self._rows
        fits = type(value) is np.ndarray and value.dtype == rows.dtype
        if not fits or value.shape != rows.shape[1:]:
            raise _changed(self._name, describe_value(rows[0]), describe_value(value))

    def append(self, value: Any) -> None:
        if self._length == len(self._rows):
            grown = np.empty((2 * self._length, *self._rows.shape[1:]), self._rows.dtype)
            grown[: self._length] = self._rows
            self._rows = grown
        self._rows[self._length] = value
        self._length += 1

    def array(self) -> np.ndarray:
        return self._rows[: self._length]


class _ListColumn:
    is_json = False
    step_bytes = 8

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

    def check(self, value: Any) -> None:
        if self._kind is not None and type(value) is not self._kind:
            raise _changed(self._name, self._kind.__name__, describe_value(value))

    def array(self) -> np.ndarray:
        return np.array(self._values, self._dtype)


class TextColumn(_ListColumn):
    """Texts, as wide as the longest."""

    def check(self, value: Any) -> None:
        if type(value) is not str:
            raise _changed(self._name, "str", describe_value(value))

    def array(self) -> np.ndarray:
        return np.array(self._values, f"U{max(1, *map(len, self._values))}")


class JsonColumn(_ListColumn):
    """Anything else, as JSON texts."""

    is_json = True

    def check(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise _changed(self._name, "JSON", describe_value(value))

    def append(self, value: Any) -> None:
        self._values.append(canonical_json(value).decode("utf-8"))

    def array(self) -> np.ndarray:
        return np.array(self._values, f"U{max(1, *map(len, self._values))}")


def _changed(name: str, expected: str, got: str) -> SchemaError:
    return SchemaError(name, f"{expected}, as in the first step", got, code="E305")

"""Old files' object arrays, read by a machine that cannot do anything.

A pickle is a program. Python's unpickler runs it: it imports the modules that the
stream names and calls what it finds there. This one never does. It knows the few
operations that :func:`numpy.save` writes for an object array of dicts (protocols 0 to
5), takes a name such as ``numpy.dtype`` for an inert mark, and lets this module's own
code build what the five allowed marks describe. Everything else is refused, each with
a code of its own (``E251`` to ``E269``).

What a stream may cost is bounded beforehand: operations, memory (a budget that every
operation draws on), depth, and the number of values after shared references have been
followed, so that a stream that names one list over and over cannot grow without bound.
Dict keys are texts: nothing that the stream composed is ever hashed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from teamvla.data.npy import values_are_legal
from teamvla.data.pickle_machine import Array, Budget, Dtype, Machine
from teamvla.data.schema import storable

MAX_VALUES = 1_000_000
MAX_DEPTH = 32
_MAX_DIMS = 8
# What each costs at most, bytes; a character is written as JSON, which may be \u0001.
_VALUE, _ARRAY, _CHARACTER = 100, 320, 8


def load_objects(stream: bytearray, shape: tuple[int, ...], budget: Budget) -> list[Any]:
    """The values of a pickled object array, in C order; nothing in it is executed.

    Arrays are views into ``stream``.

    Args:
        stream: the pickle, all of it.
        shape: what the array's header says.
        budget: what the values may take beside ``stream``; says how errors call it.

    Raises:
        EpisodeError: with the code of the guard that refused.
    """
    return _Builder(budget).objects(Machine(stream, budget).run(), shape)


class _Builder:
    """Turns what the machine left into values, every array checked."""

    def __init__(self, budget: Budget) -> None:
        self._charge, self._refuse = budget.charge, budget.refuse
        self._values = 0

    def objects(self, top: Any, shape: tuple[int, ...]) -> list[Any]:
        """The values of the object array that the whole stream is."""
        if type(top) is not Array or top.shape != shape or type(top.content) is not list:
            raise self._refuse(f"an array of objects of shape {shape}", "another value", "E265")
        if len(top.content) != math.prod(shape) or top.dtype.code[0] != "O":
            raise self._refuse(f"{math.prod(shape)} objects", f"{len(top.content)}", "E267")
        return [self._value(item, 0) for item in top.content]

    def _value(self, value: Any, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            got = "more, counting what is named again and again"
            raise self._refuse(f"at most {MAX_VALUES} values", got, "E264")
        if depth > MAX_DEPTH:
            raise self._refuse(f"at most {MAX_DEPTH} levels", "more, or a circle", "E263")
        self._charge(_VALUE)
        kind = type(value)
        if kind is list or kind is tuple:
            return kind([self._value(item, depth + 1) for item in value])
        if kind is str:
            self._charge(_CHARACTER * len(value))
            return value
        if kind is dict:
            self._charge(_CHARACTER * sum(map(len, value)))
            return {key: self._value(item, depth + 1) for key, item in value.items()}
        if kind is Array:
            return self._array(value)
        if kind is memoryview or value is None or kind in (bool, int, float):
            return value
        raise self._refuse("values", f"a bare {kind.__name__.strip('_').lower()}", "E268")

    def _array(self, array: Array) -> Any:
        self._charge(_ARRAY)
        shape, dtype = self._shape(array.shape), self._dtype(array.dtype)
        size = math.prod(shape) * dtype.itemsize
        if type(array.content) is not memoryview or len(array.content) != size:
            raise self._refuse(f"{size} bytes of content", "another length", "E267")
        flat = np.frombuffer(array.content, dtype) if size else np.empty(0, dtype)
        if not values_are_legal(flat):
            raise self._refuse(f"values of {dtype}", "other bit patterns", "E226")
        shaped = flat.reshape(shape, order="F" if array.fortran else "C")
        return shaped[()] if array.is_scalar else shaped

    def _shape(self, shape: Any) -> tuple[int, ...]:
        is_shape = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not is_shape or len(shape) > _MAX_DIMS:
            raise self._refuse(f"a shape of at most {_MAX_DIMS} axes", "another", "E265")
        checked: tuple[int, ...] = shape
        return checked

    def _dtype(self, described: Any) -> np.dtype:
        code = described.code if type(described) is Dtype else "O"
        try:
            dtype = np.dtype(described.order + code) if code[0] != "O" else np.dtype(object)
        except TypeError:
            dtype = np.dtype(object)
        if not storable(dtype):
            raise self._refuse("an array of numbers or text", code, "E266")
        return dtype

"""A machine that runs a pickle without being able to do anything.

It knows the operations that :func:`numpy.save` writes for an object array of dicts
(protocols 0 to 5), takes names such as ``numpy.dtype`` for inert marks, and describes
the arrays that calls of those marks would have built. :mod:`teamvla.data.pickles` says
how it is kept small.
"""

from __future__ import annotations

import codecs
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from teamvla.data.zipcontainer import refuse
from teamvla.errors import EpisodeError

MAX_OPERATIONS = 16_000_000
_MAX_LINE = 200
_MAX_INT_BYTES = 16
_OPERATION, _ITEM, _MEMO, _BLOCK = 80, 100, 120, 200  # what each costs at most, bytes
_DTYPE = re.compile(r"[a-zA-Z]\d{0,6}")

_ALLOWED = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
    ("collections", "OrderedDict"): "OrderedDict",
    **{
        (f"numpy.{core}.{module}", name): name
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    },
}


@dataclass(eq=False, slots=True)
class Mark:
    """Stands for a global; cannot be called."""

    name: str


@dataclass(eq=False, slots=True)
class Dtype:
    code: str
    order: str = ""


@dataclass(eq=False, slots=True)
class Array:
    """An array as the stream describes it; nothing in it was checked yet."""

    shape: Any = None
    dtype: Any = None
    fortran: bool = False
    content: Any = None
    is_scalar: bool = False


# Codecs themselves and not by their names, which Python would import a module for.
_Decode = Callable[[memoryview, str], tuple[str, int]]


def _utf8(raw: memoryview, errors: str) -> tuple[str, int]:
    return codecs.utf_8_decode(raw, errors, True)


class Budget:
    """How much memory is left to what a file makes of itself.

    Attributes:
        where: how errors call what draws on it.
    """

    def __init__(self, left: int, where: str) -> None:
        self._left, self.where = left, where

    def charge(self, cost: int) -> None:
        """Draw on it; EpisodeError when it is used up."""
        self._left -= cost
        if self._left < 0:
            expected, mend = "values that fit into the memory limit", "Pass a larger max_bytes."
            raise EpisodeError(self.where, expected, "more", mend, code="E253")

    def refuse(self, expected: str, got: str, code: str) -> EpisodeError:
        """The error that says what is wrong there."""
        return refuse(self.where, expected, got, code)


class Machine:
    """The stack machine: opcodes to marks, lists, dicts and descriptions of arrays."""

    def __init__(self, stream: bytearray, budget: Budget) -> None:
        self._stream, self._view, self._at = stream, memoryview(stream), 0
        self.charge, self.refuse = budget.charge, budget.refuse
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the stream leaves on the stack."""
        for _ in range(MAX_OPERATIONS):
            code = self._bytes(1)[0]
            if code == _STOP:
                return self._result()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.refuse("an operation of plain data", f"opcode 0x{code:02x}", "E254")
            self.charge(_OPERATION)
            operation(self)
        raise self.refuse(f"at most {MAX_OPERATIONS} operations", "more", "E252")

    def _result(self) -> Any:
        if self._at != len(self._stream) or self._outer or len(self._stack) != 1:
            raise self.refuse("one value and the end of the stream", "more or less", "E269")
        return self._stack[0]

    # What follows an opcode.

    def _bytes(self, count: int) -> memoryview:
        block = self._view[self._at : self._at + count]
        if len(block) != count:
            raise self.refuse(f"{count} more bytes of pickle", str(len(block)), "E251")
        self._at += count
        return block

    def read_number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _line(self, longest: int) -> memoryview:
        end = self._stream.find(b"\n", self._at, self._at + longest + 1)
        if end < 0:
            raise self.refuse(f"a line of at most {longest} bytes", "none", "E261")
        return self._bytes(end + 1 - self._at)[:-1]

    def _parsed(self, parse: Callable[[str], Any], form: re.Pattern[bytes]) -> Any:
        line = bytes(self._line(_MAX_LINE))
        if not form.fullmatch(line):
            raise self.refuse("a number", repr(line[:20])[1:], "E261")
        return parse(line.decode("ascii"))

    def _decoded(self, raw: memoryview, decode: _Decode) -> str:
        # One wide character makes all of a text four bytes wide.
        self.charge(4 * len(raw))
        try:
            text, _ = decode(raw, "strict")
        except UnicodeDecodeError:
            raise self.refuse("text", "bytes that are none", "E262") from None
        self.charge(min(0, sys.getsizeof(text) - 4 * len(raw)))
        return text

    # The stack.

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise self.refuse("a value on the stack", "none", "E258")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._outer:
            raise self.refuse("a mark on the stack", "none", "E258")
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _top(self, kind: type) -> Any:
        value = self._stack[-1] if self._stack else None
        if type(value) is not kind:
            raise self.refuse(f"a {kind.__name__} to add to", type(value).__name__, "E258")
        return value

    def mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def tuple_of(self, count: int) -> None:
        self.push(tuple(reversed([self._pop() for _ in range(count)])))

    def tuple_to_mark(self) -> None:
        values = tuple(self._pop_to_mark())
        self.push(values)

    def list_to_mark(self) -> None:
        values = self._pop_to_mark()
        self.push(values)

    def dict_to_mark(self) -> None:
        values = self._pop_to_mark()
        self.push({})
        self._add(values)

    def append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self) -> None:
        values = self._pop_to_mark()
        self._top(list).extend(values)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._add([key, value])

    def set_items(self) -> None:
        self._add(self._pop_to_mark())

    def _add(self, values: list[Any]) -> None:
        target: dict[str, Any] = self._top(dict)
        if len(values) % 2 or any(type(key) is not str for key in values[::2]):
            raise self.refuse("texts as the keys of a dict", "something else", "E259")
        self.charge(_ITEM * len(values))
        target.update(zip(values[::2], values[1::2], strict=True))

    def remember(self, place: int | None = None) -> None:
        self.charge(_MEMO)
        value = self._pop()
        self.push(value)
        self._memo[len(self._memo) if place is None else place] = value

    def recall(self, place: int) -> None:
        if place not in self._memo:
            raise self.refuse("a place in the memo that was filled", str(place), "E260")
        self.push(self._memo[place])

    # Texts, bytes and numbers.

    def text(self, form: str) -> None:
        self.push(self._decoded(self._bytes(self.read_number(form)), _utf8))

    def text_line(self) -> None:
        line = self._line(len(self._stream))
        self.push(self._decoded(line, codecs.raw_unicode_escape_decode))

    def raw(self, form: str) -> None:
        self.charge(_BLOCK)
        self.push(self._bytes(self.read_number(form)))

    def number(self, form: str) -> None:
        self.push(self.read_number(form))

    def long(self) -> None:
        length = self.read_number("<B")
        if length > _MAX_INT_BYTES:
            raise self.refuse(f"a number of {_MAX_INT_BYTES} bytes", str(length), "E261")
        self.push(int.from_bytes(self._bytes(length), "little", signed=True))

    def int_line(self) -> None:
        self.push(self._parsed(_int_or_bool, _INT))

    def float_line(self) -> None:
        self.push(self._parsed(float, _FLOAT))

    def put_line(self) -> None:
        self.remember(self._parsed(int, _PLACE))

    def get_line(self) -> None:
        self.recall(self._parsed(int, _PLACE))

    def skip(self, form: str) -> None:
        self.read_number(form)

    # Names, calls and states.

    def global_lines(self) -> None:
        self._name(*(str(self._line(_MAX_LINE), "latin1") for _ in range(2)))

    def global_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        known = _ALLOWED.get((module, name)) if type(module) is type(name) is str else None
        if known is None:
            spelt = (part[:60] if type(part) is str else "?" for part in (module, name))
            got = f"{'.'.join(spelt)!r}, which is never imported"
            raise self.refuse("a name that NumPy's arrays need", got, "E255")
        self.push(Mark(known))

    def call(self) -> None:
        given, called = self._pop(), self._pop()
        values = given if type(given) is tuple else (None,) * 9
        match called.name if type(called) is Mark else "", values:
            case "_reconstruct", (Mark(name="ndarray"), (0,), str() | memoryview()):
                self.push(Array())
            case "_frombuffer", (memoryview() as content, Dtype() as dtype, shape, "C" | "F" as o):
                self.push(Array(shape, dtype, o == "F", content))
            case "scalar", (Dtype() as dtype, memoryview() as content):
                self.push(Array((), dtype, False, content, True))
            case "dtype", (str() as code, 0, 0 | 1) if _DTYPE.fullmatch(code):
                self.push(Dtype(code))
            case "encode", (str() as text, "latin1" | "latin-1"):
                self._encode(text)
            case "bytes", ():
                self.push(memoryview(b""))
            case "OrderedDict", ():
                self.push({})
            case _:
                raise self.refuse("a call that builds an array", "another", "E256")

    def _encode(self, text: str) -> None:
        self.charge(len(text))
        try:
            self.push(memoryview(text.encode("latin1")))
        except UnicodeEncodeError:
            raise self.refuse("bytes spelt as latin1", "wider characters", "E262") from None

    def build(self) -> None:
        state = self._pop()
        match self._stack[-1] if self._stack else None, state:
            case Dtype(order="") as dtype, (
                3, "<" | ">" | "|" | "=" as order, None, None, None, int(), int(), int()
            ):  # fmt: skip
                dtype.order = order
            case Array(shape=None) as array, (1, shape, Dtype() as dtype, fortran, content):
                array.shape, array.dtype, array.content = shape, dtype, content
                array.fortran = bool(type(fortran) is not list and fortran)
            case _:
                raise self.refuse("the state of an array or a dtype", "another", "E257")


def _int_or_bool(text: str) -> int | bool:
    # Protocol 0 has no opcode for truth.
    return {"00": False, "01": True}.get(text, int(text.removesuffix("L")))


_INT = re.compile(rb"-?\d{1,40}L?")
_FLOAT = re.compile(rb"-?(\d{1,40}(\.\d{0,40})?([eE][+-]?\d{1,4})?|inf|nan)")
_PLACE = re.compile(rb"\d{1,9}")
_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    code[0]: operation
    for code, operation in {
        b"(": Machine.mark,
        b"N": lambda machine: machine.push(None),
        b"\x88": lambda machine: machine.push(True),
        b"\x89": lambda machine: machine.push(False),
        b"I": Machine.int_line,
        b"L": Machine.int_line,
        b"F": Machine.float_line,
        b"\x8a": Machine.long,
        b"J": lambda machine: machine.number("<i"),
        b"K": lambda machine: machine.number("<B"),
        b"M": lambda machine: machine.number("<H"),
        b"G": lambda machine: machine.number(">d"),
        b"V": Machine.text_line,
        b"X": lambda machine: machine.text("<I"),
        b"\x8c": lambda machine: machine.text("<B"),
        b"\x8d": lambda machine: machine.text("<Q"),
        b"B": lambda machine: machine.raw("<I"),
        b"C": lambda machine: machine.raw("<B"),
        b"\x8e": lambda machine: machine.raw("<Q"),
        b"\x96": lambda machine: machine.raw("<Q"),
        b"]": lambda machine: machine.push([]),
        b"l": Machine.list_to_mark,
        b"a": Machine.append,
        b"e": Machine.appends,
        b"}": lambda machine: machine.push({}),
        b"d": Machine.dict_to_mark,
        b"s": Machine.set_item,
        b"u": Machine.set_items,
        b")": lambda machine: machine.push(()),
        b"t": Machine.tuple_to_mark,
        b"\x85": lambda machine: machine.tuple_of(1),
        b"\x86": lambda machine: machine.tuple_of(2),
        b"\x87": lambda machine: machine.tuple_of(3),
        b"g": Machine.get_line,
        b"h": lambda machine: machine.recall(machine.read_number("<B")),
        b"j": lambda machine: machine.recall(machine.read_number("<I")),
        b"p": Machine.put_line,
        b"q": lambda machine: machine.remember(machine.read_number("<B")),
        b"r": lambda machine: machine.remember(machine.read_number("<I")),
        b"\x94": Machine.remember,
        b"\x80": lambda machine: machine.skip("<B"),
        b"\x95": lambda machine: machine.skip("<Q"),
        b"c": Machine.global_lines,
        b"\x93": Machine.global_on_stack,
        b"R": Machine.call,
        b"b": Machine.build,
    }.items()
}

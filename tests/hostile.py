"""Files made to harm a reader, each with the code that it must be refused with."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

META = {
    "task": "lift", "episode_id": "x", "success": True, "num_steps": 2, "version": 2,
    "instruction": "lift", "ragged_fields": ["points"],
}  # fmt: skip
META1 = {"task": "lift", "episode_id": "x", "success": True, "num_steps": 3, "version": 1}


@dataclass(frozen=True)
class Case:
    """A file, and what reading it must give.

    Attributes:
        content: of the file; ``None`` for what lies there already.
        old: whether it is meant for the reader of version 1.
        limits: constants (``module.NAME``) made small for this file, to be quick.
        fields: what to ask the reader for.
        act: what to do instead of reading the file; gets the reader's modules.
    """

    name: str
    code: str
    content: bytes | None = b""
    old: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    max_bytes: int = 8 << 20
    fields: tuple[str, ...] | None = None
    act: Callable[[Any], object] | None = None


# A zip file of which every byte can be a lie.


@dataclass
class Entry:
    """One member; ``local`` and ``central`` replace parts of its two headers."""

    name: bytes
    content: bytes
    packed: bytes | None = None
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)
    local_name: bytes | None = None
    local_extra: bytes = b""
    extra: bytes = b""
    comment: bytes = b""
    before: bytes = b""


def zip_bytes(entries: list[Entry], tail: bytes = b"", **end: int) -> bytes:
    """The file; ``end`` replaces parts of the last record."""
    body, directory = b"", b""
    for entry in entries:
        body += entry.before
        packed = entry.content if entry.packed is None else entry.packed
        said = {
            "version": 20, "flags": 0, "method": 0 if entry.packed is None else 8, "time": 0,
            "date": 33, "crc": zlib.crc32(entry.content), "packed": len(packed),
            "size": len(entry.content), "kind": 0o100644 << 16, "disk": 0, "offset": len(body),
        }  # fmt: skip
        own, listed = {**said, **entry.local}, {**said, **entry.central}
        keys = ("version", "flags", "method", "time", "date", "crc", "packed", "size")
        name = entry.name if entry.local_name is None else entry.local_name
        lengths = (len(name), own.get("extra", len(entry.local_extra)))
        body += struct.pack("<4s5H3I2H", b"PK\x03\x04", *(own[k] for k in keys), *lengths)
        body += name + entry.local_extra + packed
        extra = listed.get("extra", len(entry.extra))
        lengths3 = (len(entry.name), extra, len(entry.comment))
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 0x314, *(listed[k] for k in keys), *lengths3,
            listed["disk"], 0, listed["kind"], listed["offset"],
        )  # fmt: skip
        directory += entry.name + entry.extra + entry.comment
    last = {
        "disk": 0, "first": 0, "here": len(entries), "count": len(entries),
        "size": len(directory), "start": len(body), "comment": 0, **end,
    }  # fmt: skip
    return body + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", *last.values()) + tail


def deflate(content: bytes, finish: int = zlib.Z_FINISH) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(finish)


# Arrays.


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode("latin1")


def array(descr: str, shape: str, content: bytes = b"", order: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n") + content


def text(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def step(number: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"instruction": "lift", "task": "lift", "success": number > 0}
    for arm in "ab":
        made[f"rgb_{arm}"] = np.full((2, 2, 3), number, np.uint8)
        made[f"q_{arm}"] = made[f"action_{arm}"] = np.full(2, number, np.float32)
        made[f"grip_{arm}"] = np.float32(0.5)
    return made


def columns() -> dict[str, np.ndarray]:
    """The members of a sound file of version 2."""
    rows = [step(0), step(1)]
    names = rows[0].keys() - {"task", "instruction"}
    points = {"points": np.zeros((3, 4), "f4"), "points-offsets": np.array([0, 1, 3])}
    made = {n: np.stack([row[n] for row in rows]) for n in sorted(names)}
    return {"meta": text(META), **made, **points}


def sound(**members: bytes) -> bytes:
    """A sound file but for the members that are given."""
    made = {**{name: npy(value) for name, value in columns().items()}, **members}
    return zip_bytes([Entry(f"{name}.npy".encode(), content) for name, content in made.items()])


def with_meta(meta: Any) -> bytes:
    raw = np.frombuffer(meta, np.uint8) if isinstance(meta, bytes) else text(meta)
    return sound(meta=npy(raw))


def one(**changes: Any) -> bytes:
    """A sound file but for its last member, of which anything can be changed."""
    made = {name: npy(value) for name, value in columns().items()}
    entry = Entry(b"q_a.npy", changes.pop("content", made.pop("q_a")))
    made.pop("q_a", None)
    for name, value in changes.items():
        setattr(entry, name, value)
    return zip_bytes([*(Entry(f"{n}.npy".encode(), c) for n, c in made.items()), entry])


# Files of version 1.


def pickled(value: Any, protocol: int = 4) -> bytes:
    """What an object array of one ``value``, or of a list's values, is saved as."""
    values = np.empty(len(value) if isinstance(value, list) else (), object)
    values[...] = value
    shape = f"({len(value)},)" if isinstance(value, list) else "()"
    return array("'|O'", shape, pickle.dumps(values, protocol))


def old(**members: bytes) -> bytes:
    """A sound file of version 1 but for the members that are given."""
    steps = pickled([step(number) for number in range(3)])
    made = {"meta": pickled(META1), "steps": steps, **members}
    return zip_bytes([Entry(f"{n}.npy".encode(), c) for n, c in made.items() if c])


def old_steps(*changes: dict[str, Any], **meta: Any) -> bytes:
    rows = [{**step(number), **change} for number, change in enumerate(changes)]
    return old(steps=pickled(rows), meta=pickled({**META1, **meta}))


_BEGIN = (
    b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
    b"K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00|NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]("
)
_F4 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def stream(body: bytes, end: bytes = b"etb.") -> bytes:
    """Steps of version 1: an array of one object, which ``body`` leaves on the stack."""
    return old(steps=array("'|O'", "(1,)", _BEGIN + body + end))


def typed(dtype: bytes, shape: bytes = b"K\x01\x85", content: bytes = b"C\x04\0\0\0\0") -> bytes:
    """The operations of an array of another dtype, shape or content."""
    return b"cnumpy._core.numeric\n_frombuffer\n(" + content + dtype + shape + b"X\x01\0\0\0CtR"


def dtype_of(code: bytes, order: bytes = b"<") -> bytes:
    spelt = b"X" + struct.pack("<I", len(code)) + code
    return _F4.replace(b"X\x02\x00\x00\x00f4", spelt).replace(
        b"X\x01\x00\x00\x00<", b"X\x01\x00\x00\x00" + order
    )


class Gadget:
    """Pickles as a call."""

    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> Any:
        return self.called, self.arguments


def gadgets() -> Iterator[Case]:
    """Calls of the system at every protocol, in both kinds of file."""
    calls = {
        "os.system": Gadget(os.system, "touch executed"),
        "exec": Gadget(exec, "open('executed', 'w')"),
        "eval": Gadget(eval, "open('executed', 'w')"),
        "getattr": Gadget(getattr, (), "__class__"),
    }
    for protocol in range(6):
        for name, call in calls.items():
            evil = pickled([call], protocol)
            yield Case(f"{name}, protocol {protocol}", "E255", old(steps=evil), old=True)
    for name, call in calls.items():
        yield Case(f"{name} in the metadata", "E255", old(meta=pickled(call)), old=True)
        yield Case(f"{name} in version 2", "E223", sound(q_a=pickled([call])))
        yield Case(f"{name} as metadata of version 2", "E223", sound(meta=pickled([call])))
    runstring = b"cnumpy.testing._private.utils\nrunstring\n(X\x07\0\0\0open(x)}tR"
    yield Case("numpy.testing runstring", "E255", stream(runstring), old=True)
    for module in (b"numpy.load", b"subprocess.Popen", b"builtins.__import__", b"numpy.fromfile"):
        path, _, name = module.rpartition(b".")
        yield Case(f"global {module!r}", "E255", stream(b"c%s\n%s\n)R" % (path, name)), old=True)


OPCODES = {
    "INST": b"(iposix\nsystem\n", "OBJ": b"(cnumpy\ndtype\no", "NEWOBJ": b"cnumpy\ndtype\n)\x81",
    "NEWOBJ_EX": b"cnumpy\ndtype\n)}\x92", "EXT1": b"\x82\x01", "PERSID": b"Pid\n", "POP": b"N0",
    "BINPERSID": b"NQ", "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"C\x00\x98", "DUP": b"N2",
    "LONG4": b"\x8b\xff\xff\xff\x7f", "STRING": b"S'x'\n", "BINSTRING": b"T\x01\0\0\0x",
    "FROZENSET": b"(\x91", "EMPTY_SET": b"\x8f",
}  # fmt: skip


def bomb(levels: int, width: int = 2) -> bytes:
    """Lists of the same list, ``width`` to the power of ``levels`` values."""
    parts = [b"]q\x00"]
    for level in range(levels):
        parts.append(b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * (width - 1))
        parts.append(b"eq" + bytes([level + 1]))
    return b"0".join([b""]) + b"".join(parts)


def leave_one(body: bytes) -> bytes:
    """Put all that ``body`` leaves into one tuple."""
    return b"(" + body + b"t"


def streams() -> Iterator[Case]:
    """Pickles that break one rule each."""
    values = {"pickles.MAX_VALUES": 3000}
    yield from (Case(n, "E254", stream(b), old=True) for n, b in OPCODES.items())
    rows: list[tuple[str, str, bytes]] = [
        ("cut short in a text", "E251", b"X\xff\xff\xff\x7f"),
        ("cut short in bytes", "E251", b"\x8e" + b"\xff" * 8),
        ("bytearray of 2**63", "E251", b"\x96" + b"\xff" * 7 + b"\x7f"),
        ("name of a class as a list", "E255", b"]]\x93"),
        ("attribute of an attribute", "E255", b"X\x05\0\0\0numpyX\x0c\0\0\0ndarray.dump\x93"),
        ("the call of a list", "E256", b"])R"),
        ("the call of a text", "E256", b"X\x02\0\0\0os)R"),
        ("a dtype of a dtype", "E256", b"cnumpy\ndtype\n" + _F4 + b"K\x00K\x01\x87R"),
        ("a structured dtype", "E256", b"cnumpy\ndtype\n]K\x00K\x01\x87R"),
        ("an aligned dtype", "E256", b"cnumpy\ndtype\nX\x02\0\0\0f4K\x01K\x01\x87R"),
        ("a dtype that is long", "E256", b"cnumpy\ndtype\nX\x09\0\0\0U99999999K\x00K\x01\x87R"),
        ("encode with a codec", "E256", b"c_codecs\nencode\nX\x01\0\0\0xX\x03\0\0\0hex\x86R"),
        ("an ndarray by its class", "E256", b"cnumpy\nndarray\nK\x05\x85\x85R"),
        ("OrderedDict of a dict", "E256", b"ccollections\nOrderedDict\n}\x85R"),
        ("state of a dict", "E257", b"}}b"),
        ("state of a function", "E257", b"cnumpy\ndtype\n}b"),
        ("dtype with fields", "E257", _F4.replace(b"<NNN", b"<N}N")),
        ("dtype with metadata", "E257", _F4.replace(b"K\x00tb", b"K\x00}tb")),
        ("dtype with two states", "E257", _F4 + b"(K\x03X\x01\0\0\0<NNNK\x00K\x00K\x00tb"),
        ("state of nothing", "E257", b"(}b"),
        ("append to nothing", "E258", b"(Na"),
        ("append to a text", "E258", b"X\x01\0\0\0xNa"),
        ("set an item of a list", "E258", b"]NNs"),
        ("pop of an empty stack", "E258", b"(\x85"),
        ("a mark too few", "E258", b"tttt"),
        ("tuple as a key", "E259", b"}N\x85Ns"),
        ("number as a key", "E259", b"}K\x01Ns"),
        ("key without a value", "E259", b"}(X\x01\0\0\0xu"),
        ("array as a key", "E259", b"}" + typed(_F4) + b"Ns"),
        ("memo that is empty", "E260", b"h\xff"),
        ("memo of 2**32", "E260", b"j\xff\xff\xff\xff"),
        ("memo below zero", "E261", b"g-1\n"),
        ("int of 5000 digits", "E261", b"I" + b"9" * 5000 + b"\n"),
        ("int that is no int", "E261", b"I0x10\n"),
        ("float that is no float", "E261", b"F1_0\n"),
        ("long of 255 bytes", "E261", b"\x8a\xff" + b"\xff" * 255),
        ("text with half a character", "E262", b"X\x01\0\0\0\xc3"),
        ("text with a lone surrogate", "E262", b"X\x03\0\0\0\xed\xa0\x80"),
        ("escape that is none", "E262", b"V\\u12\n"),
        ("bytes wider than latin1", "E262", b"c_codecs\nencode\nV\\u2020\nX\x06\0\0\0latin1\x86R"),
        ("lists in lists", "E263", b"(" * 40 + b"l" * 40),
        ("200,000 lists in lists", "E263", b"(" * 9_000 + b"l" * 9_000),
        ("tuples in tuples", "E263", b")" + b"\x85" * 9_000),
        ("a list in itself", "E263", b"]q\x00h\x00a"),
        ("a dict in itself", "E263", b"}q\x00X\x01\0\0\0xh\x00s"),
        ("array of negative shape", "E265", typed(_F4, b"J\xff\xff\xff\xff\x85")),
        ("array of true shape", "E265", typed(_F4, b"\x88\x85")),
        ("array of 9 axes", "E265", typed(_F4, b"(" + b"K\x01" * 9 + b"t")),
        ("array of overflowing shape", "E267", typed(_F4, b"J\xff\xff\xff\x7f" * 2 + b"\x86")),
        ("array without its state", "E265", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\n"
         b"ndarray\nK\x00\x85C\x01btR"),
        ("array of dates", "E266", typed(dtype_of(b"M8"), content=b"C\x08" + bytes(8))),
        ("array of void", "E266", typed(dtype_of(b"V4"))),
        ("array of objects in a step", "E266", typed(dtype_of(b"O8", b"|"))),
        ("array of no dtype", "E266", typed(dtype_of(b"f3"))),
        ("array longer than its bytes", "E267", typed(_F4, b"K\x02\x85")),
        ("array of a list", "E267", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
         b"K\x00\x85C\x01btR(K\x01K\x01\x85" + _F4 + b"\x89]tb"),
        ("array of false booleans", "E226",
         typed(dtype_of(b"b1"), b"K\x04\x85", b"C\x04\2\3\4\5")),
        ("array of false characters", "E226", typed(dtype_of(b"U1"), content=b"C\x04\0\0\x11\0")),
        ("a bare class", "E268", b"cnumpy\nndarray\n"),
        ("a bare dtype", "E268", _F4),
        ("two values", "E267", b"NN"),
    ]  # fmt: skip
    yield from (Case(name, code, stream(body), old=True) for name, code, body in rows)
    yield Case("list bomb", "E264", stream(leave_one(bomb(28))), True, values)
    yield Case("wide list bomb", "E264", stream(leave_one(bomb(9, 90))), True, values)
    hashed = b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"Ns"
    yield Case("tuple hash bomb", "E258", stream(hashed), True)
    keyed = b"}" + b")" + b"q\x00h\x00\x86"[:2] + b"h\x00\x86q\x00" * 60 + b"Ns"
    yield Case("tuple hash bomb as a key", "E259", stream(keyed), True)
    many = {"pickle_machine.MAX_OPERATIONS": 2000}
    yield Case("too many operations", "E252", stream(b"N" * 3000), True, many)
    for name, body in {"dicts": b"}", "memo": b"N\x94", "blobs": b"C\x00", "marks": b"("}.items():
        huge = stream(leave_one(body * 20_000))
        yield Case(f"memory bomb of {name}", "E253", huge, True, max_bytes=1 << 20)
    yield Case("memory bomb of a million dicts", "E253", stream(leave_one(b"}" * 1_000_000)), True)
    wide = b"X" + struct.pack("<I", 300_004) + b"x" * 300_000 + "\U0001f600".encode()
    yield Case("text that widens", "E253", stream(wide), True, max_bytes=1 << 20)
    again = leave_one(b"X" + struct.pack("<I", 999) + b"x" * 999 + b"q\0" + b"h\0" * 3000)
    yield Case("one text a thousand times", "E253", stream(again), True, max_bytes=1 << 21)
    yield Case("a tail behind the end", "E269", stream(b"N", b"etb.cos\nsystem\n"), True)
    yield Case("two results", "E269", stream(b"N", b"etb)."), True)
    yield Case("a mark that is left", "E269", stream(b"N", b"etb(N."), True)
    yield Case("nothing left", "E258", old(steps=array("'|O'", "(1,)", b"\x80\x04\x85.")), True)
    yield Case("no pickle at all", "E254", old(steps=array("'|O'", "(1,)", b"\xff" * 9)), True)
    yield Case("an empty pickle", "E251", old(steps=array("'|O'", "(1,)")), True)
    yield Case("a list, not an array", "E265", old(steps=array("'|O'", "(1,)", b"].")), True)
    lie = array("'|O'", "(7,)", pickle.dumps(np.array([{}], object), 4))
    yield Case("another shape than the header's", "E265", old(steps=lie), True)
    gone = array("'|O'", "(999999999999, 9)", b"].")
    yield Case("an object array beyond all bounds", "E228", old(steps=gone), True)

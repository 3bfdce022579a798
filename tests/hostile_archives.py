"""Archives, arrays and metadata made to harm a reader; see :mod:`hostile`."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hostile import (
    META,
    Case,
    Entry,
    array,
    columns,
    deflate,
    header,
    npy,
    one,
    pickled,
    sound,
    text,
    with_meta,
    zip_bytes,
)

F4 = npy(np.zeros((2, 2), "f4"))
ZIP64_END = (
    b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, 1, 1, 46, 0)
    + b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 1)
)  # fmt: skip


def archives() -> Iterator[Case]:
    """Containers that break one rule each."""
    good = sound()
    meta = Entry(b"meta.npy", npy(text(META)))
    at = good.index(b"PK\x01\x02")
    names = {
        "traversal": b"../q.npy", "absolute": b"/etc/q.npy", "drive": b"c:q.npy",
        "backslash": b"..\\q.npy", "NUL": b"q\0.npy", "newline": b"q\n.npy", "empty": b"",
        "no suffix": b"q", "long": b"q" * 300 + b".npy", "UTF-8": "\u202eq.npy".encode(),
        "folder": b"q.npy/", "hidden": b".q.npy", "upper": b"Q.npy",
    }  # fmt: skip
    for name, spelt in names.items():
        yield Case(f"member name: {name}", "E205", one(name=spelt))
    rows: list[tuple[str, str, bytes]] = [
        ("nothing", "E201", b""),
        ("a pickle", "E201", b"\x80\x04cos\nsystem\n(S'x'\ntR." * 9),
        ("trailing bytes", "E201", good + b"\0"),
        ("another file behind", "E203", good + good),
        ("a comment", "E201", zip_bytes([meta], b"PK", comment=2)),
        ("a comment that is an archive", "E203",
         zip_bytes([meta], zip_bytes([]), comment=22)),
        ("too many members announced", "E202", zip_bytes([meta], here=65535, count=65535)),
        ("too many members", "E202",
         zip_bytes([Entry(b"m%d.npy" % n, b"") for n in range(130)])),
        ("more members than announced", "E202",
         zip_bytes([Entry(b"m%d.npy" % n, b"") for n in range(130)], here=2, count=2)),
        ("a huge directory", "E202", zip_bytes([meta], size=1 << 31)),
        ("parts on other disks", "E203", zip_bytes([meta], disk=1)),
        ("zip64 directory", "E202", zip_bytes([meta], count=65535, here=65535, size=2**32 - 1)),
        ("zip64 end before the end", "E203", zip_bytes([meta])[:-22] + ZIP64_END
         + zip_bytes([meta])[-22:]),
        ("prepended bytes", "E203", b"#!/bin/sh\n" + good),
        ("a directory entry that is none", "E204", good[:at] + b"XX" + good[at + 2 :]),
        ("half a directory entry", "E204", zip_bytes([meta], size=51, start=len(zip_bytes([meta]))
         - 22 - 51)),
        ("a directory entry that goes on behind its end", "E204", one(central={"extra": 60_000})),
        ("a member twice", "E206", zip_bytes([meta, meta])),
        ("a member twice, other content", "E206",
         zip_bytes([meta, Entry(b"q.npy", b"1"), Entry(b"q.npy", b"2")])),
        ("encrypted", "E207", one(local={"flags": 1}, central={"flags": 1})),
        ("strongly encrypted", "E207", one(central={"flags": 0x40})),
        ("encrypted directory", "E207", one(central={"flags": 0x2000})),
        ("bzip2", "E208", one(local={"method": 12}, central={"method": 12})),
        ("deflate64", "E208", one(central={"method": 9})),
        ("more than the limit", "E209", one(content=F4 + bytes(9 << 20))),
        ("zip64 size in the directory", "E210", one(central={"size": 2**32 - 1})),
        ("a ratio beyond deflate", "E210", one(packed=deflate(F4), central={"size": 1 << 24})),
        ("stored in two sizes", "E210", one(central={"size": 9})),
        ("two members in one place", "E211", one(central={"offset": 0})),
        ("a link", "E219", one(central={"kind": 0o120777 << 16})),
        ("a device", "E219", one(central={"kind": 0o060666 << 16})),
        ("a FIFO", "E219", one(central={"kind": 0o010666 << 16})),
        ("a folder by its mode", "E219", one(central={"kind": 0o040755 << 16})),
        ("a folder by its DOS flag", "E219", one(central={"kind": 0x10})),
        ("bytes between members", "E220", one(before=bytes(99))),
        ("an offset beyond the file", "E220", one(central={"offset": 2**32 - 1})),
        ("a member before the archive", "E220",
         zip_bytes([Entry(b"meta.npy", npy(text(META)), before=b"MZ")])),
        ("a member's comment", "E229", one(comment=b"../../x")),
        ("a comment that is a directory", "E229", one(comment=b"PK\x01\x02" + bytes(42))),
        ("a member that reaches too far", "E230",
         one(packed=deflate(F4), central={"packed": 5000})),
        ("no header of its own", "E212", with_bytes(one(), b"PK\x03\x04", b"PK\x03\x05")),
        ("another name of its own", "E212", one(local_name=b"q_b.npy")),
        ("encrypted by its own header", "E212", one(local={"flags": 1})),
        ("another method of its own", "E212", one(local={"method": 8})),
        ("another size of its own", "E218", one(local={"size": 9})),
        ("another checksum of its own", "E218", one(local={"crc": 9})),
        ("zip64 sizes that lie", "E218",
         one(local={"size": 2**32 - 1, "packed": 2**32 - 1},
             local_extra=struct.pack("<2H2Q", 1, 16, 2**63, 2**63))),
        ("damaged deflate", "E213", one(packed=b"\xff" * 40)),
        ("deflate without an end", "E214",
         one(packed=deflate(F4, 2)[:-1])),
        ("deflate of less", "E214", one(content=F4, packed=deflate(F4[:-9]))),
        ("deflate that never ends", "E215", one(content=F4, packed=deflate(F4) + b"PK" * 9)),
        ("deflate of more", "E215", one(content=F4, packed=deflate(F4 + bytes(99)))),
        ("a bomb behind a small size", "E215", one(packed=deflate(F4 + bytes(9 << 20)))),
        ("a wrong checksum", "E216",
         one(local={"crc": 9}, central={"crc": 9})),
        ("an archive in an archive", "E221", one(content=one())),
    ]  # fmt: skip
    yield from (Case(name, code, content) for name, code, content in rows)
    quine = one(content=bytes(1 << 23), packed=deflate(bytes(1 << 23)))
    yield Case("a bomb", "E209", quine, max_bytes=1 << 20)
    overlapping = [Entry(b"b%d.npy" % n, b"") for n in range(40)]
    for entry in overlapping[1:]:
        entry.central = {"offset": 0, "size": 900_000, "packed": 1000, "method": 8}
    yield Case("a bomb of overlaps", "E211", zip_bytes(overlapping), max_bytes=64 << 20)
    many = [Entry(b"b%d.npy" % n, bytes(1 << 20), deflate(bytes(1 << 20))) for n in range(9)]
    yield Case("a bomb in many members", "E209", zip_bytes(many))


def with_bytes(content: bytes, old: bytes, new: bytes) -> bytes:
    """The last place where ``old`` stands replaced by ``new``."""
    before, _, after = content.rpartition(old)
    return before + new + after


def arrays() -> Iterator[Case]:
    """Members that are no sound array."""
    evil = "__import__('os').system('touch executed')"
    rows: list[tuple[str, str, bytes]] = [
        ("nothing", "E221", b""),
        ("another magic", "E221", b"\x93NUMPZ\x01\x00" + bytes(9)),
        ("version 4", "E221", header("{}", b"\x04\x00")),
        ("a header beyond the member", "E227", b"\x93NUMPY\x01\x00\xff\x00" + bytes(9)),
        ("a header of 64 kB", "E227", header(" " * 60_000)),
        ("a header of 4 GiB", "E227", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)),
        ("a header that calls", "E222", header(evil)),
        ("a dtype that calls", "E222", array(evil, "(2,)")),
        ("a header with nested brackets", "E222", header("(" * 4000)),
        ("negative shape", "E222", array("'<f4'", "(2, -1)")),
        ("shape of 13 digits", "E222", array("'<f4'", "(9999999999999,)")),
        ("shape of a product", "E222", array("'<f4'", "(2 ** 99,)")),
        ("structured dtype", "E222", array("[('a', '<f4')]", "(2,)", bytes(8))),
        ("structured dtype with objects", "E222", array("[('a', '|O')]", "(2,)", bytes(16))),
        ("aligned dtype", "E222", array("{'names': ['a'], 'aligned': True}", "(2,)")),
        ("sub-array dtype", "E222", array("('<f4', (2,))", "(2,)", bytes(16))),
        ("objects", "E223", array("'|O'", "(2,)", bytes(16))),
        ("objects of a size", "E223", array("'|O8'", "(2,)", bytes(16))),
        ("dates", "E224", array("'<M8'", "(2,)", bytes(16))),
        ("durations", "E224", array("'<m8'", "(2,)", bytes(16))),
        ("void", "E224", array("'|V4'", "(2,)", bytes(8))),
        ("floats of 10 bytes", "E224", array("'<f16'", "(2,)", bytes(32))),
        ("text of no width", "E224", array("'<U0'", "(2,)")),
        ("text of great width", "E225", array("'<U999999'", "(9,)")),
        ("fewer bytes", "E225", array("'<f4'", "(2, 2)", bytes(15))),
        ("more bytes", "E225", array("'<f4'", "(2, 2)", bytes(17))),
        ("a shape that overflows", "E228", array("'<f4'", "(4294967296, 4294967296)")),
        ("a shape that hides behind zero", "E228", array("'<f4'", "(999999999999, 99999, 0)")),
        ("9 axes", "E228", array("'<f4'", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", bytes(4))),
        ("booleans of 2", "E226", array("'|b1'", "(2,)", b"\x00\x02")),
        ("no code points", "E226", array("'<U1'", "(2,)", b"\0\0\x11\0" * 2)),
        ("surrogates", "E226", array("'<U1'", "(2,)", b"\0\xd8\0\0" * 2)),
    ]
    yield from (Case(f"array: {name}", code, sound(extra=member)) for name, code, member in rows)
    yield Case("objects in a field of any name", "E223", sound(extra=pickled([1, 2])))


def metadata() -> Iterator[Case]:
    """Metadata that is no metadata."""
    deep = "[" * 99_000 + "]" * 99_000
    rows: list[tuple[str, str, bytes]] = [
        ("of another dtype", "E231", sound(meta=npy(np.zeros(3, np.int8)))),
        ("of two axes", "E231", sound(meta=npy(np.zeros((1, 3), np.uint8)))),
        ("without", "E231", zip_bytes([Entry(b"q_a.npy", F4)])),
        ("in no bytes at all", "E231", zip_bytes([])),
        ("of 5 MB", "E125", sound(meta=npy(np.zeros(5 << 20, np.uint8)))),
        ("of no UTF-8", "E232", with_meta(b"\xff{}")),
        ("nested 99,000 times", "E232", with_meta(deep.encode())),
        ("with a number of 5000 digits", "E232", with_meta(b'{"x": ' + b"9" * 5000 + b"}")),
        ("that is a JSON list", "E233", with_meta([META])),
        ("nested 40 times", "E234", with_meta({**META, "x": eval("[" * 40 + "]" * 40)})),
        ("with NaN", "E121", with_meta({**META, "x": float("nan")})),
        ("with infinity", "E121", with_meta({**META, "x": float("inf")})),
        ("with a surrogate", "E121", with_meta({**META, "x": "\ud800"})),
        ("of version 1", "E126", with_meta({**META, "version": 1})),
        ("of a task with a path", "E123", with_meta({**META, "task": "../x"})),
        ("of an id with a path", "E123", with_meta({**META, "episode_id": "/etc/passwd"})),
        ("of a length that is a text", "E124", with_meta({**META, "num_steps": "2"})),
        ("of a huge length", "E124", with_meta({**META, "num_steps": 1 << 60})),
        ("of a length that one column has not", "E241", sound(q_a=npy(np.zeros((3, 2), "f4")))),
        ("of an instruction that is a list", "E104", with_meta({**META, "instruction": [1]})),
        ("of JSON fields that are a number", "E124", with_meta({**META, "json_fields": 3})),
        ("of JSON fields twice", "E127", with_meta({**META, "json_fields": ["q_a", "q_a"]})),
        ("of JSON fields that are its own", "E127", with_meta({**META, "json_fields": ["meta"]})),
        ("of JSON fields that are pictures", "E128", with_meta({**META, "json_fields": ["rgb_a"]})),
        ("without a success", "E122",
         with_meta({k: v for k, v in META.items() if k != "success"})),
    ]  # fmt: skip
    yield from (Case(f"metadata {name}", code, content) for name, code, content in rows)
    fewer = [Entry(f"{n}.npy".encode(), npy(v)) for n, v in columns().items() if n != "q_a"]
    yield Case("a column too few", "E102", zip_bytes(fewer))
    yield Case("a JSON field without JSON", "E243",
               sound(meta=npy(text({**META, "json_fields": ["note"]})),
                     note=npy(np.array(["{", "1"]))))  # fmt: skip
    yield Case("a field that is not there", "E242", sound(), fields=("depth_a",))


def ragged() -> Iterator[Case]:
    """Steps of different lengths whose offsets lie."""
    offsets = {
        "of floats": ("E116", np.array([0.0, 1, 3])), "too few": ("E116", np.array([0, 3])),
        "that begin behind": ("E117", np.array([1, 1, 3])),
        "that begin below zero": ("E117", np.array([-9, 1, 3])),
        "that fall": ("E118", np.array([0, 4, 3])),
        "that go on": ("E119", np.array([0, 1, 1 << 40])),
    }  # fmt: skip
    for name, (code, array_) in offsets.items():
        yield Case(f"offsets {name}", code, sound(**{"points-offsets": npy(array_)}))
    yield Case("rows that are one value", "E106", sound(points=npy(np.array(1.0))))
    listed = {"ragged_fields": ["points", "points"]}
    yield Case("a ragged field twice", "E114", with_meta({**META, **listed}))
    yield Case("a ragged field too few", "E115", with_meta({**META, "ragged_fields": []}))
    yield Case("a contract that is none", "E411", with_meta({**META, "contract": [1]}))


def systems() -> Iterator[Case]:
    """What the disk and memory may do while a sound file is read."""
    yield Case("a file that shrinks", "E217", act=lambda reader: reader.zipcontainer.read_directory(
        _Shrinking(sound()), "x", 1 << 24))  # fmt: skip
    for error in (OSError(5, "Input/output error"), MemoryError()):
        for kind, module, name in (("", "npz", "read_array"), ("old ", "version1", "read_pickle")):
            act = _failing(module, name, error)
            yield Case(f"{kind}{type(error).__name__}", "E217", old=bool(kind), act=act)


class _Shrinking(io.BytesIO):
    def read(self, count: int | None = -1) -> bytes:
        return super().read(count)[:-1]


def _failing(module: str, name: str, error: Exception) -> Callable[[Any], object]:
    def fail(*_: object) -> None:
        raise error

    def act(reader: Any) -> None:
        kept = getattr(getattr(reader, module), name)
        setattr(getattr(reader, module), name, fail)
        try:
            reader.read_sound(module == "version1")
        finally:
            setattr(getattr(reader, module), name, kept)

    return act

"""Mutations of sound files that keep what makes them look sound.

Plain bit flips die at the first checksum. These change one thing (a field of a header,
an opcode, a key of the metadata) and put lengths, places and checksums right again, so
that what was changed reaches the code behind.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile import META, META1, Entry, columns, deflate, npy, old, pickled, step, zip_bytes

from teamvla.data.codes import CODES
from teamvla.data.npz import Episode, read_episode
from teamvla.data.overview.survey import look
from teamvla.data.validation import quick, validate_file
from teamvla.data.version1 import read_version1
from teamvla.errors import SchemaError

_ODD = (0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 1 << 31, 2**32 - 1)
_LOCAL = ("version", "flags", "method", "time", "date", "crc", "packed", "size", "extra")
_CENTRAL = ("version", "flags", "method", "crc", "packed", "size", "kind", "offset", "disk")
_WIDE = {"crc", "packed", "size", "kind", "offset"}
_VALUES = (
    None, True, -1, 0, 2, 3, 1e999, 1 << 70, "", "x", "../x", "\ud800", "\0", [], [1], {},
    {"a": []}, "lift" * 999,
)  # fmt: skip
_WORDS = (
    b"'|O'", b"'<f4'", b"'<U4'", b"'|S0'", b"'|V9'", b"(", b")", b"(2,)", b"(0,)", b"(-1,)",
    b"True", b"False", b"None", b"9" * 20, b"{", b"}", b",", b" ", b"\0",
    b"'<M8[s]'", b"[('a','O')]",
)  # fmt: skip
_PARTS = (
    b"(", b")", b"]", b"}", b"N", b"a", b"e", b"u", b"s", b"t", b"l", b"d", b"\x85", b"\x86",
    b"\x87", b"\x94", b"h\x00", b"h\x05", b"K\x01", b"R", b"b", b"\x93", b"C\x04\0\0\0\0",
    b"\x8c\x01x",
    b".", b"cos\nsystem\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"I01\n", b"V\\ud800\n", b"0",
    b"2",
)  # fmt: skip


class Fuzzer:
    """Case ``number`` of ``seed``, always the same one."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._path, self._seed = folder / f"fuzz-{seed}.npz", seed
        self._new = {name: npy(value) for name, value in columns().items()}
        self._pickles = [
            {"meta": pickled(META1, p), "steps": pickled([step(n) for n in range(3)], p)}
            for p in range(6)
        ]
        self._ways: tuple[Callable[[random.Random], tuple[bytes, bool]], ...] = (
            self._zip_fields, self._arrays, self._deflated, self._metadata, self._opcodes,
            self._opcodes, self._values, self._splice,
        )  # fmt: skip

    def run(self, first: int, count: int) -> dict[str, int]:
        """How often each answer came; AssertionError for any that may not come."""
        answers: dict[str, int] = {}
        for number in range(first, first + count):
            answer = self.answer(number)
            answers[answer] = answers.get(answer, 0) + 1
        return answers

    def answer(self, number: int) -> str:
        """``episode`` or a code."""
        dice = random.Random(self._seed << 32 | number)
        content, is_old = dice.choice(self._ways)(dice)
        self._path.write_bytes(content)
        read: Callable[..., Episode] = read_version1 if is_old else read_episode
        try:
            episode = read(self._path, max_bytes=1 << 22)
        except SchemaError as error:
            return self._known(number, error)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {self._seed}: {error!r}") from error
        finally:
            self._look(number)
        lengths = {len(array) for array in episode.fields.values()}
        assert lengths == {episode.num_steps}, number
        return "episode"

    def _look(self, number: int) -> None:
        """What validates and what counts must survive it, too."""
        try:
            found = [*validate_file(self._path), *quick.look(self._path)[1]]
            look(self._path)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {self._seed}: {error!r}") from error
        assert {one.code for one in found} <= CODES.keys() - {"E440"}, (number, found)

    def _known(self, number: int, error: SchemaError) -> str:
        assert error.code in CODES, (number, error)
        return error.code

    def _entries(self, members: dict[str, bytes]) -> list[Entry]:
        return [Entry(f"{name}.npy".encode(), content) for name, content in members.items()]

    def _members(self, dice: random.Random) -> tuple[dict[str, bytes], bool]:
        is_old = dice.random() < 0.5
        return dict(dice.choice(self._pickles) if is_old else self._new), is_old

    def _zip_fields(self, dice: random.Random) -> tuple[bytes, bool]:
        members, is_old = self._members(dice)
        entries, end = self._entries(members), {}
        for _ in range(dice.randint(1, 3)):
            entry = dice.choice(entries)
            if dice.random() < 0.4:
                entry.packed = deflate(entry.content)
            key = dice.choice(_LOCAL + _CENTRAL)
            value = dice.choice(_ODD) if dice.random() < 0.5 else dice.getrandbits(12)
            value &= 0xFFFFFFFF if key in _WIDE else 0xFFFF
            both = dice.random() < 0.4
            if key in _LOCAL or both:
                entry.local[key] = value & (0xFFFFFFFF if key in _WIDE else 0xFFFF)
            if key in _CENTRAL or both:
                entry.central[key] = value
            if dice.random() < 0.1:
                entry.name = _mutated(dice, entry.name, _WORDS)
            if dice.random() < 0.1:
                entry.comment, entry.extra = dice.randbytes(3), dice.randbytes(4)
            if dice.random() < 0.1:
                entry.before = dice.randbytes(dice.randint(1, 99))
        if dice.random() < 0.2:
            key = dice.choice(("disk", "first", "here", "count", "size", "start", "comment"))
            end[key] = dice.getrandbits(9)
        return zip_bytes(entries, **end), is_old

    def _arrays(self, dice: random.Random) -> tuple[bytes, bool]:
        members, is_old = self._members(dice)
        name = dice.choice(list(members))
        content = members[name]
        length = struct.unpack("<H", content[8:10])[0]
        if dice.random() < 0.7:
            header = _mutated(dice, content[10 : 10 + length], _WORDS)
            size = struct.pack("<H", len(header))
            members[name] = content[:8] + size + header + content[10 + length :]
        else:
            members[name] = _mutated(dice, content, _WORDS)
        return zip_bytes(self._entries(members)), is_old

    def _deflated(self, dice: random.Random) -> tuple[bytes, bool]:
        members, is_old = self._members(dice)
        entries = self._entries(members)
        entry = dice.choice(entries)
        entry.packed = _mutated(dice, deflate(entry.content), (b"\0", b"\xff" * 4))
        try:  # the checksum and size of what it now inflates to
            inflated = zlib.decompressobj(-15).decompress(entry.packed, 1 << 20)
        except zlib.error:
            inflated = b""
        for said in (entry.local, entry.central):
            said.update(crc=zlib.crc32(inflated), size=len(inflated))
        return zip_bytes(entries), is_old

    def _metadata(self, dice: random.Random) -> tuple[bytes, bool]:
        meta: dict[Any, Any] = dict(META)
        for _ in range(dice.randint(1, 2)):
            keys = [*meta, "x", "contract", "json_fields", "ragged_fields", "version1"]
            meta[dice.choice(keys)] = dice.choice(_VALUES)
        if dice.random() < 0.2:
            meta.pop(dice.choice(list(meta)))
        raw = json.dumps(meta).encode()
        if dice.random() < 0.3:
            raw = _mutated(dice, raw, _WORDS)
        members = {**self._new, "meta": npy(np.frombuffer(raw, np.uint8))}
        return zip_bytes(self._entries(members)), False

    def _opcodes(self, dice: random.Random) -> tuple[bytes, bool]:
        members = dict(dice.choice(self._pickles))
        name = dice.choice(("meta", "steps", "steps"))
        content = members[name]
        start = content.index(b"\n") + 1
        stream = content[start:]
        for _ in range(dice.randint(1, 3)):
            stream = _mutated(dice, stream, _PARTS)
        members[name] = content[:start] + stream
        return zip_bytes(self._entries(members)), True

    def _values(self, dice: random.Random) -> tuple[bytes, bool]:
        rows: list[Any] = [step(number) for number in range(3)]
        meta: dict[Any, Any] = dict(META1)
        for _ in range(dice.randint(1, 3)):
            target = dice.choice([*rows, meta])
            target[dice.choice([*target, "x", 3, "X"])] = dice.choice([*_VALUES, (1, 2), b"x", 1j])
        protocol = dice.randrange(6)
        changed = {"steps": pickled(rows, protocol), "meta": pickled(meta, protocol)}
        return old(**changed), True

    def _splice(self, dice: random.Random) -> tuple[bytes, bool]:
        members, is_old = self._members(dice)
        content = zip_bytes(self._entries(members))
        other = zip_bytes(self._entries(self._members(dice)[0]))
        cut, paste = dice.randrange(len(content)), dice.randrange(len(other))
        if dice.random() < 0.5:
            paste = max(0, len(other) - (len(content) - cut))
        return content[:cut] + other[paste:], is_old


def _mutated(dice: random.Random, content: bytes, parts: tuple[bytes, ...]) -> bytes:
    """``content`` with one place changed, lost, doubled, or one of ``parts`` put into it."""
    at = dice.randrange(len(content) + 1)
    to = min(len(content), at + dice.choice((0, 1, 1, 2, 4, 9)))
    way = dice.randrange(4)
    if way == 0:
        return content[:at] + dice.choice(parts) + content[to:]
    if way == 1:
        return content[:at] + content[to:]
    if way == 2:
        return content[:to] + content[at:]
    return content[:at] + bytes([dice.randrange(256)]) + content[at + 1 :]

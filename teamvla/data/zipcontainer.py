"""A small zip container: deterministic to write, bounded to read.

Written here instead of with :mod:`zipfile` for two reasons: the members are deflated
by ISA-L (ordinary deflate, several times faster than zlib), and the reader trusts
nothing that the file says about itself. Everything is checked before it is believed
and nothing is inflated beyond the size that was announced and allowed.

Format: PKWARE APPNOTE 6.3, stored and deflated members, no comments; zip64 fields only in
a member's own header, where :func:`numpy.savez` puts them.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from isal import isal_zlib

from teamvla.errors import EpisodeError

Compression = Literal["fast", "stored", "zlib"]
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_SIGN, _CENTRAL_SIGN, _END_SIGN = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_STORED, _DEFLATED, _VERSION, _UNIX = 0, 8, 20, 3 << 8
_MIDNIGHT_1980 = 0x21  # the first day that a zip file can name: no clock in the bytes
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_NAME = re.compile(rb"[a-z0-9][a-z0-9_-]{0,63}\.npy")
_DOS_FOLDER = 0x10
_SLACK = 64  # a member's zip64 field and data descriptor, as numpy.savez writes them
_DESCRIPTOR, _ZIP64, _IN_ZIP64 = 0x8, struct.Struct("<2H2Q"), 0xFFFFFFFF
_MAX_MEMBERS = 128
_MAX_DIRECTORY = 64 << 10
_MAX_RATIO = 1100  # deflate cannot do better than 1032
_FIRST, _AHEAD = 4 << 10, 64 << 10
_WORTHWHILE = 0.98
_INFLATE_ERROR: Any = isal_zlib.error  # its stub calls the class an instance
MAX_BYTES = 2 << 30  # default limit on what one file may expand to
MEND = "Take another copy of it, or record it again."


def write_zip(
    file: BinaryIO, members: Iterable[tuple[str, Sequence[bytes | memoryview]]], how: Compression
) -> None:
    """Write a zip file whose bytes depend on the members alone.

    Args:
        file: open for writing, at its start.
        members: name and content, in pieces; at most 2 GiB together.
        how: ``fast`` is deflate by ISA-L, ``zlib`` by zlib, ``stored`` is none.
    """
    directory, offset, count = bytearray(), 0, 0
    for name, pieces in members:
        encoded, crc = name.encode("ascii"), 0
        for piece in pieces:
            crc = isal_zlib.crc32(piece, crc)
        size = sum(len(piece) for piece in pieces)
        method, packed = _pack(pieces, size, how)
        length = sum(len(piece) for piece in packed)
        shared = (_VERSION, 0, method, 0, _MIDNIGHT_1980, crc, length, size, len(encoded), 0)
        directory += _CENTRAL.pack(
            _CENTRAL_SIGN, _UNIX | _VERSION, *shared, 0, 0, 0, 0o100644 << 16, offset
        )
        directory += encoded
        file.write(_LOCAL.pack(_LOCAL_SIGN, *shared) + encoded)
        for piece in packed:
            file.write(piece)
        offset += _LOCAL.size + len(encoded) + length
        count += 1
    file.write(directory)
    file.write(_END.pack(_END_SIGN, 0, 0, count, count, len(directory), offset, 0))


def _pack(
    pieces: Sequence[bytes | memoryview], size: int, how: Compression
) -> tuple[int, Sequence[bytes | memoryview]]:
    if how == "stored":
        return _STORED, pieces
    deflate: Any = (
        isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
        if how == "fast"
        else zlib.compressobj(6, zlib.DEFLATED, -15)
    )
    packed = [deflate.compress(piece) for piece in pieces] + [deflate.flush()]
    # Noise hardly shrinks: keep it as it is, which is faster to read.
    shrunk = sum(map(len, packed)) < _WORTHWHILE * size
    return (_DEFLATED, packed) if shrunk else (_STORED, pieces)


@dataclass(frozen=True)
class Member:
    """One entry of the directory.

    Attributes:
        packed: compressed length in bytes.
        size: length of the content in bytes.
        offset: of its local header.
    """

    name: str
    deflated: bool
    crc: int
    packed: int
    size: int
    offset: int


def read_directory(file: BinaryIO, where: str, max_bytes: int) -> dict[str, Member]:
    """Read and check a zip file's directory; member contents are not touched.

    Args:
        file: open for reading.
        where: how errors call the file.
        max_bytes: limit on all contents together.

    Raises:
        EpisodeError: with the code of the guard that refused.
    """
    entries, start = _directory_bytes(file, where)
    members: dict[str, Member] = {}
    at = 0
    while at < len(entries):
        member, at = _entry(entries, at, where)
        if member.name in members:
            raise refuse(where, "each member once", f"two of {member.name}", "E206")
        if len(members) == _MAX_MEMBERS:
            raise refuse(where, f"at most {_MAX_MEMBERS} members", "more", "E202")
        members[member.name] = member
    total = sum(member.size for member in members.values())
    if total > max_bytes:
        raise refuse(where, f"at most {max_bytes} bytes of content", str(total), "E209")
    _check_places(members.values(), start, where)
    return members


def _directory_bytes(file: BinaryIO, where: str) -> tuple[bytes, int]:
    length = file.seek(0, os.SEEK_END)
    if length < _END.size:
        raise refuse(where, "a zip file", f"{length} bytes", "E201")
    file.seek(length - _END.size)
    sign, disk, first, here, count, size, start, comment = _END.unpack(
        _exact(file, _END.size, where)
    )
    if sign != _END_SIGN or comment:
        got = "none: it is cut short, padded, or something else"
        raise refuse(where, "a zip directory at the end", got, "E201")
    if count > _MAX_MEMBERS or size > _MAX_DIRECTORY:
        raise refuse(where, f"at most {_MAX_MEMBERS} members", str(count), "E202")
    if disk or first or here != count or start + size + _END.size != length:
        raise refuse(where, "one directory before the end of the file", "another layout", "E203")
    file.seek(start)
    return _exact(file, size, where), start


def _exact(file: BinaryIO, count: int, where: str) -> bytes:
    block = file.read(count)
    if len(block) != count:
        raise refuse(where, f"{count} more bytes", f"{len(block)}: it shrank", "E217")
    return block


def _entry(entries: bytes, at: int, where: str) -> tuple[Member, int]:
    if len(entries) - at < _CENTRAL.size or entries[at : at + 4] != _CENTRAL_SIGN:
        raise refuse(where, "a directory entry", "other bytes", "E204")
    row = _CENTRAL.unpack_from(entries, at)
    flags, method, crc, packed, size, name_length, extra, comment, kind = (row[i] for i in _PLACES)
    name_at = at + _CENTRAL.size
    end = name_at + name_length + extra + comment
    raw = entries[name_at : name_at + name_length]
    if end > len(entries):
        raise refuse(where, "a directory entry", "half of one", "E204")
    if not _NAME.fullmatch(raw):
        got = repr(raw[:80])[1:]
        raise refuse(where, f"member names matching {_NAME.pattern.decode()}", got, "E205")
    name = raw.decode("ascii")
    if comment:
        raise refuse(f"{where}: {name}", "no comment", f"{comment} bytes of it", "E229")
    if kind & _DOS_FOLDER or stat.S_IFMT(kind >> 16) not in (0, stat.S_IFREG):
        got = stat.filemode(kind >> 16)
        raise refuse(f"{where}: {name}", "an ordinary file", f"a link or folder, {got}", "E219")
    if flags & _ENCRYPTED:
        raise refuse(f"{where}: {name}", "readable content", "an encrypted member", "E207")
    if method not in (_STORED, _DEFLATED):
        raise refuse(f"{where}: {name}", "stored or deflated", f"method {method}", "E208")
    if size > _MAX_RATIO * (packed + 1) or (method == _STORED and size != packed):
        raise refuse(f"{where}: {name}", "a possible ratio", f"{packed} -> {size} bytes", "E210")
    return Member(name, method == _DEFLATED, crc, packed, size, row[-1]), end


_PLACES = (3, 4, 7, 8, 9, 10, 11, 12, 15)


def _check_places(members: Iterable[Member], end: int, where: str) -> None:
    free_from = slack = 0
    for member in sorted(members, key=lambda member: member.offset):
        if member.offset < free_from:
            raise refuse(f"{where}: {member.name}", "a place of its own", "an overlap", "E211")
        _check_gap(member.offset - free_from, slack, where)
        free_from = member.offset + _LOCAL.size + len(member.name) + member.packed
        slack = _SLACK
    if free_from > end:
        raise refuse(where, "members before the directory", "one that reaches into it", "E230")
    _check_gap(end - free_from, slack, where)


def _check_gap(gap: int, slack: int, where: str) -> None:
    if gap > slack:
        raise refuse(where, "members side by side", f"{gap} bytes that belong to none", "E220")


class MemberStream:
    """The content of one member, inflated little further than it is asked for."""

    def __init__(self, file: BinaryIO, member: Member, where: str) -> None:
        self._file, self._member = file, member
        self._where = where
        self._inflate: Any = isal_zlib.decompressobj(-15) if member.deflated else None
        self._packed_left, self._crc, self._ahead = member.packed, 0, memoryview(b"")
        self._step = _FIRST  # often nothing but an array's header is wanted
        file.seek(member.offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or header[:4] != _LOCAL_SIGN:
            raise self._refuse("a member's header", "other bytes", "E212")
        row = _LOCAL.unpack(header)
        method = _DEFLATED if member.deflated else _STORED
        name = file.read(row[9])
        if name != member.name.encode("ascii") or row[3] != method or row[2] & _ENCRYPTED:
            raise self._refuse("the directory's name and method", "others", "E212")
        if not self._same_sizes(row[6:9], row[2], file.read(row[10])):
            raise self._refuse("the directory's sizes and checksum", "others", "E218")

    def _same_sizes(self, sizes: tuple[int, ...], flags: int, extra: bytes) -> bool:
        """Whether the member's header says of its content what the directory says."""
        crc, packed, size = sizes
        if packed == size == _IN_ZIP64 and len(extra) == _ZIP64.size:
            _, _, size, packed = _ZIP64.unpack(extra)
        known = (self._member.crc, self._member.packed, self._member.size)
        return (crc, packed, size) in (known, (0, 0, 0) if flags & _DESCRIPTOR else known)

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        if count <= len(self._ahead):
            piece = bytes(self._some(count))
            self._crc = isal_zlib.crc32(piece, self._crc)
            return piece
        block = bytearray(count)
        self.read_into(memoryview(block))
        return bytes(block)

    def read_into(self, target: memoryview) -> None:
        """Fill ``target``, a flat view of bytes."""
        done = 0
        while done < len(target):
            piece = self._some(len(target) - done)
            if not piece:
                raise self._refuse(f"{self._member.size} bytes", "fewer", "E214")
            target[done : done + len(piece)] = piece
            done += len(piece)
        self._crc = isal_zlib.crc32(target, self._crc)

    def finish(self) -> None:
        """Check that nothing is left and that the content is what was written."""
        if self._some(1) or self._packed_left or (self._inflate and self._inflate.unused_data):
            raise self._refuse(f"{self._member.size} bytes", "more", "E215")
        if self._inflate is not None and not self._inflate.eof:
            raise self._refuse("a finished deflate stream", "half of one", "E214")
        if self._crc != self._member.crc:
            raise self._refuse(
                f"checksum {self._member.crc:08x}", f"{self._crc:08x}: the content changed", "E216"
            )

    def _some(self, limit: int) -> memoryview:
        """At least one byte and at most ``limit``; none at the end."""
        if not self._ahead:
            block = self._raw(self._step) if self._inflate is None else self._more()
            self._ahead, self._step = memoryview(block), _AHEAD
        piece, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return piece

    def _more(self) -> bytes:
        """The next inflated bytes, ``_step`` at most; none at the end."""
        while not self._inflate.eof:
            waiting = self._inflate.unconsumed_tail or self._raw(self._step)
            try:
                block: bytes = self._inflate.decompress(waiting, self._step)
            except _INFLATE_ERROR:
                raise self._refuse("deflated data", "damaged data", "E213") from None
            if block or not waiting:
                return block
        return b""

    def _raw(self, limit: int) -> bytes:
        block = self._file.read(min(limit, self._packed_left))
        self._packed_left -= len(block)
        return block

    def _refuse(self, expected: str, got: str, code: str) -> EpisodeError:
        return refuse(self._where, expected, got, code)


def refuse(where: str, expected: str, got: str, code: str) -> EpisodeError:
    """The error about a file that cannot be used."""
    return EpisodeError(where, expected, got, MEND, code=code)

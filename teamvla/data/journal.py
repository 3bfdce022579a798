"""The journal of an episode that is being recorded: ``ROOT/TASK/.EPISODE_ID.part``.

Append-only. Behind eight bytes of magic stand records ``[length][crc32][payload]``, both
numbers uint32, little-endian. A payload is ``[length][header][bytes of the arrays]``; the
header is canonical JSON whose ``kind`` is one of

- ``start``, the first record: ``meta`` and ``compression``;
- ``step``: ``values`` (texts and JSON) and ``arrays``, a list of [name, dtype, shape] of
  arrays and numbers, whose bytes follow in this order;
- ``end``, once the episode was ended: ``success`` and more ``meta``. It stands there
  before the episode is published, so that a journal which ends so holds all of it.

The writer holds a lock (``flock``) on its journal, which goes with its process however
that ends: a journal that can be locked is left over. Reading takes any bytes: it stops
at the first record that is not whole, one record is in memory at a time, no array is
larger than its bytes in the file, and JSON, whose values take many times its length, is
parsed up to :data:`MAX_HEADER` bytes only.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.npy import values_are_legal
from teamvla.data.npz import MAX_META_BYTES
from teamvla.data.schema import MAX_FIELDS, storable
from teamvla.errors import EpisodeError
from teamvla.files import canonical_json, naming, sync_directory

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: exclusive creation alone keeps writers apart
    fcntl = None

SUFFIX = ".part"
SYNC_EVERY = 10
MAX_RECORD = 1 << 28
MAX_HEADER = MAX_META_BYTES + 4096
"""Of a record's JSON: metadata, or the texts and JSON of one step."""
_MAGIC = b"tvlajr1\n"
_RECORD, _LENGTH = struct.Struct("<II"), struct.Struct("<I")
_MAX_DIMS = 8
_DESCR = re.compile(r"[<>|=]?[a-zA-Z?][0-9]{0,6}")
# How the JSON of a step and of an end begins: neither stands in a record that was cut off.
_BEGINNINGS = (b'{"arrays":[', b'{"kind":"end"')
_CHUNK = 1 << 20
_ATTEMPTS = 16  # to win a name against a repair that just removes it


class Lock(Enum):
    """What came of locking a journal."""

    TAKEN = "taken"
    HELD = "held by another process"
    UNKNOWN = "not to be had on this file system"


def journal_path(episode: Path) -> Path:
    """Where the journal of an episode lies: beside it, hidden."""
    return episode.with_name(f".{episode.stem}{SUFFIX}")


def lock(descriptor: int) -> Lock:
    """Lock an open journal without waiting."""
    if fcntl is None:
        return Lock.UNKNOWN
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.HELD
    except OSError:  # network mounts without a lock service
        return Lock.UNKNOWN
    return Lock.TAKEN


def hold(descriptor: int) -> int:
    """A locked duplicate of an open file, to be closed by :func:`unlock_and_close`."""
    duplicate = os.dup(descriptor)
    lock(duplicate)
    return duplicate


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)


class Journal:
    """A journal open for writing, locked until it is released or discarded."""

    def __init__(self, path: Path, descriptor: int, sync_every: int = SYNC_EVERY) -> None:
        self.path, self._sync_every = path, sync_every
        self._descriptor, self._size, self._unsynced = descriptor, 0, 0

    @classmethod
    def create(cls, path: Path, sync_every: int = SYNC_EVERY) -> Journal:
        """Claim the name; every so many steps will be synced.

        Raises:
            FileExistsError: it is taken, by a writer at work or a journal that was left over.
            OSError: the folder cannot be written.
        """
        with naming(path):
            for _ in range(_ATTEMPTS):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                # Between these two calls a repair may take it for one that was left over.
                if lock(descriptor) is not Lock.HELD and is_at(descriptor, path):
                    return cls(path, descriptor, sync_every)
                os.close(descriptor)
        raise FileExistsError(f"{path} is claimed again and again")

    def start(self, meta: Mapping[str, Any], compression: str) -> None:
        """Write the first record; once this returns, a power cut does not undo the claim."""
        self._size = 0
        header = {"kind": "start", "meta": dict(meta), "compression": compression}
        with naming(self.path):
            self._append([canonical_json(header)], _MAGIC)
            os.fsync(self._descriptor)
            sync_directory(self.path.parent)

    def add(self, step: Mapping[str, Any]) -> None:
        """Append one step. Nothing of it counts if this raises.

        Raises:
            EpisodeError: the step, or its texts and JSON, are too large for a record.
            OSError: the disk did not take it.
        """
        before = self._size
        try:
            with naming(self.path):
                self._append(_encode_step(step))
                self._unsynced += 1
                if self._unsynced >= self._sync_every:
                    os.fsync(self._descriptor)
                    self._unsynced = 0
        except BaseException:
            self._cut(before)
            raise

    def end(self, success: bool | None, meta: Mapping[str, Any]) -> None:
        """Append the last record; it may be appended again, the last one counts."""
        header = {"kind": "end", "success": success, "meta": dict(meta)}
        with naming(self.path):
            self._append([canonical_json(header)])

    def discard(self) -> None:
        """Remove the journal, then let go of it; never the journal of another."""
        try:
            if is_at(self._descriptor, self.path):
                self.path.unlink()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the journal; it stays for ``teamvla repair``."""
        unlock_and_close(self._descriptor)

    def _append(self, pieces: list[bytes | memoryview], magic: bytes = b"") -> None:
        if len(pieces[0]) > MAX_HEADER:
            expected, got = f"at most {MAX_HEADER} bytes of texts and JSON", str(len(pieces[0]))
            raise EpisodeError("step", expected, got, code="E314")
        header = _LENGTH.pack(len(pieces[0]))
        length, checksum = len(header), zlib.crc32(header)
        for piece in pieces:
            length, checksum = length + len(piece), zlib.crc32(piece, checksum)
        if length > MAX_RECORD:
            got = f"{length} bytes"
            raise EpisodeError("step", f"at most {MAX_RECORD} bytes", got, code="E310")
        record = b"".join([magic, _RECORD.pack(length, checksum), header, *pieces])
        self._write(record)
        self._size += len(record)

    def _write(self, record: bytes) -> None:
        # At an offset that is counted here: what a failed write left is written over.
        rest, offset = memoryview(record), self._size
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def _cut(self, size: int) -> None:
        self._size = size
        with suppress(OSError):
            os.ftruncate(self._descriptor, size)


def unlock_and_close(descriptor: int) -> None:
    """Close it; the lock goes at once, even where a forked process has it open, too."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _encode_step(step: Mapping[str, Any]) -> list[bytes | memoryview]:
    arrays: list[list[Any]] = []
    values: dict[str, Any] = {}
    content: list[bytes | memoryview] = []
    for name, value in step.items():
        if isinstance(value, np.ndarray | np.generic | bool | int | float):
            array = np.asarray(value)
            arrays.append([name, array.dtype.str, list(array.shape)])
            content.append(array.tobytes())
        else:
            values[name] = value
    header = canonical_json({"kind": "step", "arrays": arrays, "values": values})
    return [header, *content]


class JournalReader:
    """What a journal holds, record by record, believing none of it.

    Attributes:
        start: header of the first record, None where it is not whole.
        end: header of the last record of kind ``end``; known once ``steps`` is exhausted.
        damage: why reading stopped before the file's end; None if it did not.
        torn: whether what is damaged is no more than the record that was being written.
        barely_begun: whether there is less than a first record: a writer was killed at once.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._offset = descriptor, len(_MAGIC)
        self._size = os.fstat(descriptor).st_size
        self.end: dict[str, Any] | None = None
        self.damage: str | None = None
        self.torn = False
        self.start = self._read_start()

    def steps(self) -> Iterator[dict[str, Any]]:
        """Every whole step, in order; arrays are read-only views."""
        if self.start is None:
            return
        self._offset, self.end, self.damage, self.torn = self._first_step, None, None, False
        while (payload := self._next_payload()) is not None:
            header, content = _split(payload)
            if header is not None and header.get("kind") == "end":
                self.end = header
                continue
            step = None if header is None else _decode_step(header, content)
            if step is None:
                self._offset -= _RECORD.size + len(payload)
                self.damage = self._damaged()
                return
            self.end = None
            yield step

    def _read_start(self) -> dict[str, Any] | None:
        magic = os.pread(self._descriptor, len(_MAGIC), 0)
        self.barely_begun = magic == _MAGIC[: self._size]
        if magic != _MAGIC:
            return None
        payload = self._next_payload()
        self.barely_begun = payload is None and self._is_cut_off()
        header = None if payload is None else _split(payload)[0]
        self._first_step = self._offset
        fits = header is not None and header.get("kind") == "start"
        return header if fits and isinstance((header or {}).get("meta"), dict) else None

    def _next_payload(self) -> bytes | None:
        """The next record's payload, None at the end or where no whole record stands."""
        if self._offset == self._size:
            return None
        payload = self._read_payload()
        if payload is None:
            self.torn, self.damage = self._is_cut_off(), self._damaged()
            return None
        self._offset += _RECORD.size + len(payload)
        return payload

    def _read_payload(self) -> bytes | None:
        length, checksum = self._claim()
        room = self._size - self._offset - _RECORD.size
        if not _LENGTH.size <= length <= min(room, MAX_RECORD):
            return None
        payload = _read_at(self._descriptor, self._offset + _RECORD.size, length)
        return payload if len(payload) == length and zlib.crc32(payload) == checksum else None

    def _claim(self) -> tuple[int, int]:
        """Length and checksum that the record here says it has; (0, 0) where none fits."""
        numbers = os.pread(self._descriptor, _RECORD.size, self._offset)
        return _RECORD.unpack(numbers) if len(numbers) == _RECORD.size else (0, 0)

    def _is_cut_off(self) -> bool:
        """Whether the rest is the beginning of one record, as a killed writer leaves it."""
        room = self._size - self._offset - _RECORD.size
        if room < 0:
            return True
        return room < self._claim()[0] <= MAX_RECORD and not self._is_followed()

    def _is_followed(self) -> bool:
        """Whether more records begin behind the one here: then it is its length that is wrong."""
        position = self._offset + _RECORD.size + _LENGTH.size + 1
        overlap = max(map(len, _BEGINNINGS))
        while position < self._size:
            chunk = _read_at(self._descriptor, position, _CHUNK + overlap)
            if any(beginning in chunk for beginning in _BEGINNINGS):
                return True
            position += _CHUNK
        return False

    def _damaged(self) -> str:
        return f"{self._size - self._offset} bytes at its end are not whole"


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    content = os.pread(descriptor, length, offset)
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


def _split(payload: bytes) -> tuple[dict[str, Any] | None, memoryview]:
    (length,) = _LENGTH.unpack_from(payload)
    content = memoryview(payload)[_LENGTH.size :]
    if length > MAX_HEADER:
        return None, content[:0]
    try:
        header = json.loads(bytes(content[:length]).decode("utf-8"))
    except (ValueError, RecursionError):
        header = None
    return (header if isinstance(header, dict) else None), content[length:]


def _decode_step(header: dict[str, Any], content: memoryview) -> dict[str, Any] | None:
    """The step, or None if header and content do not fit each other."""
    values, arrays = header.get("values"), header.get("arrays")
    if header.get("kind") != "step" or not isinstance(values, dict):
        return None
    if not isinstance(arrays, list) or len(arrays) > MAX_FIELDS:
        return None
    step, offset = dict(values), 0
    for item in arrays:
        layout = _layout(item)
        if layout is None:
            return None
        name, dtype, shape = layout
        end = offset + math.prod(shape) * dtype.itemsize
        array = _array(content[offset:end], dtype, shape) if end <= len(content) else None
        if array is None or name in step:
            return None
        step[name], offset = array if array.ndim else array.item(), end
    return step if offset == len(content) else None


def _layout(item: Any) -> tuple[str, np.dtype, tuple[int, ...]] | None:
    if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str)):
        return None
    name, descr, shape = item
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS:
        return None
    if any(type(size) is not int or size < 0 for size in shape):
        return None
    # Empty dimensions count as one: their product must not hide what the others claim.
    if math.prod(max(1, size) for size in shape) > MAX_RECORD:
        return None
    dtype = _dtype(descr)
    return None if dtype is None else (name, dtype, tuple(shape))


def _dtype(descr: Any) -> np.dtype | None:
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        return None  # NumPy itself would go as far as to parse Python
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError):
        return None
    return dtype if storable(dtype) else None


def _array(content: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    flat = np.frombuffer(content, np.uint8).view(dtype)
    return flat.reshape(shape) if values_are_legal(flat) else None

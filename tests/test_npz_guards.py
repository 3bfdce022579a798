"""Each guard of the episode file's reader, by its code."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import (
    META,
    code_of,
    json_bytes,
    load,
    npz_bytes,
    write_episode,
    zip_of,
)

from teamvla.data import npz, zipcontainer
from teamvla.data.npz import read_episode, write_npz
from teamvla.data.zipcontainer import Member, MemberStream


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return write_episode(tmp_path, note="ü")


# Central directory entry: 8 flags, 10 method, 16 crc, 20 packed,
# 24 size, 28 name length, 42 offset; local header: 6 flags, 8 method, 26 name length.


def first_entry(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(form, changed, content.index(b"PK\x01\x02") + offset, value)
        return bytes(changed)

    return change


def at_start(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(form, changed, offset, value)
        return bytes(changed)

    return change


def at_end(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    """A change of the end record, 22 bytes long: 4 disk, 10 count, 12 size, 16 start."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(form, changed, len(content) - 22 + offset, value)
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda content: b"", "E201"),
        (lambda content: content[:-1], "E201"),
        (at_end(20, "<H", 1), "E201"),
        (at_end(10, "<H", 60_000), "E202"),
        (at_end(12, "<I", 1 << 30), "E202"),
        (at_end(4, "<H", 1), "E203"),
        (at_end(6, "<H", 1), "E203"),
        (at_end(8, "<H", 2), "E203"),
        (at_end(16, "<I", 5), "E203"),
        (lambda content: b"PK" + content, "E203"),
        (first_entry(0, "<I", 0), "E204"),
        (first_entry(30, "<H", 60_000), "E204"),
        (first_entry(28, "<H", 3), "E205"),
        (first_entry(8, "<H", 1), "E207"),
        (first_entry(8, "<H", 0x40), "E207"),
        (first_entry(8, "<H", 0x2000), "E207"),
        (first_entry(10, "<H", 12), "E208"),
        (first_entry(24, "<I", 0xFFFFFFFF), "E210"),
        (first_entry(42, "<I", 1 << 30), "E220"),
        (first_entry(20, "<I", 900), "E230"),
        (first_entry(16, "<I", 0), "E218"),
    ],
)
def test_container_guards(change: Callable, code: str) -> None:
    assert code_of(load, change(npz_bytes({"meta": json_bytes(META)}))) == code


@pytest.mark.parametrize(
    "change", [at_start(0, "<I", 0), at_start(6, "<H", 1), at_start(8, "<H", 0),
               at_start(26, "<H", 2), at_start(30, "<B", ord("b"))],
)  # fmt: skip
def test_a_member_that_contradicts_the_directory_is_refused(change: Callable) -> None:
    content = npz_bytes({"meta": json_bytes(META), "a": np.zeros((2, 30))})
    assert code_of(load, change(content)) == "E212"


def test_too_many_members_are_refused() -> None:
    members = {f"m{number}": np.zeros(1) for number in range(130)}
    assert code_of(load, npz_bytes(members)) == "E202"


def test_more_members_than_were_announced_are_refused() -> None:
    content = npz_bytes({f"m{number}": np.zeros(1) for number in range(130)})
    for offset in (8, 10):
        content = at_end(offset, "<H", 5)(content)
    assert code_of(load, content) == "E202"


@pytest.mark.parametrize(
    "name", ["../q.npy", "/q.npy", "a/b.npy", "Q.npy", "q", "q.npz", ".npy", "q.npy/", "é.npy"]
)
def test_member_names_are_plain(name: str) -> None:
    assert code_of(load, zip_of({name: b""})) == "E205"


def test_a_member_that_appears_twice_is_refused() -> None:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("q.npy", b"one")
        archive.writestr("q.npy", b"two")
    assert code_of(load, file.getvalue()) == "E206"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(method: int) -> None:
    assert code_of(load, zip_of({"q.npy": bytes(99)}, method)) == "E208"


def test_the_limit_on_the_content_is_kept(episode: Path) -> None:
    assert code_of(lambda: read_episode(episode, max_bytes=2000)) == "E209"
    assert read_episode(episode, max_bytes=20_000).num_steps == 4


def test_a_stored_member_has_one_size() -> None:
    content = npz_bytes({"meta": json_bytes(META)}, "stored")
    assert code_of(load, first_entry(24, "<I", 99)(content)) == "E210"


def test_half_a_directory_entry_is_refused() -> None:
    content = npz_bytes({"meta": json_bytes(META)})
    directory, end = content[content.index(b"PK\x01\x02") : -22], content[-22:]
    size = struct.pack("<I", len(directory) + 4)
    longer = content[:-22] + b"PK\x01\x02" + end[:12] + size + end[16:]
    assert code_of(load, longer) == "E204"


class _Shrinking(io.BytesIO):
    """A file of which every read gets one byte less than was asked for."""

    def read(self, count: int | None = -1) -> bytes:
        return super().read(count)[:-1]


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    content = npz_bytes({"meta": json_bytes(META)})
    (member,) = zipcontainer.read_directory(io.BytesIO(content), "x", 1 << 20).values()
    shrinking = _Shrinking(content)
    assert code_of(zipcontainer.read_directory, shrinking, "x", 1 << 20) == "E217"
    assert code_of(MemberStream, shrinking, member, "x") == "E212"


def test_two_members_may_not_share_their_bytes() -> None:
    content = npz_bytes({"a": np.zeros(3), "b": np.zeros(3)}, "stored")
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    changed = bytearray(content)
    struct.pack_into("<I", changed, second + 42, 0)
    assert code_of(load, bytes(changed)) == "E211"


def deflated(content: bytes, **changes: Any) -> MemberStream:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = changes.pop("packed", packer.compress(content) + packer.flush())
    # Flag 8: its sizes and checksum stand in the directory alone.
    start = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 8, 8, 0, 0, 0, 0, 0, 1, 0) + b"x"
    values = {"crc": zlib.crc32(content), "packed": len(packed), "size": len(content), **changes}
    member = Member("x", deflated=True, offset=0, **values)
    return MemberStream(io.BytesIO(start + packed), member, "x")


def test_a_sound_member_is_read_in_any_pieces() -> None:
    content = bytes(range(256)) * 40
    stream = deflated(content)
    pieces = [stream.read(1), stream.read(0), stream.read(9000), stream.read(len(content) - 9001)]
    stream.finish()
    assert b"".join(pieces) == content


def test_damaged_deflate_is_refused() -> None:
    assert code_of(deflated(b"", packed=b"\xff" * 40, size=9).read, 9) == "E213"


def test_a_member_shorter_than_announced_is_refused() -> None:
    assert code_of(deflated(bytes(50)).read, 51) == "E214"


def test_a_deflate_stream_without_its_end_is_refused() -> None:
    packer = zlib.compressobj(0, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(50)) + packer.flush(zlib.Z_SYNC_FLUSH)
    stream = deflated(bytes(50), packed=packed)
    stream.read(50)
    assert code_of(stream.finish) == "E214"


def test_a_member_longer_than_announced_is_refused() -> None:
    stream = deflated(bytes(51), size=50)
    stream.read(50)
    assert code_of(stream.finish) == "E215"


def test_bytes_behind_the_deflate_stream_are_refused() -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = deflated(bytes(50), packed=packer.compress(bytes(50)) + packer.flush() + b"tail")
    stream.read(50)
    assert code_of(stream.finish) == "E215"


def test_blocks_behind_the_deflate_stream_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(50)) + packer.flush()
    monkeypatch.setattr(zipcontainer, "_FIRST", len(packed))
    stream = deflated(bytes(50), packed=packed + b"tail")
    stream.read(50)
    assert code_of(stream.finish) == "E215"


def test_a_wrong_checksum_is_refused() -> None:
    stream = deflated(bytes(50), crc=1)
    stream.read(50)
    assert code_of(stream.finish) == "E216"


def test_a_failing_disk_is_an_error_with_a_code(
    episode: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(npz, "read_array", fail)
    assert code_of(read_episode, episode) == "E217"


def test_too_little_memory_is_an_error_with_a_code(
    episode: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(npz, "read_header", fail)
    assert code_of(read_episode, episode) == "E217"


def test_what_is_too_large_to_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_BYTES", (1 << 20) + 100)
    assert code_of(write_npz, io.BytesIO(), {"x": np.zeros(101, np.uint8)}) == "E310"


def test_the_longest_directory_that_is_written_is_read() -> None:
    names = [f"{'n' * 60}{number:03d}" for number in range(128)]
    content = npz_bytes({name: np.zeros(1, np.uint8) for name in names})
    directory = zipcontainer.read_directory(io.BytesIO(content), "x", 1 << 20)
    assert len(directory) == 128

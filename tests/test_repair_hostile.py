"""Journals that no writer made, and those that were damaged."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from leftovers import (
    START,
    actions,
    leave_journal,
    payloads_of,
    record_of,
)
from sample_steps import files

from teamvla.data import journal as journals
from teamvla.data import read_episode, validate_file
from teamvla.data.repair import repair_roots
from teamvla.errors import InputError


@pytest.mark.parametrize("cut", [1, 9, 300])
def test_a_torn_tail_costs_only_the_torn_step(tmp_path: Path, cut: int) -> None:
    path = leave_journal(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    report = repair_roots([tmp_path], apply=True)
    assert "not whole" in report.leftovers[0].reason
    assert read_episode(tmp_path / "lift/one-partial.npz").num_steps == 4


def test_every_prefix_of_a_journal_gives_its_whole_steps(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, 3)
    content, ends = path.read_bytes(), []
    offset = len(journals._MAGIC)
    while offset < len(content):
        offset += 8 + struct.unpack_from("<I", content, offset)[0]
        ends.append(offset)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        report = repair_roots([tmp_path])
        whole = sum(end <= size for end in ends) - 1
        assert report.leftovers[0].steps == max(0, whole)
        assert report.leftovers[0].action == ("recover" if whole > 0 else "remove")


def test_any_flipped_byte_is_survived(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, 2)
    content = path.read_bytes()
    for position in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[position] ^= 0x41
        path.write_bytes(flipped)
        report = repair_roots([tmp_path])
        assert report.leftovers[0].steps < 2


HOSTILE = {
    "other file": b"PK\x03\x04" + bytes(100),
    "damaged metadata": journals._MAGIC + START[:-1] + b"x" + bytes(50),
    "other place": journals._MAGIC
    + record_of({"kind": "start", "meta": {"task": "../up", "episode_id": "one"}}),
    "other id": journals._MAGIC
    + record_of({"kind": "start", "meta": {"task": "lift", "episode_id": "two"}}),
    "no metadata": journals._MAGIC + record_of({"kind": "start", "meta": []}),
    "step first": journals._MAGIC + record_of({"kind": "step", "arrays": [], "values": {}}),
    "deep": journals._MAGIC + record_of(b"[" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_metadata_are_reported_and_left(tmp_path: Path, name: str) -> None:
    (tmp_path / "lift").mkdir()
    path = tmp_path / "lift/.one.part"
    path.write_bytes(HOSTILE[name])
    report = repair_roots([tmp_path], apply=True)
    assert actions(report) == ["stuck"]
    assert files(tmp_path) == ["lift/.one.part"]


def step_record(*arrays: Any, values: Any = None, content: bytes = b"") -> bytes:
    header = {"kind": "step", "arrays": list(arrays), "values": values or {}}
    return record_of(header, content)


BAD_STEPS = {
    "object": step_record(["q_a", "|O", [1]], content=bytes(8)),
    "huge": step_record(["q_a", "<f4", [10**12]]),
    "hidden huge": step_record(["q_a", "<f4", [0, 10**12]]),
    "negative": step_record(["q_a", "<f4", [-1]]),
    "dimensions": step_record(["q_a", "<f4", [1] * 30], content=bytes(4)),
    "too short": step_record(["q_a", "<f4", [3]], content=bytes(8)),
    "too long": step_record(["q_a", "<f4", [3]], content=bytes(16)),
    "twice": step_record(["q_a", "<f4", [1]], ["q_a", "<f4", [1]], content=bytes(8)),
    "bool": step_record(["success", "|b1", []], content=b"\x02"),
    "text": step_record(["label", "<U1", [1]], content=b"\xff\xff\xff\xff"),
    "python": step_record(["q_a", "04,i", [1]], content=bytes(8)),
    "structured": step_record(["q_a", "f4,f4", [1]], content=bytes(8)),
    "zero size": step_record(["q_a", "|S0", [10**8]]),
    "layout": step_record({"a": 1}),
    "values": step_record(values=[1]),
    "many": step_record(*[[f"f{number}", "|u1", []] for number in range(200)], content=bytes(200)),
    "empty record": struct.pack("<II", 0, 0),
    "length": struct.pack("<II", 2**32 - 1, 0) + bytes(100),
    "kind": record_of({"kind": "surprise"}),
    "no json": record_of(b"\xff"),
    "missing fields": step_record(values={"task": "lift"}),
}


_SPLICES = (b"9", b"[", b"-", b"e", b"null", b'"O"', b"NaN", b"1e999", b"\\ud800", b"\x00")


def mutate(payloads: list[bytes], rng: random.Random) -> bytes:
    """The journal with a few bytes of its records changed, its checksums put right."""
    records = [bytearray(payload) for payload in payloads]
    for _ in range(rng.randint(1, 4)):
        record = rng.choice(records)
        start, size = rng.randrange(min(len(record), 800)), rng.choice((0, 1, 1, 4))
        record[start : start + size] = rng.choice((*_SPLICES, rng.randbytes(rng.randrange(6))))
        if rng.random() < 0.2:
            records.insert(rng.randrange(len(records)), bytearray(rng.choice(records)))
    parts = [struct.pack("<II", len(one), zlib.crc32(one)) + one for one in records]
    return journals._MAGIC + b"".join(parts)


def fuzz(root: Path, cases: int) -> set[str]:
    path = leave_journal(root, 3)
    payloads, rng, seen = payloads_of(path.read_bytes()), random.Random(0), set()
    for _ in range(cases):
        path.write_bytes(mutate(payloads, rng))
        seen |= set(actions(repair_roots([root])))
    return seen


def test_mutated_journals_are_judged_without_an_exception(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 400) >= {"recover", "stuck"}


@pytest.mark.slow
def test_many_mutated_journals_are_judged_without_an_exception(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 30_000) >= {"recover", "stuck"}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_bad_step_ends_what_is_recovered(tmp_path: Path, name: str) -> None:
    path = leave_journal(tmp_path, 2)
    path.write_bytes(path.read_bytes() + BAD_STEPS[name] + START)
    report = repair_roots([tmp_path], apply=True)
    assert (report.leftovers[0].action, report.leftovers[0].steps) == ("recover", 2)
    assert validate_file(tmp_path / "lift/one-partial.npz") == []


def test_reading_a_journal_reads_no_more_than_one_record(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, 2)
    with path.open("ab") as file:
        file.write(struct.pack("<II", 1 << 29, 0))
        file.truncate(1 << 30)  # a hole, as large as the record claims
    assert repair_roots([tmp_path]).leftovers[0].steps == 2


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift/.one.part").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "lift/.two.part")
    assert set(actions(repair_roots([tmp_path], apply=True))) == {"stuck"}


def test_a_root_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        repair_roots([tmp_path / "missing"])

"""Journals that are damaged in their midst: what stands before is saved, the rest is kept."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from leftovers import META, actions, leave_journal, payloads_of, record_of, timed_step
from sample_steps import code_of, files

from teamvla.cli.app import run
from teamvla.data import journal as journals
from teamvla.data import read_episode
from teamvla.data import writer as writing
from teamvla.data.npz import MAX_META_BYTES
from teamvla.data.repair import repair_roots
from teamvla.data.writer import EpisodeWriter

STEPS = 12


def offset_of(content: bytes, record: int) -> int:
    """Where a record begins; the first is the start."""
    sizes = [8 + len(payload) for payload in payloads_of(content)]
    return len(journals._MAGIC) + sum(sizes[:record])


#: what happens to step 3 of 12, by what a position of its record becomes
DAMAGES = {"content": (200, 0x01), "length": (2, 0x10), "short length": (0, 0x08), "sum": (4, 1)}


def damage(path: Path, name: str) -> bytes:
    position, bits = DAMAGES[name]
    content = bytearray(path.read_bytes())
    content[offset_of(content, 4) + position] ^= bits
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_journal_damaged_in_its_midst_is_kept_with_all_that_is_behind(
    tmp_path: Path, name: str
) -> None:
    content = damage(leave_journal(tmp_path, STEPS), name)
    report = repair_roots([tmp_path], apply=True)
    assert (actions(report), report.leftovers[0].steps) == (["recover"], 3)
    assert report.open == report.leftovers
    assert files(tmp_path) == ["lift/.one.part.damaged", "lift/one-partial.npz"]
    assert report.leftovers[0].kept == tmp_path / "lift/.one.part.damaged"
    assert (tmp_path / "lift/.one.part.damaged").read_bytes() == content
    assert read_episode(tmp_path / "lift/one-partial.npz").num_steps == 3


def test_a_journal_whose_start_has_a_wrong_length_is_not_removed(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, STEPS)
    content = bytearray(path.read_bytes())
    content[len(journals._MAGIC) + 2] ^= 0x10
    path.write_bytes(content)
    assert actions(repair_roots([tmp_path], apply=True)) == ["stuck"]
    assert path.read_bytes() == content


def test_a_journal_whose_first_step_is_damaged_is_not_removed(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, STEPS)
    content = bytearray(path.read_bytes())
    content[offset_of(content, 1) + 100] ^= 1
    path.write_bytes(content)
    assert actions(repair_roots([tmp_path], apply=True)) == ["stuck"]
    assert path.read_bytes() == content


def test_a_step_that_is_refused_does_not_cost_those_behind_it(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, STEPS)
    content = path.read_bytes()
    at = offset_of(content, 4)
    refused = record_of({"kind": "step", "arrays": [], "values": {"task": "lift"}})
    path.write_bytes(content[:at] + refused + content[at:])
    report = repair_roots([tmp_path], apply=True)
    assert "E102" in report.leftovers[0].reason
    assert files(tmp_path) == ["lift/.one.part.damaged", "lift/one-partial.npz"]


def test_a_repair_killed_before_it_set_the_journal_aside_is_finished(tmp_path: Path) -> None:
    content = damage(leave_journal(tmp_path, STEPS), "content")
    repair_roots([tmp_path], apply=True)
    (tmp_path / "lift/.one.part").write_bytes(content)
    report = repair_roots([tmp_path], apply=True)
    assert actions(report) == ["keep", "stuck"]
    assert files(tmp_path) == [
        "lift/.one.part.damaged", "lift/.one.part.damaged-2", "lift/one-partial.npz",
    ]  # fmt: skip


def test_the_command_ends_with_1_and_names_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(leave_journal(tmp_path, STEPS), "content")
    assert run(["repair", str(tmp_path), "--apply"]) == 1
    assert f"the rest is kept in {tmp_path}/lift/.one.part.damaged" in capsys.readouterr().out
    assert run(["repair", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["leftovers"][0]["action"] == "stuck"


def test_an_episode_is_read_back_before_its_journal_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_journal(tmp_path)
    real = EpisodeWriter.end_episode

    def breaks(self: EpisodeWriter, *rest: Any) -> Path:
        written = real(self, *rest)
        written.write_bytes(written.read_bytes()[:-1])
        return written

    monkeypatch.setattr(EpisodeWriter, "end_episode", breaks)
    assert actions(repair_roots([tmp_path], apply=True)) == ["stuck"]
    assert path.exists()


# Texts whose widths make the episode larger than its journal.


def test_texts_count_as_wide_as_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MAX_BYTES", writing._ROOM + 200_000)
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        for index in range(8):
            writer.add_step({**timed_step(index), "note": {"n": []}})
        wide = {**timed_step(8), "note": {"n": ["x" * 9000]}}
        assert code_of(writer.add_step, wide) == "E310"
        writer.add_step({**timed_step(8), "note": {"n": ["x" * 4000]}})
        assert read_episode(writer.end_episode()).num_steps == 9


def test_a_journal_of_more_than_a_file_takes_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_journal(tmp_path, STEPS)
    monkeypatch.setattr(writing, "MAX_BYTES", writing._ROOM + 2500)
    report = repair_roots([tmp_path], apply=True)
    assert "E310" in report.leftovers[0].reason
    assert files(tmp_path) == ["lift/.one.part.damaged", "lift/one-partial.npz"]
    assert 2 < read_episode(tmp_path / "lift/one-partial.npz").num_steps < STEPS


# JSON takes many times its length.


@pytest.mark.parametrize("kind", ["start", "step", "end"])
def test_long_json_is_not_parsed(tmp_path: Path, kind: str) -> None:
    path = leave_journal(tmp_path, 3)
    bomb = b'{"kind":"%s","x":[%s{}]}' % (kind.encode(), b"{}," * (2 * MAX_META_BYTES))
    content = path.read_bytes()
    path.write_bytes((journals._MAGIC if kind == "start" else content) + record_of(bomb))
    tracemalloc.start()
    try:
        report = repair_roots([tmp_path])
        assert tracemalloc.get_traced_memory()[1] < 5 * len(bomb)
    finally:
        tracemalloc.stop()
    assert report.leftovers[0].steps == (0 if kind == "start" else 3)


def test_what_would_not_be_read_again_is_not_journalled(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode(META)
        writer.add_step(timed_step(0))
        large = {**timed_step(1), "note": {"n": ["x" * journals.MAX_HEADER]}}
        assert code_of(writer.add_step, large) == "E314"
        writer.add_step(timed_step(1))
        assert read_episode(writer.end_episode()).num_steps == 2


def test_a_length_that_only_claims_is_torn(tmp_path: Path) -> None:
    path = leave_journal(tmp_path, 3)
    path.write_bytes(path.read_bytes() + struct.pack("<II", 5000, 1) + b"half")
    assert repair_roots([tmp_path], apply=True).open == []
    assert files(tmp_path) == ["lift/one-partial.npz"]

"""What killed recorders leave, and what `teamvla repair` makes of it."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kills import Acknowledge, run_and_kill
from sample_steps import CONTRACT, code_of, files, make_step, rewrite, write_episode

from teamvla.cli.app import run
from teamvla.data import journal as journals
from teamvla.data import read_episode, validate_file
from teamvla.data.claims import Claims
from teamvla.data.episodes import find_episodes
from teamvla.data.repair import RepairReport, repair_roots
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import InputError

META = {"task": "lift", "episode_id": "one", "contract": CONTRACT, "bench": "left"}


def timed_step(index: int) -> dict[str, Any]:
    return make_step(index, timestamp=index / 20, phase="reach", note={"n": [index]})


def leave_journal(root: Path, steps: int = 5, **meta: Any) -> Path:
    """The journal of a writer that went away without a word."""
    writer = EpisodeWriter(root)
    writer.start_episode({**META, **meta})
    for index in range(steps):
        writer.add_step(timed_step(index))
    assert writer._journal is not None
    writer._journal.release()
    writer._reset()
    return next(root.rglob(f".{meta.get('episode_id', 'one')}.part"))


def leave_ended(root: Path, monkeypatch: pytest.MonkeyPatch, publishes: bool) -> Path:
    """The journal of a writer killed around publishing; returns the episode's path."""

    class Gone(BaseException):
        pass

    def die(*rest: Any) -> Any:
        raise Gone

    writer = EpisodeWriter(root)
    writer.start_episode(META)
    for index in range(5):
        writer.add_step(timed_step(index))
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "abort" if publishes else "_publish", die)
        with pytest.raises(Gone):
            writer.end_episode(True, {"reward": 2.5})
    assert writer._journal is not None
    writer._journal.release()
    return root / "lift" / "one.npz"


def actions(report: RepairReport) -> list[str]:
    return [one.action for one in report.leftovers]


def test_a_killed_recording_becomes_a_partial_episode_with_every_step(tmp_path: Path) -> None:
    leave_journal(tmp_path, success=True)
    report = repair_roots([tmp_path], apply=True)
    assert (actions(report), report.open) == (["recover"], [])
    assert files(tmp_path) == ["lift/one-partial.npz"]
    path = tmp_path / "lift/one-partial.npz"
    assert validate_file(path) == []
    episode = read_episode(path)
    assert episode.meta["partial"] is True
    assert episode.meta["bench"] == "left"
    whole = write_timed(tmp_path / "whole")
    for name, column in read_episode(whole).fields.items():
        assert episode.fields[name].tobytes() == column.tobytes(), name


def write_timed(root: Path) -> Path:
    with EpisodeWriter(root, journal=False) as writer:
        writer.start_episode(META)
        for index in range(5):
            writer.add_step(timed_step(index))
        return writer.end_episode(True, {"reward": 2.5})


@pytest.mark.parametrize(("steps", "success"), [(3, False), (5, True)])
def test_a_partial_episode_is_a_success_only_if_its_last_step_says_so(
    tmp_path: Path, steps: int, success: bool
) -> None:
    leave_journal(tmp_path, steps, success=True)
    repair_roots([tmp_path], apply=True)
    assert read_episode(tmp_path / "lift/one-partial.npz").success is success


def test_a_dry_run_changes_nothing_and_says_what_will_be_done(tmp_path: Path) -> None:
    path = leave_journal(tmp_path)
    before = path.read_bytes()
    planned = repair_roots([tmp_path]).leftovers
    assert files(tmp_path) == ["lift/.one.part"]
    assert path.read_bytes() == before
    done = repair_roots([tmp_path], apply=True).leftovers
    assert [one.done for one in planned + done] == [False, True]
    assert (planned[0].target, planned[0].steps) == (done[0].target, done[0].steps)


def test_repairing_twice_is_repairing_once(tmp_path: Path) -> None:
    leave_journal(tmp_path)
    repair_roots([tmp_path], apply=True)
    before = (tmp_path / "lift/one-partial.npz").read_bytes()
    assert repair_roots([tmp_path], apply=True).leftovers == []
    assert files(tmp_path) == ["lift/one-partial.npz"]
    assert (tmp_path / "lift/one-partial.npz").read_bytes() == before


def test_a_repair_killed_before_it_removed_the_journal_is_finished(tmp_path: Path) -> None:
    content = leave_journal(tmp_path).read_bytes()
    repair_roots([tmp_path], apply=True)
    (tmp_path / "lift/.one.part").write_bytes(content)
    assert actions(repair_roots([tmp_path], apply=True)) == ["remove"]
    assert files(tmp_path) == ["lift/one-partial.npz"]


def test_an_episode_killed_before_publishing_is_published_as_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_ended(tmp_path, monkeypatch, publishes=False)
    assert files(tmp_path) == ["lift/.one.part"]
    assert actions(repair_roots([tmp_path], apply=True)) == ["publish"]
    assert files(tmp_path) == ["lift/one.npz"]
    assert path.read_bytes() == write_timed(tmp_path / "whole").read_bytes()


def test_a_journal_of_a_published_episode_is_only_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_ended(tmp_path, monkeypatch, publishes=True)
    before = path.read_bytes()
    assert files(tmp_path) == ["lift/.one.part", "lift/one.npz"]
    assert actions(repair_roots([tmp_path], apply=True)) == ["remove"]
    assert files(tmp_path) == ["lift/one.npz"]
    assert path.read_bytes() == before


def test_another_episode_of_that_name_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_ended(tmp_path, monkeypatch, publishes=False)
    write_episode(tmp_path / "other", episode_id="one").rename(path)
    before = path.read_bytes()
    repair_roots([tmp_path], apply=True)
    assert files(tmp_path)[:2] == ["lift/one-2.npz", "lift/one.npz"]
    assert path.read_bytes() == before
    assert validate_file(tmp_path / "lift/one-2.npz") == []


def test_a_name_that_was_only_claimed_is_given_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_ended(tmp_path, monkeypatch, publishes=False)
    path.touch()  # killed between claim and rename, where there are no hard links
    repair_roots([tmp_path], apply=True)
    assert files(tmp_path) == ["lift/one.npz"]
    assert validate_file(path) == []


def test_an_episode_that_differs_in_one_bit_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_ended(tmp_path, monkeypatch, publishes=True)
    with np.load(path) as archive:
        picture = archive["rgb_a"]
    picture[4, 0, 0, 0] ^= 1
    rewrite(path, rgb_a=picture)
    repair_roots([tmp_path], apply=True)
    assert files(tmp_path) == ["lift/one-2.npz", "lift/one.npz"]


def test_numbers_that_the_file_rounds_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EpisodeWriter(tmp_path)
    writer.start_episode(META)
    writer.add_step(make_step(grip_a=0.1, ratio=1e300, other=float("nan")))
    monkeypatch.setattr(EpisodeWriter, "abort", lambda self: None)
    writer.end_episode()
    writer._journal.release()
    monkeypatch.undo()
    assert actions(repair_roots([tmp_path])) == ["remove"]


def test_long_ids_are_cut_to_make_room(tmp_path: Path) -> None:
    leave_journal(tmp_path, episode_id="x" * 64)
    repair_roots([tmp_path], apply=True)
    assert files(tmp_path) == [f"lift/{'x' * 56}-partial.npz"]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode(META)
        writer.add_step(make_step())
        (tmp_path / "lift/.one.npz.abcdefgh.tmp").write_bytes(b"half")
        report = repair_roots([tmp_path], apply=True)
        assert actions(report) == ["leave", "leave"]
        assert report.open == []
        writer.end_episode()
    assert actions(repair_roots([tmp_path], apply=True)) == ["remove"]
    assert files(tmp_path) == ["lift/one.npz"]


def test_without_locks_nothing_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_journal(tmp_path)
    monkeypatch.setattr(journals, "fcntl", None)
    report = repair_roots([tmp_path], apply=True)
    assert actions(report) == ["stuck"]
    assert files(tmp_path) == ["lift/.one.part"]
    with EpisodeWriter(tmp_path) as writer:  # recording goes on without them
        writer.start_episode({"task": "lift"})
        writer.add_step(make_step())
        assert writer.end_episode().exists()


def test_a_full_disk_while_repairing_keeps_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_journal(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        report = repair_roots([tmp_path], apply=True)
    assert actions(report) == ["stuck"]
    assert "E308" in report.leftovers[0].reason
    assert files(tmp_path) == ["lift/.one.part"]
    assert repair_roots([tmp_path], apply=True).open == []


# Journals that no writer made.


def record_of(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    payload = struct.pack("<I", len(text)) + text + content
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


START = record_of({"kind": "start", "meta": META, "compression": "fast"})


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


def payloads_of(journal: bytes) -> list[bytes]:
    found, offset = [], len(journals._MAGIC)
    while offset < len(journal):
        (length,) = struct.unpack_from("<I", journal, offset)
        found.append(journal[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return found


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


# Two writers, and clocks.


def test_a_second_writer_of_the_same_episode_is_refused(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode(META)
        writer.add_step(timed_step(0))
        assert code_of(EpisodeWriter(tmp_path).start_episode, META) == "E311"
        other = EpisodeWriter(tmp_path, leftover="discard")
        assert code_of(other.start_episode, META) == "E311"
        assert validate_file(writer.end_episode()) == []


def test_a_left_over_journal_is_never_written_over_unasked(tmp_path: Path) -> None:
    path = leave_journal(tmp_path)
    before = path.read_bytes()
    assert code_of(EpisodeWriter(tmp_path).start_episode, META) == "E312"
    assert path.read_bytes() == before
    with EpisodeWriter(tmp_path, leftover="discard") as writer:
        writer.start_episode(META)
        writer.add_step(timed_step(0))
        assert read_episode(writer.end_episode()).num_steps == 1
    assert files(tmp_path) == ["lift/one.npz"]


def test_writers_that_choose_ids_never_choose_the_same(tmp_path: Path) -> None:
    writers = [EpisodeWriter(tmp_path) for _ in range(4)]
    ids = [writer.start_episode({"task": "lift"}).episode_id for writer in writers]
    assert ids == [f"episode-{number:06d}" for number in range(4)]
    for writer in writers:
        writer.add_step(make_step())
        writer.end_episode()
    assert len(find_episodes(tmp_path)) == 4


def test_a_name_published_between_looking_and_claiming_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Claims._open

    def beaten(self: Claims, given: Any, path: Path) -> Any:
        monkeypatch.setattr(Claims, "_open", real)
        write_episode(tmp_path, episode_id=given["episode_id"])
        return real(self, given, path)

    monkeypatch.setattr(Claims, "_open", beaten)
    writer = EpisodeWriter(tmp_path)
    assert writer.start_episode({"task": "lift"}).episode_id == "episode-000001"
    monkeypatch.setattr(Claims, "_open", beaten)
    assert code_of(writer.__class__(tmp_path).start_episode, META) == "E307"
    writer.abort()
    assert files(tmp_path) == ["lift/episode-000000.npz", "lift/one.npz"]


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**9, 0, -1))
    expected = write_timed(tmp_path / "before").read_bytes()
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    path = leave_journal(tmp_path / "after")
    os.utime(path, (2**33, 2**33))  # a time to come
    assert actions(repair_roots([tmp_path / "after"], apply=True)) == ["recover"]
    assert write_timed(tmp_path / "after").read_bytes() == expected


# The command.


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run(["repair", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_lists_then_repairs_then_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_journal(tmp_path)
    code, result = command(capsys, str(tmp_path))
    assert (code, result["open"], result["next"]) == (1, 1, f"teamvla repair --apply {tmp_path}")
    code, result = command(capsys, str(tmp_path), "--apply")
    assert (code, result["open"], result["next"]) == (0, 0, f"teamvla validate {tmp_path}")
    assert result["leftovers"][0]["target"] == str(tmp_path / "lift/one-partial.npz")
    assert command(capsys, str(tmp_path))[0] == 0


def test_the_command_ends_with_1_if_something_is_stuck(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_journal(tmp_path).write_bytes(HOSTILE["other file"])
    code, result = command(capsys, str(tmp_path), "--apply")
    assert (code, result["leftovers"][0]["action"]) == (1, "stuck")


def test_the_command_says_in_a_line_what_it_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_journal(tmp_path)
    assert run(["repair", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"would recover 5 steps -> {tmp_path}/lift/one-partial.npz" in said
    assert run(["repair", str(tmp_path / "missing")]) == 2


# Killed at any moment.


def recorder(root: Path) -> Any:
    def work(acknowledge: Acknowledge) -> None:
        with EpisodeWriter(root) as writer:
            for _ in range(200):
                name = writer.start_episode({"task": "lift", "contract": CONTRACT}).episode_id
                for index in range(12):
                    writer.add_step(timed_step(index))
                    acknowledge(f"step {name} {index}")
                writer.end_episode()
                acknowledge(f"episode {name} 12")

    return work


def kill_and_check(root: Path, seed: int) -> tuple[int, int]:
    """Kill one recorder, repair, and check what it had acknowledged; how much that was."""
    root.mkdir()
    killed = run_and_kill(recorder(root), seed, within_s=0.12)
    for path in find_episodes(root) if any(root.rglob("*.npz")) else []:
        assert validate_file(path) == [], path  # before any repair: nothing corrupt is visible
    report = repair_roots([root], apply=True)
    assert report.open == []
    assert repair_roots([root]).leftovers == []
    assert not [name for name in files(root) if not name.endswith(".npz")]
    steps: dict[str, int] = {}
    episodes = 0
    for line in killed.acknowledged:
        kind, name, number = line.split()
        steps[name] = max(steps.get(name, 0), int(number) + (kind == "step"))
        episodes += kind == "episode"
        if kind == "episode":
            assert (root / "lift" / f"{name}.npz").exists(), name
    for name, number in steps.items():
        paths = [root / "lift" / f"{name}{end}.npz" for end in ("", "-partial")]
        kept = [read_episode(path) for path in paths if path.exists()]
        assert max(episode.num_steps for episode in kept) >= number, name
        assert kept[-1].fields["rgb_a"][number - 1].tobytes() == (
            timed_step(number - 1)["rgb_a"].tobytes()
        )
    return episodes, len([line for line in killed.acknowledged if line.startswith("step")])


def test_killed_recorders_lose_nothing_they_acknowledged(tmp_path: Path) -> None:
    counts = [kill_and_check(tmp_path / str(seed), seed) for seed in range(20)]
    assert sum(steps for _, steps in counts) > 20


@pytest.mark.slow
def test_hundreds_of_killed_recorders_lose_nothing(tmp_path: Path) -> None:
    counts = [kill_and_check(tmp_path / str(seed), 1000 + seed) for seed in range(700)]
    episodes, steps = (sum(column) for column in zip(*counts, strict=True))
    sys.stdout.write(f"700 kills: {episodes} episodes, {steps} steps acknowledged, 0 lost\n")
    assert steps > 1000

"""What killed recorders leave, and what `teamvla repair` makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leftovers import (
    META,
    actions,
    leave_ended,
    leave_journal,
    write_timed,
)
from sample_steps import files, make_step, rewrite, write_episode

from teamvla.cli.app import run
from teamvla.data import journal as journals
from teamvla.data import read_episode, validate_file
from teamvla.data.repair import repair_roots
from teamvla.data.writer import EpisodeWriter


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
    leave_journal(tmp_path).write_bytes(b"PK\x03\x04" + bytes(100))
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

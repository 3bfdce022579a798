"""Writers that meet, clocks that go back, and recorders killed at any moment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kills import Acknowledge, run_and_kill
from leftovers import (
    META,
    actions,
    leave_journal,
    timed_step,
    write_timed,
)
from sample_steps import CONTRACT, code_of, files, make_step, write_episode

from teamvla.data import read_episode, validate_file
from teamvla.data.claims import Claims
from teamvla.data.episodes import find_episodes
from teamvla.data.repair import repair_roots
from teamvla.data.writer import EpisodeWriter


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

"""What is left when writing an episode breaks off: nothing, and a writer that works."""

from __future__ import annotations

import errno
import logging
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_steps import code_of, files, make_step, write_episode, write_steps

from teamvla.data import writer as writing
from teamvla.data.episodes import find_episodes
from teamvla.data.npz import read_episode
from teamvla.data.validation import validate_file
from teamvla.data.writer import EpisodeWriter


def test_leaving_the_block_drops_an_unfinished_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        writer.add_step(make_step())
    assert "dropped after 1 steps" in caplog.text
    assert files(tmp_path) == []


def test_an_exception_in_the_block_drops_the_episode_and_gets_out(tmp_path: Path) -> None:
    def record() -> None:
        with EpisodeWriter(tmp_path) as writer:
            writer.start_episode({"task": "lift"})
            writer.add_step(make_step())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record()
    assert files(tmp_path) == []


def test_an_aborted_episode_leaves_its_id_free(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    for steps in (3, 1):
        meta = writer.start_episode({"task": "lift"})
        for index in range(steps):
            writer.add_step(make_step(index))
        if steps == 3:
            writer.abort()
    assert meta.episode_id == "episode-000000"
    assert read_episode(writer.end_episode()).num_steps == 1


def test_a_closed_writer_can_be_used_again(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift"})
    writer.close()
    writer.start_episode({"task": "lift"})
    writer.add_step(make_step())
    assert writer.end_episode().exists()


def fail_midway(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the next file break off after its first bytes."""
    real = writing.write_npz

    def broken(file: Any, *arguments: Any) -> None:
        monkeypatch.setattr(writing, "write_npz", real)
        file.write(b"PK\x03\x04" + bytes(5000))
        file.flush()
        raise error

    monkeypatch.setattr(writing, "write_npz", broken)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "E308"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "E308"),
        (OSError(errno.EIO, "Input/output error"), "E309"),
    ],
)
def test_a_failing_disk_leaves_nothing_and_a_usable_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, code: str
) -> None:
    fail_midway(monkeypatch, error)
    writer = EpisodeWriter(tmp_path)
    for attempt in range(2):
        writer.start_episode({"task": "lift", "episode_id": "one"})
        writer.add_step(make_step())
        if attempt == 0:
            assert code_of(writer.end_episode) == code
            assert files(tmp_path) == []
    assert validate_file(writer.end_episode()) == []


def test_an_interrupt_midway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_midway(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_steps(tmp_path, [make_step()])
    assert files(tmp_path) == []


def test_a_real_limit_on_file_size_leaves_nothing(tmp_path: Path) -> None:
    steps = [make_step(index) for index in range(100)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        assert code_of(lambda: write_steps(tmp_path, steps)) == "E309"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []


@pytest.mark.parametrize("blocker", ["root", "root/lift"])
def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path, blocker: str) -> None:
    (tmp_path / blocker).parent.mkdir(exist_ok=True)
    (tmp_path / blocker).write_text("in the way")
    assert code_of(lambda: write_steps(tmp_path / "root", [make_step()])) == "E309"


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from sample_steps import write_episode
from teamvla.data import writer

root = Path({root!r})
write_episode(root, episode_id="one")

def die(file, *rest):
    file.write(b"PK")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

writer.write_npz = die
write_episode(root, episode_id="two")
"""


def test_a_killed_writer_loses_no_finished_episode(tmp_path: Path) -> None:
    program = _KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    found = find_episodes(tmp_path)
    assert [path.name for path in found] == ["one.npz"]
    assert validate_file(found[0]) == []
    assert validate_file(write_episode(tmp_path, episode_id="two")) == []

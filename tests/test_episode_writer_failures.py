"""What is left when writing an episode breaks off: nothing, or a journal that is repaired."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sample_steps import code_of, files, make_step, write_episode, write_steps

from teamvla import files as file_system
from teamvla.data import writer as writing
from teamvla.data.episodes import find_episodes
from teamvla.data.npz import read_episode
from teamvla.data.repair import repair_roots
from teamvla.data.validation import validate_file
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import EpisodeWriteError


def test_leaving_the_block_drops_an_unfinished_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        writer.add_step(make_step())
    assert "dropped after 1 steps" in caplog.text
    assert files(tmp_path) == []


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_an_exception_in_the_block_leaves_the_steps_to_repair_and_gets_out(
    tmp_path: Path, reason: type[BaseException]
) -> None:
    def record() -> None:
        with EpisodeWriter(tmp_path) as writer:
            writer.start_episode({"task": "lift"})
            writer.add_step(make_step())
            raise reason

    with pytest.raises(reason):
        record()
    assert files(tmp_path) == ["lift/.episode-000000.part"]
    repair_roots([tmp_path], apply=True)
    assert read_episode(tmp_path / "lift/episode-000000-partial.npz").num_steps == 1


def test_an_exception_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    def record() -> None:
        with EpisodeWriter(tmp_path) as writer:
            writer.start_episode({"task": "lift"})
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
def test_an_episode_that_the_disk_refused_can_be_ended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, code: str
) -> None:
    fail_midway(monkeypatch, error)
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift", "episode_id": "one"})
    writer.add_step(make_step())
    with pytest.raises(EpisodeWriteError, match="teamvla repair") as caught:
        writer.end_episode()
    assert caught.value.code == code
    assert files(tmp_path) == ["lift/.one.part"]
    assert validate_file(writer.end_episode()) == []
    assert files(tmp_path) == ["lift/one.npz"]


@pytest.mark.parametrize("closes", [True, False])
def test_a_refused_episode_stays_in_its_journal_and_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    fail_midway(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift", "episode_id": "one"})
    writer.add_step(make_step())
    assert code_of(writer.end_episode) == "E308"
    if closes:
        writer.close()
    writer.start_episode({"task": "lift", "episode_id": "two"})
    writer.add_step(make_step())
    writer.end_episode()
    assert files(tmp_path) == ["lift/.one.part", "lift/two.npz"]
    assert [one.action for one in repair_roots([tmp_path], apply=True).leftovers] == ["publish"]
    assert files(tmp_path) == ["lift/one.npz", "lift/two.npz"]


def test_a_refused_episode_can_still_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_midway(monkeypatch, OSError(errno.EIO, "Input/output error"))
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift", "episode_id": "one"})
    writer.add_step(make_step())
    assert code_of(writer.end_episode) == "E309"
    writer.abort()
    assert files(tmp_path) == []


def test_an_interrupt_midway_leaves_the_journal_of_the_whole_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_midway(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_episode(tmp_path)
    assert files(tmp_path) == ["lift/.one.part"]
    repair_roots([tmp_path], apply=True)
    expected = write_episode(tmp_path / "again").read_bytes()
    assert (tmp_path / "lift/one.npz").read_bytes() == expected


def test_a_real_limit_on_file_size_leaves_the_steps_that_fit(tmp_path: Path) -> None:
    steps = [make_step(index) for index in range(100)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        assert code_of(lambda: write_steps(tmp_path, steps)) == "E309"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == ["lift/.episode-000000.part"]
    report = repair_roots([tmp_path], apply=True)
    assert [one.action for one in report.leftovers] == ["recover"]
    assert read_episode(tmp_path / "lift/episode-000000-partial.npz").num_steps > 2


# Every call to the system may fail, once or from then on.


class Faults:
    """Counts the calls of the writer to the system and lets the n-th fail."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, reason: int, lasting: bool) -> None:
        self.count, self.fired = 0, False
        self._number, self._reason, self._lasting = number, reason, lasting
        for name in ("pwrite", "fsync", "link", "fchmod", "ftruncate"):
            patch.setattr(os, name, self._wrapped(getattr(os, name)))
        patch.setattr(tempfile, "mkstemp", self._wrapped(tempfile.mkstemp))
        patch.setattr(Path, "unlink", self._wrapped(Path.unlink))
        patch.setattr(Path, "mkdir", self._wrapped(Path.mkdir))
        patch.setattr(writing, "write_npz", self._wrapped(writing.write_npz))

    def _wrapped(self, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self._number or (self._lasting and number > self._number):
                self.fired = True
                if real is os.pwrite or getattr(real, "__name__", "") == "pwrite":
                    self._half(real, arguments)
                raise OSError(self._reason, os.strerror(self._reason))
            return real(*arguments, **options)

        return call

    @staticmethod
    def _half(real: Any, arguments: tuple[Any, ...]) -> None:
        """A disk that fills up takes the first part."""
        descriptor, content, offset = arguments
        real(descriptor, bytes(content)[: len(content) // 2], offset)


def record_under_faults(root: Path) -> tuple[int, Path | None, str | None]:
    """Steps that were taken, the episode and the first error's code."""
    taken = 0
    try:
        with EpisodeWriter(root, sync_every=3) as writer:
            writer.start_episode({"task": "lift", "episode_id": "one"})
            for index in range(8):
                writer.add_step(make_step(index))
                taken += 1
            return taken, writer.end_episode(True), None
    except EpisodeWriteError as error:
        return taken, None, error.code


def number_of_calls(root: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, -1, errno.EIO, lasting=False)
        record_under_faults(root)
    return faults.count


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_whichever_call_fails_nothing_is_half_written_and_the_steps_are_kept(
    tmp_path: Path, reason: int, lasting: bool
) -> None:
    calls = number_of_calls(tmp_path / "counted")
    assert calls > 20
    for number in range(calls):
        root = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, number, reason, lasting)
            taken, path, code = record_under_faults(root)
        assert faults.fired
        assert path is not None or code == ("E308" if reason == errno.ENOSPC else "E309")
        visible = sorted(root.rglob("[!.]*.npz"))
        for episode in visible:  # the failure was behind the link, or of no consequence
            assert read_episode(episode).num_steps == 8
        assert repair_roots([root], apply=True).open == [] if root.exists() else True
        if taken:
            (recovered,) = (read_episode(one) for one in root.rglob("[!.]*.npz"))
            # A refused step that the disk would not take back may be there, too.
            assert recovered.num_steps in ((taken, taken + 1) if lasting else (taken,)), number
        assert not [name for name in files(root) if not name.endswith(".npz")]


def test_a_failure_behind_the_link_is_mended_by_ending_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, "Input/output error")

    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift", "episode_id": "one"})
    writer.add_step(make_step())
    monkeypatch.setattr(file_system, "sync_directory", fails)
    assert code_of(writer.end_episode) == "E309"
    content = (tmp_path / "lift/one.npz").read_bytes()
    assert writer.end_episode().read_bytes() == content
    assert files(tmp_path) == ["lift/one.npz"]


def test_a_step_that_the_disk_refused_can_be_added_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift", "episode_id": "one"})
        writer.add_step(make_step(0))
        with monkeypatch.context() as patch:
            Faults(patch, 0, errno.ENOSPC, lasting=False)
            assert code_of(writer.add_step, make_step(1)) == "E308"
        writer.add_step(make_step(1))
        writer._journal.release()
        writer._reset()
    assert repair_roots([tmp_path], apply=True).leftovers[0].steps == 2


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
    assert code_of(lambda: write_episode(tmp_path, episode_id="two")) == "E312"
    repair_roots([tmp_path], apply=True)
    assert files(tmp_path) == ["lift/one.npz", "lift/two.npz"]
    assert validate_file(tmp_path / "lift/two.npz") == []

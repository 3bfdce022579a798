"""Files made to harm: each is refused with its code, and nothing in them is executed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import old, sound
from hostile_reader import Laboratory, Reader, cases, reader

from teamvla.data.codes import CODES
from teamvla.data.npz import read_episode
from teamvla.data.validation import validate_file
from teamvla.data.version1 import is_version1, read_version1
from teamvla.errors import EpisodeError, InputError

CASES = cases()
_LIMIT = 8 << 20


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return reader(tmp_path_factory.mktemp("hostile"))


def test_there_are_enough_of_them() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len({case.content for case in CASES if case.content}) >= 150


def test_what_they_were_made_from_is_sound(as_it_is: Reader, tmp_path: Path) -> None:
    for kind in (True, False):
        as_it_is.read_sound(kind)
    path = tmp_path / "sound.npz"
    path.write_bytes(sound())
    assert validate_file(path, tmp_path) == []


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_is_refused_with_its_code(as_it_is: Reader, case: Any) -> None:
    assert as_it_is.code_of(case) == case.code


@pytest.mark.parametrize("number", range(8))
def test_every_reader_refuses_every_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "hostile.npz"
    for case in (case for case in CASES[number::8] if case.act is None and not case.fields):
        path.write_bytes(case.content)
        findings = validate_file(path, tmp_path)
        assert findings, case.name
        assert {finding.code for finding in findings} <= CODES.keys(), case.name
        for read in (read_episode, read_version1):
            if case.limits or case.max_bytes != 8 << 20 or case.code == "E243":
                continue
            with pytest.raises(EpisodeError) as caught:
                read(path)
            assert caught.value.code in CODES, case.name
    assert not (tmp_path / "executed").exists()


def test_a_file_of_version_1_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "old.npz"
    path.write_bytes(old())
    assert is_version1(path)
    with pytest.raises(EpisodeError, match="teamvla convert") as caught:
        read_episode(path)
    assert caught.value.code == "E223"


# What a name in the file system leads to.


@pytest.mark.parametrize("read", [read_episode, read_version1, is_version1])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "fifo.npz")
    (tmp_path / "link.npz").symlink_to(tmp_path)
    (tmp_path / "circle.npz").symlink_to(tmp_path / "circle.npz")
    (tmp_path / "loose.npz").symlink_to(tmp_path / "nothing")
    for name in ("fifo", "link", "circle", "loose"):
        with pytest.raises(InputError):
            read(tmp_path / f"{name}.npz")
    with pytest.raises(InputError):
        read(Path("/dev/zero"))


# Nothing is executed, and nothing is large.

_WATCHED = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from hostile import Case
from hostile_reader import reader
made = reader(Path("."))
made.read_sound(True)
made.read_sound(False)
events, watching = [], False
READING = ("rb", "r", None)
HEARD = {{"exec", "compile", "import", "os", "subprocess", "socket", "pickle", "ctypes", "shutil",
          "marshal", "code", "function", "tempfile", "urllib", "webbrowser", "pty", "mmap"}}
def hook(event, arguments):
    writes = event == "open" and arguments[1] not in READING
    if watching and (writes or event.partition(".")[0] in HEARD):
        events.append((event, arguments))
def memory(kind):
    return int(Path("/proc/self/status").read_text().partition(kind + ":")[2].split()[0])
sys.addaudithook(hook)
before = memory("VmRSS")
for number, (code, old, limits, limit) in enumerate(json.loads(Path("index").read_text())):
    os.rename(f"{{number}}.npz", "hostile.npz")
    case = Case("", code, None, old, limits, limit)
    watching = True
    got = made.code_of(case)
    watching = False
    if got != code:
        print("WRONG", number, got)
print("EVENTS", events)
print("GREW", memory("VmHWM") - before)
watching = True
exec("1")
open("proof", "w").close()
watching = False
print("PROOF", [event for event, _ in events])
"""


def test_nothing_is_executed_and_memory_stays_small(tmp_path: Path) -> None:
    watched = [case for case in CASES if case.act is None and case.fields is None]
    watched = [case for case in watched if case.max_bytes <= _LIMIT]
    for number, case in enumerate(watched):
        (tmp_path / f"{number}.npz").write_bytes(case.content)
    index = [(case.code, case.old, case.limits, case.max_bytes) for case in watched]
    (tmp_path / "index").write_text(json.dumps(index))
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED.format(tests=str(Path(__file__).parent))],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in said, done.stdout
    assert said["EVENTS"] == "[]"
    assert said["PROOF"] == "['compile', 'exec', 'open']"  # the hook does hear
    assert int(said["GREW"]) < (_LIMIT + (64 << 20)) >> 10
    assert not (tmp_path / "executed").exists()


# Each guard is needed.


class _TooLongError(Exception):
    pass


#: of processor time, and by the clock: on a busy machine little of that is ours
TIMERS = {
    signal.SIGPROF: (signal.ITIMER_PROF, 1.0),
    signal.SIGALRM: (signal.ITIMER_REAL, 30.0),
}


@contextmanager
def bounded() -> Iterator[None]:
    """Raise in what takes too long: it runs in circles, or waits."""

    def stop(*_: object) -> None:
        raise _TooLongError

    before = {number: signal.signal(number, stop) for number in TIMERS}
    gc.disable()  # what is raised in its callbacks is lost
    for timer, seconds in TIMERS.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in TIMERS.values():
            signal.setitimer(timer, 0)
        gc.enable()
        for number, handler in before.items():
            signal.signal(number, handler)


def notices(mutant: Reader, code: str) -> bool:
    """Whether some hostile file gets another answer; those of ``code`` are asked first."""
    for case in sorted(CASES, key=lambda case: case.code != code):
        if code != "?" and case.code != code:
            return False
        with bounded():
            if mutant.code_of(case) != case.code:
                return True
    return False


def test_no_guard_can_be_removed_unnoticed(tmp_path: Path) -> None:
    laboratory = Laboratory(tmp_path)
    guards = list(laboratory.guards())
    assert len(guards) > 70
    unnoticed = [g for g in guards if not notices(laboratory.without(g[0], g[1]), g[2])]
    assert unnoticed == [], unnoticed


def test_the_laboratory_changes_nothing_by_itself(tmp_path: Path) -> None:
    untouched = Laboratory(tmp_path).without("npy", 1)
    assert not notices(untouched, "?")

"""A look at a file's directory alone: names and sizes; nothing is inflated."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from teamvla.data.validation.findings import Fault
from teamvla.data.validation.summary import Entry, Summary, digests
from teamvla.data.zipcontainer import MAX_BYTES, Member, read_directory
from teamvla.errors import SchemaError

_ARMS = ("a", "b")  # what other arms there are stands in the metadata, which are packed
_HEADER = 128  # bytes, of the arrays of an episode
_KINDS = ("q", "action", "grip")
_ITEM = {"timestamp": 8, **{f"{kind}_{arm}": 4 for kind in _KINDS for arm in _ARMS}}


def look(path: Path) -> tuple[Summary | None, list[Fault]]:
    """Faults that the directory shows, and what to compare with other episodes.

    Names, sizes and CRCs come from the directory; the length is that of ``success``, and
    every other column must divide by it.
    """
    try:
        members = _directory(path)
    except SchemaError as error:
        return None, [Fault.of(path, error)]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return None, [Fault("E217", None, None, f"expected an episode file, got {reason}")]
    faults = [*_absent(members), *_lengths(members)]
    said = digests(entries(members))
    steps = _steps(members)
    return Summary(path, path.parent.name, path.stem, *said, steps=steps), faults


def _steps(members: Mapping[str, Member]) -> int:
    """Length of the episode, which is that of ``success``: a byte a step behind its header."""
    return members["success"].size - _HEADER if "success" in members else 0


def entries(members: Mapping[str, Member]) -> list[Entry]:
    """Name, CRC and size of every member."""
    return [(name, member.crc, member.size) for name, member in members.items()]


def _directory(path: Path) -> dict[str, Member]:
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "no plain file", str(path))
        members = read_directory(file, str(path), MAX_BYTES)
    return {name[:-4]: member for name, member in members.items()}


def _without_waiting(path: str, flags: int) -> int:
    """A named pipe would block until somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _absent(members: Mapping[str, Member]) -> Iterator[Fault]:
    if "meta" not in members:
        message = "expected metadata, got none: it is not an episode file of version 2"
        yield Fault("E231", None, None, message)
        return
    if "success" not in members:
        yield Fault("E102", None, "success", "expected bool[T], got nothing")
    for arm in _ARMS:
        there = [f"{kind}_{arm}" for kind in _KINDS if f"{kind}_{arm}" in members]
        absent = [f"{kind}_{arm}" for kind in _KINDS if f"{kind}_{arm}" not in members]
        if len(absent) == 1:  # a single one may be a field of the user's own
            message = f"expected it beside {' and '.join(there)}, got none"
            yield Fault("E102", None, absent[0], message)


def _lengths(members: Mapping[str, Member]) -> Iterator[Fault]:
    """Columns whose size is no multiple of the episode's length.

    A header is a multiple of 64 bytes, at least 128 for what fits there: NumPy and
    EpisodeWriter pad it so. Headers of other lengths make no fault.
    """
    steps = _steps(members)
    if steps == 0 and "success" in members:
        yield Fault("E303", None, "success", "expected at least one step, got none")
    for name, member in members.items() if steps > 0 else ():
        item = _ITEM.get(name, 0)
        content = member.size - _HEADER
        if item and content >= 0 and content % (item * steps):
            got = f"{content} bytes"
            yield Fault("E241", None, name, f"expected a multiple of {steps} steps, got {got}")

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

_ITEM = {"success": 1, "grip_": 4, "q_": 4, "action_": 4, "timestamp": 8}
_HEADER = 128  # bytes, of the arrays of an episode
_KINDS = ("q", "action", "grip")


def look(path: Path) -> tuple[Summary | None, list[Fault]]:
    """Faults that the directory shows, and what to compare with other episodes.

    Names, sizes and CRCs come from the directory; the length is that of ``success``, and
    every other column must divide by it.
    """
    try:
        members = _directory(path)
    except SchemaError as error:
        field = error.where.removeprefix(str(path)).removeprefix(": ").removesuffix(".npy")
        message = f"expected {error.expected}, got {error.got}"
        return None, [Fault(error.code or "", None, field or None, message)]
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
    with path.open("rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "no plain file", str(path))
        members = read_directory(file, str(path), MAX_BYTES)
    return {name[:-4]: member for name, member in members.items()}


def _absent(members: Mapping[str, Member]) -> Iterator[Fault]:
    if "meta" not in members:
        message = "expected metadata, got none: it is not an episode file of version 2"
        yield Fault("E231", None, None, message)
        return
    if "success" not in members:
        yield Fault("E102", None, "success", "expected bool[T], got nothing")
    for arm in sorted({name.split("_", 1)[1] for name in members if name.startswith("q_")}):
        for kind in _KINDS:
            if f"{kind}_{arm}" not in members:
                yield Fault("E102", None, f"{kind}_{arm}", f"expected it beside q_{arm}, got none")


def _lengths(members: Mapping[str, Member]) -> Iterator[Fault]:
    """Columns whose size is no multiple of the episode's length.

    A header is a multiple of 64 bytes, at least 128 for what fits there: NumPy and
    EpisodeWriter pad it so. Headers of other lengths make no fault.
    """
    steps = _steps(members)
    if steps == 0 and "success" in members:
        yield Fault("E303", None, "success", "expected at least one step, got none")
    for name, member in members.items() if steps > 0 else ():
        item = next((size for stem, size in _ITEM.items() if name.startswith(stem)), 0)
        content = member.size - _HEADER
        if item and content >= 0 and content % (item * steps):
            got = f"{content} bytes"
            yield Fault("E241", None, name, f"expected a multiple of {steps} steps, got {got}")

"""What writers that were killed leave behind, made for tests."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from sample_steps import CONTRACT, make_step

from teamvla.data import journal as journals
from teamvla.data.repair import RepairReport
from teamvla.data.writer import EpisodeWriter

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


def write_timed(root: Path) -> Path:
    with EpisodeWriter(root, journal=False) as writer:
        writer.start_episode(META)
        for index in range(5):
            writer.add_step(timed_step(index))
        return writer.end_episode(True, {"reward": 2.5})


def record_of(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    payload = struct.pack("<I", len(text)) + text + content
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


START = record_of({"kind": "start", "meta": META, "compression": "fast"})


def payloads_of(journal: bytes) -> list[bytes]:
    found, offset = [], len(journals._MAGIC)
    while offset < len(journal):
        (length,) = struct.unpack_from("<I", journal, offset)
        found.append(journal[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return found

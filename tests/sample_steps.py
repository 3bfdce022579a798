"""Steps and episode files made by hand, for the tests of the data layer."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teamvla.data.npz import Episode, read_episode, write_npz
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import SchemaError

CONTRACT = {
    "arms": [
        {
            "name": name,
            "base": [0, 0, 0],
            "tool": [0, 0, 0.1],
            "links": [
                {
                    "joint": f"{name}_{number}",
                    "offset": [0, 0, 0.1],
                    "axis": [0, 0, 1],
                    "limits": [-1.5, 1.5],
                    "radius": 0.05,
                }
                for number in range(3)
            ],
        }
        for name in "ab"
    ],
    "cameras": [{"field": f"rgb_{name}", "height": 4, "width": 5} for name in "ab"],
}


def make_step(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A legal step, a function of ``index``; ``changes`` replace or add fields."""
    rng = np.random.default_rng(index)
    step: dict[str, Any] = {"instruction": "lift the tray", "task": "lift", "success": index >= 3}
    for arm in "ab":
        step[f"rgb_{arm}"] = rng.integers(0, 256, (4, 5, 3), np.uint8)
        step[f"q_{arm}"] = rng.random(3, np.float32)
        step[f"action_{arm}"] = rng.random(3, np.float32)
        step[f"grip_{arm}"] = np.float32(rng.random())
    return {**step, **changes}


def without(step: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name not in names}


def write_episode(root: Path, steps: int = 4, episode_id: str = "one", **meta: Any) -> Path:
    """A legal episode of task ``lift`` with timestamps at 20 Hz and the contract above."""
    given = {"task": "lift", "episode_id": episode_id, "contract": CONTRACT, **meta}
    with EpisodeWriter(root) as writer:
        writer.start_episode(given)
        for index in range(steps):
            writer.add_step(make_step(index, timestamp=index / 20))
        return writer.end_episode(success=True)


def write_steps(
    root: Path, steps: list[dict[str, Any]], compression: Any = "fast", **meta: Any
) -> Path:
    """Write ``steps`` as one episode of task ``lift``."""
    with EpisodeWriter(root, compression=compression) as writer:
        writer.start_episode({"task": "lift", **meta})
        for step in steps:
            writer.add_step(step)
        return writer.end_episode()


def files(root: Path) -> list[str]:
    """Everything that lies below a folder, hidden or not."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def npz_bytes(members: dict[str, np.ndarray], compression: Any = "fast") -> bytes:
    file = io.BytesIO()
    write_npz(file, members, compression)
    return file.getvalue()


def json_bytes(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode("utf-8"), np.uint8)


def rewrite(path: Path, **changes: Any) -> Path:
    """Write a file anew with some members changed: arrays replace, ``None`` removes."""
    with np.load(path, allow_pickle=False) as archive:
        members = dict(archive)
    meta = json.loads(members["meta"].tobytes())
    meta.update(changes.pop("meta", {}))
    members.update(meta=json_bytes(meta), **changes)
    path.write_bytes(npz_bytes({k: v for k, v in members.items() if v is not None}))
    return path


#: the least that a file's metadata says
META = {
    "task": "lift", "episode_id": "x", "success": True, "num_steps": 2, "version": 2,
    "instruction": "lift",
}  # fmt: skip


def code_of(function: Callable[..., Any], *arguments: Any) -> str | None:
    """The code of the error that a call raises."""
    with pytest.raises(SchemaError) as caught:
        function(*arguments)
    return caught.value.code


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive made by the standard library."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(array: np.ndarray, **keywords: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **keywords)
    return file.getvalue()


def with_meta(**members: bytes) -> bytes:
    """An archive with legal metadata and members that the test made."""
    return zip_of(
        {"meta.npy": npy(json_bytes(META)), **{f"{k}.npy": v for k, v in members.items()}}
    )


def header(text: str, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode("latin1")


def array_header(descr: str, shape: str, order: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")


def load(content: bytes) -> Episode:
    """What the reader makes of these bytes."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        file.write(content)
        file.flush()
        return read_episode(file.name)

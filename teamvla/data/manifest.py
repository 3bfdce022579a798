"""The table of episodes, as columns that are mapped into memory: opening it is free at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from teamvla.data.episodes import find_episodes
from teamvla.data.npz import read_meta

from teamvla.errors import EpisodeError
from teamvla.files import sha256_file

#: an episode's split where it is left out of the cache
SKIPPED = ""
_COLUMNS = {
    "root": "i4",  # number of its root among the index's roots
    "path": "S",  # below the root
    "task": "S",
    "episode_id": "S",
    "num_steps": "i8",
    "success": "?",
    "digest": "S",  # sha256 of the file
    "size": "i8",  # bytes
    "mtime_ns": "i8",
    "split": "S",  # train, val, test, or empty: skipped
    "first_row": "i8",  # in the cache's step arrays; -1 if skipped
    "first_action": "i8",  # in the cache's padded actions; -1 if skipped
}


@dataclass(frozen=True)
class FileState:
    """A file as a directory listing shows it."""

    root: int
    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Entry:
    """What the manifest says about an episode's file and content."""

    file: FileState
    task: str
    episode_id: str
    num_steps: int
    success: bool
    digest: str


def list_files(roots: Sequence[Path]) -> list[FileState]:
    """Every episode file below the roots, ordered by root and path, none twice.

    Raises:
        InputError: a root is missing or holds no episode.
    """
    files, seen = [], set()
    for number, root in enumerate(roots):
        for path in find_episodes(root):
            real = path.resolve()
            if real not in seen:
                seen.add(real)
                state = path.stat()
                below = path.relative_to(root).as_posix()
                files.append(FileState(number, below, state.st_size, state.st_mtime_ns))
    return files


def read_entry(file: FileState, root: Path) -> Entry:
    """Look into one episode file; EpisodeError if its metadata cannot be used."""
    path = root / file.path
    meta = read_meta(path)
    try:
        task, episode_id = str(meta["task"]), str(meta["episode_id"])
        num_steps, success = int(meta["num_steps"]), bool(meta["success"])
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(path, "task, episode_id, num_steps and success in meta", str(error)) from None
    if num_steps < 1:
        raise unusable(path, "at least one step", f"num_steps {num_steps}")
    return Entry(file, task, episode_id, num_steps, success, sha256_file(path))


def unusable(path: Path, expected: str, got: str, code: str = "E301") -> EpisodeError:
    """The error for an episode that must not enter an index."""
    mend = f"Look with `teamvla validate {path}`, then repair or remove it."
    return EpisodeError(str(path), expected, got, mend, code=code)


class Manifest:
    """The columns of the table, one row per episode, ordered by root and path."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    @classmethod
    def build(cls, entries: Sequence[Entry], splits: Sequence[str], max_chunk: int) -> Manifest:
        """Give every episode that has a split its rows in the cache."""
        lengths = np.array([e.num_steps if s else 0 for e, s in zip(entries, splits, strict=True)])
        padded = np.where(lengths > 0, lengths + max_chunk - 1, 0)
        used = lengths > 0
        values = {
            **{name: [getattr(e.file, name) for e in entries] for name in FileState.__slots__},
        }
        return cls(values)

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def text(self, column: str, row: int) -> str:
        """A cell of a text column."""
        value: bytes = self.columns[column][row]
        return value.decode("utf-8")

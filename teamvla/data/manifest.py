"""The table of episodes, as columns that are mapped into memory: opening it is free at any size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from teamvla.data.episodes import find_episodes
from teamvla.data.npz import read_meta
from teamvla.errors import EpisodeError, InputError
from teamvla.files import publish, sha256_file

#: an episode's split where it is left out of the cache
SKIPPED = ""
COLUMNS = (
    "root",  # number of its root among the index's roots
    "path",  # below the root
    "task",
    "episode_id",
    "num_steps",
    "success",
    "digest",  # sha256 of the file
    "size",  # bytes
    "mtime_ns",
    "split",  # train, val, test, or empty: skipped
    "first_row",  # in the cache's step arrays; -1 if skipped
    "first_action",  # in the cache's padded actions; -1 if skipped
)
_PLACE = ("root", "path", "size", "mtime_ns")


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
        InputError: a root is missing or holds no episode, or a file cannot be looked at.
    """
    files: list[FileState] = []
    seen: set[Path] = set()
    for number, root in enumerate(roots):
        for path in find_episodes(root):
            real = path.resolve()
            if real not in seen:
                seen.add(real)
                state = _stat(path)
                below = path.relative_to(root).as_posix()
                files.append(FileState(number, below, state.st_size, state.st_mtime_ns))
    return files


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:  # a link to nowhere, or removed while the folder was listed
        reason = (error.strerror or str(error)).lower()
        raise InputError(str(path), "an episode file", reason) from None


def read_entry(file: FileState, root: Path) -> Entry:
    """Look into one episode file; EpisodeError if its metadata cannot be used."""
    path = root / file.path
    meta = read_meta(path)
    if meta["num_steps"] < 1:
        raise unusable(path, "at least one step", "none", "E501")
    names = (meta["task"], meta["episode_id"], meta["num_steps"], meta["success"])
    return Entry(file, *names, digest=sha256_file(path))


def unusable(path: Path, expected: str, got: str, code: str) -> EpisodeError:
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
        used = np.array([split != SKIPPED for split in splits])
        steps = np.array([entry.num_steps for entry in entries]) * used
        actions = steps + (max_chunk - 1) * used
        columns = {
            "root": np.array([entry.file.root for entry in entries], "i4"),
            "path": _text(entry.file.path for entry in entries),
            "task": _text(entry.task for entry in entries),
            "episode_id": _text(entry.episode_id for entry in entries),
            "num_steps": np.array([entry.num_steps for entry in entries], "i8"),
            "success": np.array([entry.success for entry in entries], "?"),
            "digest": _text(entry.digest for entry in entries),
            "size": np.array([entry.file.size for entry in entries], "i8"),
            "mtime_ns": np.array([entry.file.mtime_ns for entry in entries], "i8"),
            "split": _text(splits),
            "first_row": np.where(used, np.cumsum(steps) - steps, -1),
            "first_action": np.where(used, np.cumsum(actions) - actions, -1),
        }
        return cls(columns)

    @classmethod
    def open(cls, folder: Path) -> Manifest:
        """Map the columns in ``folder``; ValueError if one is missing or damaged."""
        return cls({name: map_array(folder / f"{name}.npy") for name in COLUMNS})

    def save(self, folder: Path, names: Iterable[str] = COLUMNS) -> None:
        """Publish columns as ``.npy`` files."""
        for name in names:
            column = self.columns[name]
            publish(folder / f"{name}.npy", partial(_save, column), replace=True)

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def text(self, column: str, row: int) -> str:
        """One cell of a text column."""
        return os.fsdecode(bytes(self.columns[column][row]))

    def entry(self, row: int) -> Entry:
        """A row as :func:`read_entry` gave it."""
        numbers = {name: self.columns[name][row].item() for name in ("root", "size", "mtime_ns")}
        return Entry(
            FileState(path=self.text("path", row), **numbers),
            self.text("task", row),
            self.text("episode_id", row),
            int(self.columns["num_steps"][row]),
            bool(self.columns["success"][row]),
            self.text("digest", row),
        )

    def rows(self, split: str | None = None) -> np.ndarray:
        """Rows of the episodes of a split, or of all that the cache holds; int64."""
        column = self.columns["split"]
        chosen = column != b"" if split is None else column == split.encode()
        return np.flatnonzero(chosen)

    def checksum(self) -> str:
        """Hex digest of the columns, without those that say where the files lie and since when."""
        digest = hashlib.sha256()
        for name in COLUMNS:
            if name in _PLACE:
                continue
            column = np.ascontiguousarray(self.columns[name])
            digest.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
            digest.update(column.view(np.uint8).data)
        return digest.hexdigest()

    def tasks(self) -> list[str]:
        """The tasks that the cache holds, sorted."""
        return [name.decode() for name in np.unique(self.columns["task"][self.rows()])]

    def step_slices(self, split: str, first: str = "first_row") -> list[slice]:
        """Where the steps of a split's episodes stand (``first_action``: their actions)."""
        rows = self.rows(split)
        starts, lengths = self.columns[first][rows], self.columns["num_steps"][rows]
        return [slice(a, a + n) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def map_array(path: Path) -> np.ndarray:
    """A ``.npy`` file mapped read-only; ValueError if it is missing or damaged."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r")
    except Exception as error:  # whatever NumPy's parser of headers lets through
        raise ValueError(f"{path.name}: {str(error).partition(chr(10))[0]}") from None
    return mapped.view(np.ndarray)


def _save(column: np.ndarray, file: BinaryIO) -> None:
    np.save(file, column, allow_pickle=False)


def _text(values: Iterable[str]) -> np.ndarray:
    """Fixed-width bytes, as the file system has them: a quarter of NumPy's own text."""
    return np.array([os.fsencode(value) for value in values], "S")

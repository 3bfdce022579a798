"""The table of episodes, as columns that are mapped into memory: opening it is free at any size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISLNK
from typing import NamedTuple

import numpy as np

from teamvla.data.episodes import episode_names
from teamvla.errors import EpisodeError, InputError
from teamvla.files import naming

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
    "problem",  # code of what makes it unusable, or empty
    "first_row",  # in the cache's step arrays; -1 if skipped
    "first_action",  # in the cache's padded actions; -1 if skipped
)
_PLACE = ("root", "path", "size", "mtime_ns")


class FileState(NamedTuple):
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
    problem: str = ""


def list_files(roots: Sequence[Path]) -> list[FileState]:
    """Every episode file below the roots, ordered by root and path, none twice.

    Raises:
        InputError: a root is missing or holds no episode, or a file cannot be looked at.
    """
    return list(_files(roots))


def _files(roots: Sequence[Path]) -> Iterator[FileState]:
    seen: set[str] = set()
    folders: dict[str, str] = {}
    for number, root in enumerate(roots):
        for below in episode_names(root):
            path = os.path.join(root, below)  # noqa: PTH118 - a Path of each is slow
            folder, _, name = path.rpartition("/")
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            state, linked = _stat(path)
            real = os.path.realpath(path) if linked else f"{folders[folder]}/{name}"
            if real not in seen:
                seen.add(real)
                yield FileState(number, below, state.st_size, state.st_mtime_ns)


def _stat(path: str) -> tuple[os.stat_result, bool]:
    """What is behind a name, and whether the name is a link."""
    try:
        state = os.lstat(path)
        linked = S_ISLNK(state.st_mode)
        return (os.stat(path) if linked else state), linked  # noqa: PTH116
    except OSError as error:  # a link to nowhere, or removed while the folder was listed
        reason = (error.strerror or str(error)).lower()
        raise InputError(path, "an episode file", reason) from None


def unusable(path: Path, expected: str, got: str, code: str) -> EpisodeError:
    """The error for an episode that must not enter an index."""
    mend = f"Look with `teamvla validate {path}`, then repair or remove it."
    return EpisodeError(str(path), expected, got, mend, code=code)


class Manifest:
    """The columns of the table, one row per episode, ordered by root and path."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Manifest:
        """A table of entries, none of which has a split or a place in the cache yet."""
        nowhere = np.full(len(entries), -1, "i8")
        return cls(
            {
                "root": np.array([entry.file.root for entry in entries], "i4"),
                "path": as_text(entry.file.path for entry in entries),
                "task": as_text(entry.task for entry in entries),
                "episode_id": as_text(entry.episode_id for entry in entries),
                "num_steps": np.array([entry.num_steps for entry in entries], "i8"),
                "success": np.array([entry.success for entry in entries], "?"),
                "digest": as_text(entry.digest for entry in entries),
                "size": np.array([entry.file.size for entry in entries], "i8"),
                "mtime_ns": np.array([entry.file.mtime_ns for entry in entries], "i8"),
                "split": as_text(SKIPPED for _ in entries),
                "problem": as_text(entry.problem for entry in entries),
                "first_row": nowhere,
                "first_action": nowhere,
            }
        )

    def merged(self, rows: np.ndarray, other: Manifest, places: np.ndarray) -> Manifest:
        """Some rows of this table with ``other`` put in, whose rows go to ``places``."""
        total = len(rows) + len(other)
        inside = np.zeros(total, bool)
        inside[places] = True
        columns = {}
        for name in COLUMNS:
            kept, new = self.columns[name][rows], other.columns[name]
            column = np.empty(total, np.result_type(kept, new))
            column[~inside], column[inside] = kept, new
            columns[name] = column
        return Manifest(columns)

    @classmethod
    def open(cls, folder: Path) -> Manifest:
        """Map the columns in ``folder``; ValueError if one is missing or damaged."""
        return cls({name: map_array(folder / f"{name}.npy") for name in COLUMNS})

    def save(self, folder: Path) -> None:
        """Write the columns as ``.npy`` files, durably, into a folder nobody looks at yet."""
        for name in COLUMNS:
            path = folder / f"{name}.npy"
            with naming(path), path.open("wb") as file:
                np.save(file, self.columns[name], allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def text(self, column: str, row: int) -> str:
        """One cell of a text column."""
        return os.fsdecode(bytes(self.columns[column][row]))

    def texts(self, column: str) -> list[str]:
        """All cells of a text column."""
        return [os.fsdecode(cell) for cell in self.columns[column].tolist()]

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
        return sorted({name.decode() for name in self.columns["task"][self.rows()].tolist()})


def map_array(path: Path) -> np.ndarray:
    """A ``.npy`` file mapped read-only; ValueError if it is missing or damaged."""
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r")
    except Exception as error:  # whatever NumPy's parser of headers lets through
        raise ValueError(f"{path.name}: {str(error).partition(chr(10))[0]}") from None
    return mapped.view(np.ndarray)


def as_text(values: Iterable[str]) -> np.ndarray:
    """Fixed-width bytes, as the file system has them: a quarter of NumPy's own text."""
    return np.array([os.fsencode(value) for value in values], "S")

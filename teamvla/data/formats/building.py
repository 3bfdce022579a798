"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from teamvla.errors import InputError
from teamvla.files import sync_directory


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give a hidden sibling of ``folder`` to fill; it gets the name when the block ends well.

    What an earlier, killed process left in the sibling is removed first. After an error
    nothing is left.

    Raises:
        InputError: another process is filling it.
        FileExistsError: ``folder`` exists.
        OSError: the disk is full or broken; its ``filename`` is ``folder``.
    """
    if folder.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    hidden = folder.with_name(f".{folder.name}.converting")
    with _naming(folder, hidden):
        yield from _filled(folder, hidden)


def _filled(folder: Path, hidden: Path) -> Iterator[Path]:
    held = _claim(hidden)
    try:
        _empty(hidden)
        yield hidden
        _sync_below(hidden)
        # rename() would replace an empty folder that somebody made in the meantime
        if folder.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        hidden.rename(folder)
        sync_directory(folder.parent)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        os.close(held)


@contextmanager
def _naming(folder: Path, hidden: Path) -> Iterator[None]:
    """Nobody gave the hidden folder's name, and a failed write or sync has none."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is None or Path(os.fsdecode(named)).is_relative_to(hidden):
            error.filename, error.filename2 = str(folder), None
        raise


def _claim(hidden: Path) -> int:
    """A lock on the folder itself: it goes with the process, and leaves no file behind."""
    while True:
        hidden.mkdir(parents=True, exist_ok=True)
        held = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            mend = "Wait for it, or choose another --out."
            got = "another conversion under way"
            raise InputError(str(hidden), "a free folder", got, mend, code="E613") from None
        if hidden.exists() and os.fstat(held).st_ino == hidden.stat().st_ino:
            return held
        os.close(held)  # the other process renamed it between the two calls


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_below(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(place))

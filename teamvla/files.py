"""Files that are whole or not there: atomic publishing and digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from teamvla.errors import InputError


def publish(
    path: str | Path,
    fill: Callable[[BinaryIO], object],
    *,
    replace: bool = False,
    sync: bool = True,
) -> Path:
    """Write a file that appears under its name complete, or not at all.

    ``fill`` writes into a temporary file of the same directory, which is synced and
    then linked to ``path``; the directory is synced last, so that a published file
    outlives a power cut.

    Args:
        path: where the file appears; its directory is created.
        fill: writes the content into the open binary file it is given.
        replace: whether an existing file may be replaced.
        sync: ``False`` skips the fsyncs (for files that can be made again).

    Raises:
        FileExistsError: ``path`` exists and ``replace`` is false.
        OSError: the disk is full, or the directory cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            if sync:
                os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            _link_exclusively(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    if sync:
        sync_directory(path.parent)
    return path


def duplicate(source: str | Path, target: str | Path) -> Path:
    """Give a published file a second name, replacing ``target``: a link if the disk has them."""
    source, target = Path(source), Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    # rename() does nothing between two names of one file, so the left-over is removed either way.
    temporary.replace(target)
    with suppress(FileNotFoundError):
        temporary.unlink()
    return target


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _link_exclusively(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # No hard links here (FAT, some network mounts): claim the name, then rename onto it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temporary.replace(path)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8; NaN is refused (ValueError)."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    return text.encode("utf-8")


def write_json(path: str | Path, value: object) -> Path:
    """Publish ``value`` as indented JSON, replacing what was there."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return publish(path, lambda file: file.write(text.encode("utf-8")), replace=True)


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; InputError where there is none."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(str(path), "a file", "nothing there") from None
    except ValueError as error:
        raise InputError(str(path), "JSON", str(error)) from None

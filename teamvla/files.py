"""Files that are whole or not there: atomic publishing and digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    with naming(path):
        return _publish(path, fill, replace, sync)


def _publish(path: Path, fill: Callable[[BinaryIO], object], replace: bool, sync: bool) -> Path:
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
    with naming(target):
        try:
            _link_or_copy(source, temporary)
            temporary.replace(target)
        finally:
            # rename() does nothing between two names of one file: then this is left over, too.
            with suppress(FileNotFoundError):
                temporary.unlink()
    return target


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_file(path: Path, what: str) -> None:
    """InputError if ``path`` is a folder, or a pipe, which would be waited for without end."""
    if path.exists() and not path.is_file():
        got = "a folder" if path.is_dir() else "something that is no file"
        raise InputError(str(path), what, got)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what the system refuses inside the block be told of ``path``.

    A failed write knows no file, and a failed temporary one a name that nobody gave.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def check_folder(path: str | Path, option: str = "--out") -> Path:
    """``path``, if it is a folder that can be written or can be made; nothing is done yet.

    Raises:
        InputError: a file is in the way, or writing is not allowed there.
    """
    path = place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    mend = f"Choose another {option}."
    if not place.is_dir():
        raise InputError(str(place), "a folder to write into", "a file", mend)
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(str(place), "a folder to write into", "one that is read-only", mend)
    return path


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
    # File names can be any bytes; as \udcNN they are legal JSON.
    content = text.encode("utf-8", "backslashreplace")
    return publish(path, lambda file: file.write(content), replace=True)


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; InputError where there is none."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(str(path), "a file", "nothing there") from None
    except ValueError as error:
        raise InputError(str(path), "JSON", str(error)) from None

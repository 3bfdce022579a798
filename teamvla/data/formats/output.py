"""Files that libraries written in C fill, on disks that may refuse to take them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Output(io.RawIOBase):
    """A new file for a library to fill. What the disk refuses is kept, not thrown at the library.

    HDF5, the encoders and parquet's writer complain of a failed write again and again,
    up to the end of the process and past all handling of errors; some crash. So after the
    first failure everything is taken and dropped, until :meth:`check` or :func:`filling`
    raises what happened.

    Attributes:
        size: bytes that the file has, or would have.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size = self._position = 0
        self._path = path
        self._failure: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def check(self) -> None:
        """Raise what the disk answered, if it refused anything."""
        if self._failure is not None:
            raise self._failure

    def write(self, content: Buffer, /) -> int:
        view = memoryview(content).cast("B")
        with self._kept():
            self._write(view)
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            self._failure = self._failure or error

    def _write(self, view: memoryview) -> None:
        done = len(view) if self._failure else 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], self._position + done)

    def readinto(self, buffer: Buffer, /) -> int:
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        self.size = self._position if size is None else size
        with self._kept():
            if self._failure is None:
                os.ftruncate(self._descriptor, self.size)
        return self.size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


@contextmanager
def filling(path: Path) -> Iterator[Output]:
    """A file to fill inside the block; OSError at its end if the disk did not take it all."""
    file = Output(path)
    try:
        yield file
    finally:
        file.close()
        file.check()

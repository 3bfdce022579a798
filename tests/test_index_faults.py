"""Disks that refuse: whatever call of a build fails, the old index stays and the next run mends."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from synthetic import write_episodes

from teamvla.cli.app import run
from teamvla.data import Index, build_index, cache_files, manifest

SAID = {errno.ENOSPC: "no space left on the disk", errno.EIO: "input/output error"}
REASONS = pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])


class Faults:
    """Counts what a build asks of the disk, and lets the n-th call fail."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int = -1, reason: int = 0) -> None:
        self.count, self._number, self._reason = 0, number, reason
        for name in ("fsync", "fdatasync", "fchmod"):
            patch.setattr(os, name, self._wrapped(getattr(os, name)))
        for name in ("mkdir", "replace"):
            patch.setattr(Path, name, self._wrapped(getattr(Path, name)))
        patch.setattr(tempfile, "mkstemp", self._wrapped(tempfile.mkstemp))
        patch.setattr(manifest.np, "save", self._wrapped(np.save))
        patch.setattr(cache_files, "_SYNC_AFTER", 1000)
        opened = Path.open

        def open_counted(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
            if mode == "wb":
                self.call(str(path))
            file = opened(path, mode, *more, **options)
            return _Writes(file, self) if mode == "wb" else file

        patch.setattr(Path, "open", open_counted)
        fdopen = os.fdopen
        patch.setattr(
            os, "fdopen", lambda number, mode, *more: _Writes(fdopen(number, mode, *more), self)
        )

    def call(self, name: Any = None) -> None:
        """One more call, which may be the one that fails."""
        number, self.count = self.count, self.count + 1
        if number == self._number:
            raise OSError(self._reason, os.strerror(self._reason), name and str(name))

    def _wrapped(self, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            named = isinstance(arguments[0] if arguments else None, Path)
            self.call(str(arguments[0]) if named else options.get("dir"))
            return real(*arguments, **options)

        return call


class _Writes:
    """A file whose every write may be the one that fails, half of it done."""

    def __init__(self, file: BinaryIO, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, content: Any) -> int:
        try:
            self._faults.call()
        except OSError:
            self._file.write(bytes(content)[: len(bytes(content)) // 2])
            raise
        return self._file.write(content)

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def state(built: Index) -> tuple[str, bytes, bytes]:
    """What a training sees, in short."""
    table = built.episodes
    rows = np.concatenate(
        [
            np.arange(first, first + steps)
            for first, steps in zip(
                table["first_row"].tolist(), table["num_steps"].tolist(), strict=True
            )
        ]
    )
    images, vectors = built.cache.take("images", rows), built.cache.take("state", rows)
    return built.digest, images.tobytes(), vectors.tobytes()


@REASONS
def test_whichever_call_fails_the_old_index_stays_and_the_next_build_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reason: int
) -> None:
    root = tmp_path / "data"
    write_episodes(root, 2)
    old = state(build_index(root))
    shutil.copytree(root / ".index", tmp_path / "old")
    write_episodes(root, 1, first=2)
    new = state(build_index(root, tmp_path / "fresh"))
    calls = _index(root, -1, reason)
    assert calls > 40
    for number in range(calls):
        shutil.rmtree(root / ".index")
        shutil.copytree(tmp_path / "old", root / ".index")
        capsys.readouterr()
        _index(root, number, reason, expected=3)
        said = capsys.readouterr().err
        assert SAID[reason] in said.lower(), (number, said)
        assert str(root / ".index") in said, (number, said)
        assert said.count("error:") == 1
        after = Index.open(root / ".index")
        after.verify()
        assert state(after) in (old, new)  # the new one where it failed behind the last rename
        assert list(after.damaged()) == []
        assert state(build_index(root)) == new


def _index(root: Path, number: int, reason: int, expected: int = 0) -> int:
    """Run the command while one call fails; how many calls there were."""
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, number, reason)
        assert run(["index", str(root), "-q"]) == expected, number
    return faults.count


@REASONS
def test_a_first_build_that_fails_leaves_nothing(tmp_path: Path, reason: int) -> None:
    write_episodes(tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        Faults(patch, 12, reason)
        assert run(["index", str(tmp_path), "-q"]) == 3
    assert not (tmp_path / ".index").exists()


def test_what_the_disk_refuses_late_is_told(tmp_path: Path) -> None:
    """The thread that waits for the disk hands its error on when the file closes."""
    file = cache_files.ArrayFile(tmp_path / "a.npy", np.dtype("u1"), ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_files, "_SYNC_AFTER", 1)
        patch.setattr(os, "fdatasync", _refuse)
        file.append(np.zeros(10, np.uint8))
        with pytest.raises(OSError, match="Input/output") as told:
            file.close()
    assert told.value.filename == str(tmp_path / "a.npy")


def _refuse(descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))

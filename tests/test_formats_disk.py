"""Conversions onto disks that are full, or broken: one error, nothing half-written, and again."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_episodes

from teamvla.cli.app import run
from teamvla.data import find_episodes, read_episode
from teamvla.data.formats import FORMATS, ConvertConfig, Target, convert
from teamvla.data.formats.output import Output, filling
from teamvla.data.formats.verify import same

#: format and pictures
KINDS = [(name, "png") for name in FORMATS if issubclass(FORMATS.get(name), Target)]
KINDS.append(("lerobot", "video"))
_PATCHED = {
    os: ("pwrite", "fsync", "link", "fchmod", "ftruncate", "fdopen", "mkdir", "rename", "replace"),
    tempfile: ("mkstemp",),
}


class Faults:
    """Counts the calls that change the disk and lets the n-th fail, and maybe all later ones."""

    def __init__(
        self, patch: pytest.MonkeyPatch, number: int = -1, reason: int = 0, lasting: bool = False
    ) -> None:
        self.count, self.fired = 0, False
        self._number, self._reason, self._lasting = number, reason, lasting
        for module, names in _PATCHED.items():
            for name in names:
                patch.setattr(module, name, self._wrapped(name, getattr(module, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self._number or (self._lasting and number > self._number >= 0):
                self.fired = True
                if name == "pwrite":  # a disk that fills up takes the first part
                    descriptor, content, offset = arguments
                    real(descriptor, content[: len(content) // 2], offset)
                if name == "fdopen":
                    os.close(arguments[0])
                raise OSError(self._reason, os.strerror(self._reason))
            return real(*arguments, **options)

        return call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk") / "eps"
    write_episodes(root, 2)
    return root


def command(root: Path, name: str, images: str, out: Path) -> list[str]:
    return ["convert", str(root), "--to", name, "--out", str(out), "--images", images, "-q"]


def is_whole(root: Path, out: Path, *, lossy: bool) -> bool:
    """Whether ``out`` holds all episodes, as its own reader sees it."""
    back = out.with_name(f"{out.name}-back")
    convert(out, "episodes", back)
    found = find_episodes(back)
    for path in find_episodes(root):
        before, after = (read_episode(p).fields for p in (path, back / path.relative_to(root)))
        for name, values in before.items():
            assert same(values, after[name]) or (lossy and name.startswith("rgb")), name
    shutil.rmtree(back)
    return len(found) == len(find_episodes(root))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def chosen(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, evenly, the first and the last of them."""
    number = min(most, count)
    return [index * (count - 1) // max(1, number - 1) for index in range(number)]


def sweep(root: Path, tmp_path: Path, capsys: Any, kind: tuple[str, str], most: int) -> int:
    """Let ``most`` of the calls fail, one after another; how many failures told of themselves."""
    name, images = kind
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        assert run(command(root, name, images, tmp_path / "counted")) == 0
    capsys.readouterr()
    failed = 0
    for number in chosen(faults.count, most):
        reason = (errno.ENOSPC, errno.EIO)[number % 2]
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            fault = Faults(patch, number, reason, lasting=number % 3 == 0)
            code = run(command(root, name, images, out))
        said = capsys.readouterr().err
        assert fault.fired
        lossy = images == "video"
        if code == 0:  # the call was of no consequence: a folder that was there, a second name
            assert is_whole(root, out, lossy=lossy)
            continue
        assert code == 3, (number, said)
        errors = [line for line in said.splitlines() if "dropped" not in line]
        assert len(errors) == 1, said
        assert str(out) in errors[0]
        assert ".converting" not in errors[0]
        if name == "episodes":
            assert all(read_episode(path).num_steps for path in out.rglob("[!.]*.npz"))
        elif out.exists():  # only what failed after the renaming
            assert is_whole(root, out, lossy=lossy)
        else:
            assert hidden(out.parent) == []
        assert run(command(root, name, images, out)) == 0
        assert is_whole(root, out, lossy=lossy)
        assert hidden(out.parent) == []
        failed += 1
        capsys.readouterr()
    return failed


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_whichever_write_fails_one_error_tells_and_a_second_run_succeeds(
    root, tmp_path, capsys, kind
):
    assert sweep(root, tmp_path, capsys, kind, 12 if kind[1] == "png" else 5) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_single_write_may_fail(root, tmp_path, capsys, kind):
    most = 100_000 if kind[1] == "png" else 200  # an encoder takes its time
    assert sweep(root, tmp_path, capsys, kind, most) > 15


_FULL = """
import subprocess, sys
from pathlib import Path
from teamvla.cli.app import run

source, name, images, place = sys.argv[1:]
mount, fits = Path(place), False
mount.mkdir()
for size in range(8, 400, 28):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "small", place], check=True)
    out = mount / "out"
    code = run(["convert", source, "--to", name, "--out", str(out), "--images", images, "-q"])
    left = sorted(path.name for path in mount.rglob("*"))
    print(code, *left, flush=True)
    subprocess.run(["umount", "-l", place], check=True)
"""


def own_mounts() -> bool:
    try:
        done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"],
                              capture_output=True, check=False, timeout=20)  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not own_mounts(), reason="needs mounts of its own (unshare -rm)")
@pytest.mark.parametrize("name", ["aloha", "robomimic", "lerobot"])
def test_a_disk_that_is_really_full(root, tmp_path, name):
    program = [sys.executable, "-c", _FULL, str(root), name, "png", str(tmp_path / "small")]
    done = subprocess.run(
        ["unshare", "-rm", *program], capture_output=True, text=True, check=True, timeout=120
    )
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line[:1].isdigit()]
    codes = [line[0] for line in lines]
    assert {"0", "3"} == set(codes)
    assert [line for line in lines if line[0] == "3" and len(line) > 1 and line[1]] == []
    said = done.stderr.splitlines()
    assert len(said) == codes.count("3"), done.stderr  # the libraries add nothing of their own
    assert all("out: no space left on the disk" in line for line in said)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_limit_on_the_size_of_a_file_is_one_error(root, tmp_path, capsys, kind):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        code = run(command(root, *kind, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 3
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run(command(root, *kind, tmp_path / "out")) == 0


def test_a_file_keeps_the_first_failure_until_it_is_asked(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b"

    def fill() -> None:
        with filling(path) as file:
            file.write(b"taken")
            with monkeypatch.context() as patch:
                Faults(patch, 0, errno.ENOSPC)
                assert file.write(b"refused") == 7
            file.write(b"dropped")
            assert (file.size, file.tell()) == (19, 19)
            raise RuntimeError("what a library makes of it")

    with pytest.raises(OSError, match="No space") as caught:
        fill()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"taken" + b"ref"


def test_a_file_is_written_and_read_where_it_is_told(tmp_path):
    with filling(tmp_path / "file") as file:
        file.write(b"0123456789")
        assert file.seek(-4, os.SEEK_END) == 6
        assert file.read(2) == b"67"
        file.seek(2)
        file.write(b"ab")
        assert file.seek(1, os.SEEK_CUR) == 5
        file.truncate(8)
    assert (tmp_path / "file").read_bytes() == b"01ab4567"
    with pytest.raises(FileExistsError):
        Output(tmp_path / "file")


def test_an_encoder_is_closed_quietly_when_the_disk_is_full(root, tmp_path, monkeypatch, capfd):
    config = ConvertConfig(images="video")
    with monkeypatch.context() as patch:
        Faults(patch, 8, errno.ENOSPC, lasting=True)
        with pytest.raises(OSError, match="No space"):
            convert(root, "lerobot", tmp_path / "out", config=config)
    assert capfd.readouterr().err == ""

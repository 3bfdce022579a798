"""Hostile and clumsy users: one clear message, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from refusals import Refused, state_of
from sample_steps import npy, rewrite, write_episode, zip_of

from teamvla.cli.app import run
from teamvla.data import Index

TINY = ("--set", "task.camera.height=16", "--set", "task.camera.width=16")
TRAIN = [part for item in SMALL for part in ("--set", item)]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


# --- roots --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["validate"], ["index"], ["train", "--data"]])
def test_a_root_that_is_missing_or_empty(refused, tmp_path, command):
    (tmp_path / "empty").mkdir()
    assert "nothing there" in refused(2, *command, tmp_path / "nowhere")
    assert "Record some with: teamvla record" in refused(2, *command, tmp_path / "empty")


@pytest.mark.parametrize("command", [["index"], ["train", "--data"]])
def test_a_root_that_is_a_file(refused, tmp_path, command):
    (tmp_path / "file").touch()
    assert "a folder of episodes, got a file" in refused(2, *command, tmp_path / "file")


# --- episodes -----------------------------------------------------------------------------


class Payload:
    """Creates a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def bomb(path: Path) -> None:
    """40 members of 64 MiB of zeros each, in 3 MB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(64 << 20)
    packed, crc = deflate.compress(zeros) + deflate.flush(), zlib.crc32(zeros)
    content, directory = bytearray(), bytearray()
    for number in range(40):
        name = f"m{number:02d}.npy".encode()
        fields = (20, 0, 8, 0, 33, crc, len(packed), len(zeros), len(name), 0)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *fields, 0, 0, 0, 0, len(content))
        directory += name
        content += struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + name + packed
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 40, 40, len(directory), len(content), 0)
    path.write_bytes(content + directory + end)


def with_pickle(path: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = Payload(path.parent / "executed")
    with np.load(path) as archive:
        members = {f"{name}.npy": npy(array) for name, array in archive.items()}
    path.write_bytes(zip_of({**members, "extra.npy": npy(objects, allow_pickle=True)}))


def pickle_alone(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent / "executed")))


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with np.load(path) as archive:
            rewrite(path, **{name: change(archive[name].copy())})

    return apply


def nan(array: np.ndarray) -> np.ndarray:
    array[2, 1] = np.nan
    return array


def described(**meta: Any) -> Callable[[Path], None]:
    return lambda path: rewrite(path, meta=meta) and None


CORRUPTIONS = {
    "truncated": (truncate, "E201"),
    "flipped": (flip, "E21[36]"),
    "bomb": (bomb, "E209"),
    "pickle inside": (with_pickle, "E223"),
    "pickle alone": (pickle_alone, "E201"),
    "dtype": (changed("q_a", lambda a: a.astype(np.float64)), "E105"),
    "shape": (changed("q_a", lambda a: a[:, :2]), "E106"),
    "nan": (changed("action_a", nan), "E107|E506"),
    "too many steps": (described(num_steps=10**9), "E124"),
    "too few steps": (described(num_steps=3), "E241"),
    "negative steps": (described(num_steps=-1), "E124"),
    "id with ../": (described(episode_id="../../evil"), "E123"),
    "task with ../": (described(task="../evil"), "E123"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sound episodes, ``one`` and ``two``."""
    for steps, name in ((4, "one"), (5, "two")):
        write_episode(tmp_path / "data", steps, episode_id=name)
    return tmp_path / "data"


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_bad_episode_is_found_and_named(refused, root, capsys, kind):
    corrupt, code = CORRUPTIONS[kind]
    path = root / "lift" / "one.npz"
    corrupt(path)
    before = state_of(root)
    assert run(["validate", str(root), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["invalid"], said["episodes"]) == ("findings", 1, 2)
    assert {finding["file"] for finding in said["findings"]} == {str(path)}
    assert any(re.fullmatch(code, finding["code"]) for finding in said["findings"])
    message = refused(1, "index", root)
    assert re.match(rf"\[({code})\] {re.escape(str(path))}", message), message
    assert state_of(root) == before
    assert not list(root.rglob("executed"))


@pytest.mark.parametrize("kind", ["flipped", "pickle inside", "nan"])
def test_training_refuses_a_bad_episode_before_it_writes(refused, root, tmp_path, kind):
    corrupt, code = CORRUPTIONS[kind]
    corrupt(root / "lift" / "one.npz")
    message = refused(1, "train", "--data", root, "--out", tmp_path / "run", *TRAIN)
    assert re.match(rf"\[({code})\]", message)
    assert not list(root.rglob("executed"))


def test_what_is_no_file_is_not_waited_for(refused, root, capsys):
    os.mkfifo(root / "lift" / "pipe.npz")
    (root / "lift" / "link.npz").symlink_to("nowhere")
    assert run(["validate", str(root), "--json"]) == 1
    codes = {f["file"]: f["code"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert codes == {str(root / "lift" / name): "E217" for name in ("pipe.npz", "link.npz")}
    assert "link.npz: expected an episode file" in refused(2, "index", root)
    (root / "lift" / "link.npz").unlink()
    assert "something that is no file" in refused(2, "index", root)


def test_folders_that_are_links_are_followed_once(root, tmp_path):
    (root / "lift").rename(tmp_path / "elsewhere")
    (root / "lift").symlink_to(tmp_path / "elsewhere")
    (root / "back").symlink_to(root)
    assert run(["index", str(root), "-q"]) == 0
    assert Index.open(root / ".index").num_episodes == 2


# --- a stale or damaged index -------------------------------------------------------------


def indexed(root: Path, *arguments: str) -> Index:
    assert run(["index", str(root), "-q", *arguments]) == 0
    return Index.open(root / ".index")


def content(index: Index) -> list[Any]:
    cache, table = index.cache, index.episodes
    arrays = [cache.take(name, table["first_row"]) for name in ("images", "state")]
    arrays.append(cache.chunks(table["first_action"], index.config.max_chunk))
    numbers = cache.take("language", table["first_row"]).tolist()
    texts = [cache.instructions[number] for number in numbers]
    return [index.digest, index.statistics, texts, *(array.tobytes() for array in arrays)]


def replace_one(root: Path) -> None:
    (root / "lift" / "one.npz").unlink()
    write_episode(root, steps=6, episode_id="one")


CHANGES = {
    "changed": replace_one,
    "removed": lambda root: (root / "lift" / "one.npz").unlink(),
    "added": lambda root: write_episode(root, episode_id="three"),
    "touched": lambda root: os.utime(root / "lift" / "one.npz", ns=(1, 1)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_stale_index_is_brought_up_to_date(root, tmp_path, kind):
    indexed(root)
    CHANGES[kind](root)
    shutil.copytree(root / "lift", tmp_path / "fresh" / "lift")
    assert content(indexed(root)) == content(indexed(tmp_path / "fresh"))


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "header": lambda content: content.replace(b"{", b"\x00{", 1),
    "brackets": lambda content: content.replace(b")", b" ", 1).replace(b"}", b" ", 1),
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "json of another kind": lambda content: b"[]",
}
SMALL_FILES = (
    "manifest/path.npy", "manifest/num_steps.npy", "manifest/digest.npy", "manifest/size.npy",
    "manifest/split.npy", "../shard-0001/instructions.npy", "statistics.json", "../summary.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_index_is_built_anew(root, capsys, kind):
    whole = content(indexed(root))
    for name in SMALL_FILES:
        path = Index.open(root / ".index").folder / json.loads(
            (root / ".index" / "summary.json").read_text()
        )["build"] / name  # fmt: skip
        path.write_bytes(DAMAGES[kind](path.read_bytes()))
        os.utime(root / "lift" / "one.npz")  # so that what stands would be built upon
        assert content(indexed(root)) == whole, name
    assert "internal error" not in capsys.readouterr().err


def test_cached_arrays_of_another_length_are_not_used(root):
    index = indexed(root)
    whole = content(index)
    path = index.folder / "shard-0001" / "state.npy"
    np.save(path, np.load(path)[:-1])
    assert content(indexed(root)) == whole


def test_damaged_steps_are_not_copied_into_a_new_shard(refused, root):
    index = indexed(root)
    path = index.folder / "shard-0001" / "language.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    said = refused(2, "index", root, "--set", "index.max_chunk=7")
    assert "language of shard-0001 damaged" in said
    assert "teamvla index --rebuild" in said
    assert len(content(indexed(root, "--rebuild"))) == 6


# --- configuration and options ------------------------------------------------------------

YAML = {
    "typo": ("task:\n  max_stepz: 3\n", r":2:3: error: unknown key .*did you mean 'max_steps'"),
    "wrong type": ("task:\n  max_steps: many\n", r":2:14: error: .*valid integer"),
    "duplicate key": ("seed: 1\nseed: 2\n", r":2:1: error: duplicate key 'seed'"),
    "section": ("task: 3\n", r":1:7: error: task: expected keys and values, got 3"),
    "no yaml": ("seed: [1\n", r"error: not YAML"),
    "alias": ("task: &t {}\nrecord: *t\n", r":2:9: error: aliases are not allowed"),
    "code": ('seed: !!python/object/apply:os.mkdir ["x"]\n', r"error: not YAML"),
    "endless": ("extends: endless.yaml\n", r"layers that end"),
}


@pytest.mark.parametrize("kind", YAML)
def test_a_bad_configuration_names_its_place(refused, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    text, expected = YAML[kind]
    Path(f"{kind}.yaml").write_text(text)
    assert re.search(expected, refused(2, "record", "--config", f"{kind}.yaml", "--out", "data"))


OPTIONS = {
    "unknown task": (["record", "--task", "lfit"], "command line: error: .*Did you mean 'lift'"),
    "task with ../": (["record", "--task", "../../x"], "expected a known name"),
    "unknown model": (["train", "--set", "model.type=vlb"], "model 'vlb': expected a known name"),
    "unknown device": (["train", "--device", "tpu"], "device 'tpu': expected auto, cpu, cuda"),
    "no cuda": (["train", "--device", "cuda:99"], "expected a CUDA device of this machine"),
    "no episodes": (["record", "--episodes", "0"], "'--episodes'"),
    "no workers": (["record", "--workers", "0"], "'--workers'"),
    "negative seed": (["record", "--seed", "-1"], "'--seed'"),
    "endless seed": (["record", "--seed", "9" * 70], "'--seed'"),
    "success of 200 %": (["eval", "x.ckpt", "--min-success", "2"], "'--min-success'"),
    "success of nan": (["eval", "x.ckpt", "--min-success", "nan"], "'--min-success'"),
    "no checkpoint": (["eval", "x.ckpt"], "x.ckpt: expected a checkpoint file, got no such file"),
    "a folder for a checkpoint": (["ckpt-inspect", "."], "a checkpoint file, got a folder"),
    "a tray without mass": (["record", "--set", "task.tray_mass=[0, 1]"], "greater than 0"),
    "no words": (["record", "--set", "task.instructions=['']"], "at least 1 character"),
    "threads without end": (["train", "--set", "trainer.threads=100000"], "or equal to 1024"),
    "half a setting": (["record", "--set", "task"], "KEY=VALUE"),
    "resume and more": (["train", "--resume", "run", "--seed", "3"], "--resume: expected to stand"),
    "resume of nothing": (["train", "--resume", "run"], "the folder of a run"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_bad_option_is_refused_before_anything_is_written(refused, root, monkeypatch, kind):
    monkeypatch.chdir(root.parent)
    indexed(root)
    words, expected = OPTIONS[kind]
    given = (
        ["--data", root, "--out", "new"] if words[0] == "train" and "--resume" not in words else []
    )
    assert re.search(expected, refused(2, *words, *given))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 44 GB")]
)
def test_too_little_memory_is_no_internal_error(refused, monkeypatch, error):
    def load(name: str) -> None:
        raise error

    monkeypatch.setattr("teamvla.cli.app.load", load)
    assert refused(3, "index", "data").startswith("out of memory")

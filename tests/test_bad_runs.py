"""Full disks, folders in the way, damaged checkpoints, odd places: nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from refusals import Refused, state_of
from sample_steps import write_episode
from test_bad_input import content, indexed

from teamvla.checkpoint import read_checkpoint, write_checkpoint
from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.data import Index
from teamvla.train import bc_trainer
from teamvla.train.journal import read_metrics

TINY = ("--set", "task.camera.height=16", "--set", "task.camera.width=16")
LITTLE = (*SMALL, "model.fusion.hidden_dim=32", "model.fusion.num_blocks=1", "trainer.epochs=1")
TRAIN = [part for item in LITTLE for part in ("--set", item)]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One sound episode, indexed."""
    write_episode(tmp_path / "data")
    indexed(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def finished(lift_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of one epoch."""
    project = Project.load("train_bc", LITTLE).replace("dataset", roots=[str(lift_root)])
    return bc_trainer.main(project, tmp_path_factory.mktemp("finished") / "run").folder


# --- folders in the way -------------------------------------------------------------------


def commands_that_write(root: Path, checkpoint: Path) -> list[list[object]]:
    return [
        ["record", "--episodes", 1, *TINY],
        ["train", "--data", root, *TRAIN],
        ["eval", checkpoint, "--episodes", 1],
        ["quickstart"],
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_file_in_the_way_is_told_before_the_work(refused, root, finished, number):
    (root.parent / "file").touch()
    words = commands_that_write(root, finished / "checkpoints" / "best.ckpt")[number]
    for out in ("file", "file/below"):
        message = refused(2, *words, "--out", root.parent / out)
        assert "file: expected a folder to write into, got a file. Choose another --out" in message


def make_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests may not rely on the system for: nothing stops the superuser."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))


@pytest.mark.parametrize("number", range(4))
def test_a_read_only_folder_is_told_before_the_work(refused, root, finished, monkeypatch, number):
    words = commands_that_write(root, finished / "checkpoints" / "best.ckpt")[number]
    indexed(root)
    make_read_only(monkeypatch)
    message = refused(2, *words, "--out", root.parent / "out" / "below")
    assert f"{root.parent}: expected a folder to write into, got one that is read-only" in message


# --- full disks ---------------------------------------------------------------------------


class Disk:
    """Lets ``room`` more files reach the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, file: Any) -> None:
        if self.room < 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._sync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_full_disk_ends_a_recording_that_goes_on_later(tmp_path, capsys, disk):
    record = ["record", "--episodes", "3", *TINY, "-q", "--out"]
    assert run([*record, str(tmp_path / "whole")]) == 0
    disk.room = 5  # a journal, its folder, the journal at step 100, the episode, its folder
    assert run([*record, str(tmp_path / "parts"), "--json"]) == 3
    message = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["message"]
    assert re.match(r"\[E308\] .*s0-000001.npz: expected room on the disk", message)
    assert [*state_of(tmp_path / "parts")] == ["lift/s0-000000.npz"]
    disk.room = float("inf")
    assert run([*record, str(tmp_path / "parts")]) == 0
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")


def test_a_full_disk_leaves_the_index_as_it_was(root, refused, disk):
    whole = content(indexed(root))
    write_episode(root, episode_id="three")
    disk.room = 2
    assert "no space left on the disk" in refused(3, "index", root)
    assert content(Index.open(root / ".index")) == whole


def test_a_full_disk_leaves_the_last_checkpoint(lift_root, tmp_path, capsys, disk):
    options = ["--data", str(lift_root), "--out", str(tmp_path / "run"), "-q", *TRAIN]
    options += ["--set", "trainer.epochs=2"]
    disk.room = 4  # the configuration and a checkpoint, each with its folder
    assert run(["train", *options]) == 3
    assert "ckpt: no space left on the disk" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_0001.ckpt", "last.ckpt"]
    disk.room = float("inf")
    assert run(["train", "--resume", str(tmp_path / "run"), "-q"]) == 0


# --- checkpoints --------------------------------------------------------------------------

Parts = tuple[dict[str, Any], dict[str, np.ndarray]]


def without(*prefixes: str) -> Callable[..., Parts]:
    def change(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Parts:
        kept = {k: v for k, v in arrays.items() if not k.startswith(prefixes)}
        return {k: v for k, v in meta.items() if not f"{k}.".startswith(prefixes)}, kept

    return change


def with_meta(**values: Any) -> Callable[..., Parts]:
    return lambda meta, arrays: ({**meta, **values}, arrays)


def with_contract(**values: Any) -> Callable[..., Parts]:
    return lambda meta, arrays: ({**meta, "contract": {**meta["contract"], **values}}, arrays)


def without_links(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Parts:
    arms = [
        {"name": arm["name"], "joints": [link["joint"] for link in arm["links"]]}
        for arm in meta["contract"]["arms"]
    ]
    return with_contract(arms=arms)(meta, arrays)


#: what is done to a checkpoint -> what `eval` and `train --init-from` say; None: they go on
CHECKPOINTS: dict[str, tuple[Callable[..., Parts], str | None, str | None]] = {
    "another contract": (
        with_contract(control_hz=50.0), "control_hz: 50.0 != 20.0", "control_hz: 20.0 != 50.0",
    ),
    "other actions": (
        with_contract(action="delta_joint_position"),
        "action: 'delta_joint_position' != 'absolute_joint_position'",
        "action: 'absolute_joint_position' != 'delta_joint_position'",
    ),
    "arms without links": (
        without_links,
        "arms[0].joints: 6 entries != None\n  arms[0].links: 0 entries != 6 entries",
        "arms[0].joints: None != 6 entries\n  arms[0].links: 6 entries != 0 entries",
    ),
    "no probe": (without("probe."), None, None),
    "no average": (without("ema.", "probe."), None, None),
    "no weights": (without("ema.", "model."), "holds other tensors", "holds other tensors"),
    "half a probe": (without("probe.observation."), "a probe that can be run", None),
    "no configuration": (without("config."), "a header without 'config'", "without 'config'"),
    "no contract": (without("contract."), "without 'contract'", "without 'contract'"),
    "foreign model": (with_meta(config={"model": {"type": "x"}}), "model 'x'", "model 'x'"),
    "foreign section": (with_meta(config={"modell": {}}), "unknown key 'modell'", "unknown key"),
    "foreign statistics": (with_meta(statistics={}), "statistics of its contract", "statistics"),
}  # fmt: skip


def unfinished(checkpoint: Path) -> None:
    """Make it that of a training that was stopped just before its only epoch's end."""
    header, arrays = read_checkpoint(checkpoint)
    meta = dict(header.meta)
    checkpoint.unlink()  # it has other names
    write_checkpoint(checkpoint, meta | {"state": {**meta["state"], "epoch": 0}}, arrays)


def altered(finished: Path, path: Path, kind: str) -> Path:
    header, arrays = read_checkpoint(finished / "checkpoints" / "last.ckpt")
    return write_checkpoint(path, *CHECKPOINTS[kind][0](dict(header.meta), arrays))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


def flip_setting(content: bytes) -> bytes:
    assert content.count(b'\\"epochs\\":1') == 1
    return content.replace(b'\\"epochs\\":1', b'\\"epochs\\":3')


@pytest.mark.parametrize(
    ("damage", "code"), [(cut, "C10[14]"), (flip, "C105"), (flip_setting, "C105")]
)
def test_a_damaged_checkpoint_is_refused_everywhere(
    refused, lift_root, finished, tmp_path, damage, code
):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    damaged = damage(path.read_bytes())
    path.unlink()  # it has other names
    path.write_bytes(damaged)
    new = ["--data", lift_root, "--out", tmp_path / "new", *TRAIN]
    for words in (
        ["ckpt-inspect", "--verify", path],
        ["eval", path, "--episodes", 1],
        ["train", "--init-from", path, *new],
        ["train", "--resume", tmp_path / "run"],
    ):
        assert re.match(rf"\[{code}\] {path}: expected", refused(1, *words)), words


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_strange_checkpoint_is_refused_or_used(refused, lift_root, finished, tmp_path, kind):
    path = altered(finished, tmp_path / "odd.ckpt", kind)
    _, at_eval, at_start = CHECKPOINTS[kind]
    # 32 x 32 pictures stand in the checkpoint; without a configuration nothing says so.
    evaluate = ["eval", path, "--episodes", 1, "--set", "evaluation.pictures=0"]
    start = ["train", "--init-from", path, "--data", lift_root, *TRAIN, "--out", tmp_path / "new"]
    for words, expected in ((evaluate, at_eval), (start, at_start)):
        if expected is None:
            assert run([*map(str, words), "--set", "task.max_steps=3", "-q"]) == 0
        else:
            message = refused(1, *words)
            assert expected in message
            assert str(path) in message


def test_two_workers_say_the_same_of_a_bad_checkpoint_as_one(finished, tmp_path, capfd):
    path = altered(finished, tmp_path / "odd.ckpt", "another contract")
    said = []
    for workers in "12":
        assert run(["eval", str(path), "--episodes", "2", "--workers", workers]) == 1
        said.append(capfd.readouterr())
    assert said[0] == said[1]
    assert "control_hz: 50.0 != 20.0" in said[0].err


RESUMES = {
    "no average": "holds other tensors",
    "no probe": None,
    "foreign section": "config.yaml is not what the run was started with",
    "another contract": "control_hz: 20.0 != 50.0",
    "other actions": "action: 'absolute_joint_position' != 'delta_joint_position'",
    "arms without links": "arms[1].links: 6 entries != 0 entries",
}


@pytest.mark.parametrize("kind", RESUMES)
def test_resuming_from_a_strange_checkpoint(refused, finished, tmp_path, kind):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    altered(finished, tmp_path / "run" / "checkpoints" / "last.ckpt", kind)
    unfinished(tmp_path / "run" / "checkpoints" / "last.ckpt")
    words, expected = ["train", "--resume", tmp_path / "run"], RESUMES[kind]
    if expected is None:
        assert run([*map(str, words), "-q"]) == 0
    else:
        assert expected in refused(2 if "config.yaml" in expected else 1, *words)


def test_the_folder_of_a_run_and_its_checkpoint_are_told_apart(refused, finished, tmp_path):
    best = finished / "checkpoints" / "best.ckpt"
    assert f"got the folder of a run. Did you mean {best}?" in refused(2, "eval", finished)
    assert f"Did you mean {finished}?" in refused(2, "train", "--resume", best)
    assert "got no folder" in refused(2, "train", "--resume", tmp_path / "nothing")


@pytest.mark.parametrize("tail", [b'{"split": "tra', b"\xff\xfe", b"[1]\n", b"\x00" * 64])
def test_metrics_cut_short_do_not_stop_a_resume(finished, tmp_path, tail):
    shutil.copytree(finished, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = read_metrics(metrics)
    metrics.write_bytes(metrics.read_bytes() + tail)
    assert run(["train", "--resume", str(tmp_path / "run"), "-q"]) == 0
    assert read_metrics(metrics) == whole
    assert metrics.read_bytes().endswith(b"}\n")


# --- odd places ---------------------------------------------------------------------------


def test_recording_other_settings_into_a_folder_is_refused(refused, tmp_path):
    words = ["record", "--episodes", 1, *TINY, "--out", tmp_path / "data"]
    assert run([*map(str, words), "-q"]) == 0
    message = refused(2, *words, "--set", "record.noise.sigma=0")
    assert "an episode of other settings. Choose another --out" in message


def test_training_into_the_folder_of_a_run_is_refused(refused, lift_root, finished):
    message = refused(2, "train", "--data", lift_root, "--out", finished, *TRAIN)
    assert f"teamvla train --resume {finished}" in message


def next_command(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Run a command; the one that it names next, as a shell would take it apart."""
    assert run([*map(str, words), "--json"]) == 0
    program, *arguments = shlex.split(json.loads(capsys.readouterr().out)["next"])
    assert program == "teamvla"
    return arguments


def test_the_commands_follow_each_other_through_odd_paths(tmp_path, capsys):
    out = tmp_path / "a b\n'c' $d é"
    command = ["record", "--episodes", "2", *TINY, "--out", str(out)]
    for expected in ("validate", "index", "train"):
        command = next_command(capsys, *command)
        assert command[0] == expected
    options = ["--set", "task.max_steps=3", "--out", str(out / "r n")]
    command = next_command(capsys, *command, *TRAIN, *TINY, *options)
    evaluate = ["--episodes", "1", "--set", "evaluation.pictures=0"]
    command = next_command(capsys, *command, *evaluate)
    assert command == ["ckpt-inspect", str(out / "r n" / "checkpoints" / "best.ckpt")]
    assert run([*command, "-q"]) == 0


def test_names_that_are_no_text(refused, root):
    path = os.fsdecode(os.fsencode(root) + b"\xff")
    root.rename(path)
    assert indexed(Path(path), "--json").num_episodes == 1
    words = ["train", "--data", path, "--out", root.parent / "run", *TRAIN]
    assert "is not UTF-8; rename the folder" in refused(2, *words)


def test_a_run_goes_on_from_another_folder_if_told_where_its_data_are(
    refused, lift_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(lift_root.parent)
    words = ["train", "--data", lift_root.name, "--out", str(tmp_path / "run"), *TRAIN, "-q"]
    assert run(words) == 0
    unfinished(tmp_path / "run" / "checkpoints" / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    message = refused(2, "train", "--resume", "run")
    assert f"{lift_root.name}: expected the data of run" in message
    assert "--data" in message
    assert run(["train", "--resume", "run", "--data", str(lift_root), "-q"]) == 0


def test_a_read_only_root_without_a_home_needs_another_folder(refused, root, monkeypatch):
    shutil.rmtree(root / ".index")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    make_read_only(monkeypatch)
    assert "--out" in refused(2, "index", root)
    monkeypatch.setattr(Path, "home", lambda: Path("/proc"))
    assert "a folder for the index" in refused(2, "index", root)


# --- closed streams -----------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_change_nothing_else(root, closed):
    command = f'exec "$0" -m teamvla validate "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(root)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("ok  1 episodes" in done.stdout) == (closed == "2>&-")


def test_resuming_a_finished_run_says_so_and_builds_nothing(finished, capsys, monkeypatch):
    monkeypatch.setattr("teamvla.train.runs.open_run", None)
    before = state_of(finished)
    assert run(["train", "--resume", str(finished), "-q"]) == 0
    last = finished / "checkpoints" / "last.ckpt"
    said = capsys.readouterr().out
    assert said == f"already finished (1 epochs); a longer one starts with --init-from {last}\n"
    assert state_of(finished) == before


def test_weights_of_another_kind_of_model_are_refused_by_its_name(
    refused, lift_root, finished, tmp_path
):
    checkpoint = finished / "checkpoints" / "last.ckpt"
    words = ["train", "--init-from", checkpoint, "--data", lift_root, "--out", tmp_path / "new"]
    message = refused(1, *words, "--config", "model/act")
    assert "expected a model with model.type act, as is configured, got model.type sing" in message
    assert "Give --set model.type=single_brain" in message
    message = refused(1, *words, "--set", "model.head.type=gaussian")
    assert "got model.head.type mlp. Give --set model.head.type=mlp" in message

"""Metrics in Weights & Biases, and in the log where that does not work."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teamvla.train.bc_trainer import train
from teamvla.train.journal import MetricsJournal, read_metrics
from teamvla.train.runs import start_run
from teamvla.train.tracking import LogTracker, WandbTracker, open_tracker
from teamvla.train.trainer import TrainingState

OPEN = """
import sys
from pathlib import Path
from teamvla.train.tracking import open_tracker

assert sys.stdin.isatty()
print(type(open_tracker("grid", Path("run"), {})).__name__)
"""


class Refusal(Exception):
    """As ``wandb.Error``."""


class Wandb:
    """What is used of the package, without a service behind it.

    Attributes:
        rows: what was logged, by the name of the run.
        ended: names of the runs that were finished, and with which exit code.
        broken: raised by whatever a run is asked.
    """

    Settings = dict

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal, self.rows, self.asked = refusal, {}, []
        self.ended, self.broken = [], None

    def setup(self, settings: Any) -> None:
        assert settings["silent"]

    def init(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if self.refusal is not None:
            raise self.refusal
        name = asked["name"]
        rows = self.rows.setdefault(name, [])
        return SimpleNamespace(
            log=lambda row: self.does(rows.append, row),
            finish=lambda exit_code: self.does(self.ended.append, (name, exit_code)),
        )

    def does(self, what: Callable[[Any], None], told: Any) -> None:
        if self.broken is not None:
            raise self.broken
        what(told)


def installed(monkeypatch: pytest.MonkeyPatch, wandb: Any) -> Any:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno == logging.INFO]


def test_runs_of_one_name_in_two_folders_are_two(monkeypatch, tmp_path):
    wandb = installed(monkeypatch, Wandb())
    for folder in ("mine", "yours", "mine"):
        open_tracker("grid", tmp_path / folder / "run", {})
    first, other, again = (asked["id"] for asked in wandb.asked)
    assert first == again != other


def test_nobody_is_told_unless_a_project_is_named(monkeypatch, tmp_path):
    wandb = installed(monkeypatch, Wandb())
    assert open_tracker(None, tmp_path / "run", {}) is None
    assert wandb.asked == []
    assert not (tmp_path / "run").exists()


def test_metrics_go_to_the_project_by_split_and_step(monkeypatch, tmp_path):
    wandb = installed(monkeypatch, Wandb())
    tracker = open_tracker("grid", tmp_path / "first", {"seed": 3})
    tracker.log("train", 20, {"loss": 1.5, "lr": 0.1})
    tracker.log("val", 20, {"loss": 1.25})
    [asked] = wandb.asked
    assert (asked["project"], asked["name"], asked["config"]) == ("grid", "first", {"seed": 3})
    assert asked["dir"] == str(tmp_path / "first")
    assert wandb.rows["first"] == [
        {"train/loss": 1.5, "train/lr": 0.1, "optimizer_step": 20},
        {"val/loss": 1.25, "optimizer_step": 20},
    ]


def test_without_the_package_the_log_tells_them_after_one_warning(monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO", "teamvla")
    installed(monkeypatch, None)
    tracker = open_tracker("grid", tmp_path, {})
    tracker.log("val", 40, {"loss": 0.123456, "accuracy": 0.75})
    tracker.log("train", 60, {"loss": 0.1})
    [said] = warnings(caplog)
    assert "wandb is not installed (pip install 'teamvla[wandb]'): metrics go to the log" in said
    assert lines(caplog) == ["step 40: val: loss 0.1235, accuracy 0.75", "step 60: train: loss 0.1"]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Refusal("No API key configured. Log in."), "No API key configured. Log in"),
        (Refusal("timed out\nmore of it"), "timed out"),
        (Refusal(), "Refusal"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (ValueError("a project has no /"), "a project has no /"),
        (RuntimeError("its service is gone"), "its service is gone"),
    ],
)
def test_what_keeps_it_from_working_is_one_warning(monkeypatch, tmp_path, caplog, refusal, said):
    installed(monkeypatch, Wandb(refusal))
    assert isinstance(open_tracker("grid", tmp_path, {}), LogTracker)
    assert warnings(caplog) == [f"trainer.wandb: {said}: metrics go to the log"]


def test_a_mere_folder_of_its_name_is_not_the_package(monkeypatch, tmp_path, caplog):
    (tmp_path / "wandb").mkdir()  # as the package makes where one trains
    installed(monkeypatch, None)
    monkeypatch.delitem(sys.modules, "wandb")  # imported anew
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert isinstance(open_tracker("grid", tmp_path / "run", {}), LogTracker)
    [said] = warnings(caplog)
    assert "wandb is not installed" in said


def test_metrics_that_it_does_not_take_go_to_the_log_after_one_warning(
    monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO", "teamvla")
    wandb = installed(monkeypatch, Wandb())
    tracker = open_tracker("grid", tmp_path / "run", {})
    tracker.log("train", 20, {"loss": 2.0})
    wandb.broken = ConnectionResetError("Connection lost")
    for step in (40, 60):
        tracker.log("train", step, {"loss": 1.0})
    tracker.finish(failed=False)
    assert wandb.rows["run"] == [{"train/loss": 2.0, "optimizer_step": 20}]
    assert lines(caplog) == ["step 40: train: loss 1", "step 60: train: loss 1"]
    assert warnings(caplog) == ["trainer.wandb: Connection lost: metrics go to the log"]


def test_an_end_that_it_does_not_take_is_one_warning(monkeypatch, tmp_path, caplog):
    wandb = installed(monkeypatch, Wandb())
    tracker = open_tracker("grid", tmp_path / "run", {})
    wandb.broken = ConnectionResetError("Connection lost")
    tracker.finish(failed=False)
    assert warnings(caplog) == ["trainer.wandb: Connection lost: the run there may lack its end"]


def stops_at(poll: int) -> Callable[[], bool]:
    polls = count(1)
    return lambda: next(polls) >= poll


def breaks_at(poll: int) -> Callable[[], bool]:
    stops = stops_at(poll)
    return lambda: stops() and 1 / 0 > 0


def test_a_training_that_ends_finishes_its_run_and_tells_an_error(
    monkeypatch, small_project, tmp_path
):
    wandb = installed(monkeypatch, Wandb())
    project = small_project.replace("trainer", wandb="grid", log_every=1)
    run = start_run(project, tmp_path / "run")
    assert not train(run, stop=stops_at(3))
    assert wandb.ended == [("run", 0)]
    with pytest.raises(ZeroDivisionError):
        train(run, stop=breaks_at(3))
    assert wandb.ended == [("run", 0), ("run", 1)]
    assert len(wandb.asked) == 2


def test_a_run_of_which_nothing_comes_is_told_to_nobody(monkeypatch, tmp_path):
    wandb = installed(monkeypatch, Wandb())
    journal = MetricsJournal(
        tmp_path / "run" / "metrics.jsonl", lambda: open_tracker("grid", tmp_path / "run", {})
    )
    journal.rewind(0)
    assert wandb.asked == []
    journal.write("train", TrainingState(step=5), {"loss": 2.0})
    journal.write("val", TrainingState(epoch=1, step=9), {"loss": 1.0})
    assert len(wandb.asked) == 1
    assert wandb.rows["run"] == [
        {"train/loss": 2.0, "optimizer_step": 5},
        {"val/loss": 1.0, "optimizer_step": 9},
    ]
    assert [row["loss"] for row in read_metrics(journal.path)] == [2.0, 1.0]


# The package itself, without a network.


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package, whose folders are all below ``tmp_path``."""
    wandb = pytest.importorskip("wandb")
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb
    wandb.teardown()


def test_offline_each_run_is_written_below_its_own_folder(offline, tmp_path, caplog, capfd):
    names = ("first", "second")  # one process may train more than once
    trackers = [open_tracker("grid", tmp_path / name, {"seed": 3}) for name in names]
    for tracker, name in zip(trackers, names, strict=True):
        tracker.log("train", 20, {f"loss_of_{name}": 0.5})
    for tracker in trackers:
        assert isinstance(tracker, WandbTracker)
        tracker.finish(failed=False)
    offline.teardown()  # waits until all is written
    for name, other in (names, names[::-1]):
        [path] = (tmp_path / name).rglob("*.wandb")
        content = path.read_bytes()
        assert f"train/loss_of_{name}".encode() in content
        assert f"loss_of_{other}".encode() not in content
    assert warnings(caplog) == []
    assert capfd.readouterr() == ("", "")


def test_a_terminal_is_not_asked_for_a_key(tmp_path):
    pty = pytest.importorskip("pty")
    pytest.importorskip("wandb")
    keep = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    outside = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "TERM": "xterm"}
    mine, its = pty.openpty()
    command = [sys.executable, "-c", OPEN]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdin=its, stdout=its, stderr=its, env=keep | outside,
        start_new_session=True,
    )  # fmt: skip
    os.close(its)
    try:
        assert child.wait(60) == 0
        said = os.read(mine, 1 << 16).decode()
    finally:
        child.kill()
        child.wait()
        os.close(mine)
    assert "No API key configured" in said
    assert said.split()[-1] == "LogTracker"
    assert "Enter your choice" not in said

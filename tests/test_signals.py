"""Signals at any moment: the exit code tells which, nothing is half-written, all goes on later."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from fates import Worker
from refusals import state_of
from sample_steps import write_episode

import teamvla.cli.app as app
from teamvla.checkpoint import read_checkpoint
from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.data import Index
from teamvla.errors import CheckpointError, TeamVLAError
from teamvla.interrupts import SIGNALS, graceful_stop, interruptible
from teamvla.rollout import run_episodes
from teamvla.train import bc_trainer

TINY = ("--set", "task.camera.height=16", "--set", "task.camera.width=16")
CODES = [(number, 128 + number) for number in SIGNALS]
ROLLOUTS = (
    "trainer.rollout_every=1",
    "trainer.rollout_after=0",
    "trainer.rollout_episodes=2",
    "task.max_steps=5",
    "model.fusion.hidden_dim=32",
    "model.fusion.num_blocks=1",
)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Raise signals in the ``count``-th call of a function, before it does its work."""

    def install(target: str, count: int, *numbers: signal.Signals) -> None:
        module, _, name = target.rpartition(".")
        owner: Any = pkgutil.resolve_name(module)
        real, calls = getattr(owner, name), []

        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            for number in numbers if len(calls) == count else ():
                signal.raise_signal(number)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    return install


def ended(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """Run a command with --json: its exit code and what it says of itself."""
    capsys.readouterr()
    code = run([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, json.loads(out)


def go_on(said: dict[str, Any]) -> int:
    """Run the command that an interrupted one printed."""
    program, *words = shlex.split(said["next"])
    assert program == "teamvla"
    return run([*words, "-q"])


# --- record -------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_recording_goes_on_to_the_same_bytes(signal_at, tmp_path, capsys, number, code):
    record = ["record", "--episodes", 3, "--seed", 5, *TINY, "--out"]
    assert run([*map(str, record), str(tmp_path / "whole"), "-q"]) == 0
    signal_at("teamvla.record.recorder.rollout", 2, number)
    stopped, said = ended(capsys, *record, tmp_path / "p arts")
    assert (stopped, said["status"], said["recorded"]) == (code, "interrupted", 2)
    whole = state_of(tmp_path / "whole")
    assert state_of(tmp_path / "p arts") == {name: whole[name] for name in sorted(whole)[:2]}
    assert go_on(said) == 0
    assert state_of(tmp_path / "p arts") == whole


def test_a_second_interrupt_ends_a_recording_at_once(signal_at, tmp_path, capsys):
    signal_at("teamvla.files.os.link", 2, signal.SIGINT, signal.SIGINT)
    code, said = ended(capsys, "record", "--episodes", 3, *TINY, "--out", tmp_path)
    assert (code, said["error"]["message"]) == (130, "interrupted")
    assert [*state_of(tmp_path)] == ["lift/s0-000000.npz"]


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_of_any_kind_ends_a_recording_and_tells_how_it_goes_on(
    signal_at, tmp_path, capsys, second
):
    first = signal.SIGUSR1 if second == signal.SIGTERM else signal.SIGTERM
    signal_at("teamvla.files.os.link", 2, first, second)
    words = ["record", "--episodes", "3", *TINY, "--out", str(tmp_path)]
    assert run(words) == 128 + second
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == ["error: interrupted"]
    assert [*state_of(tmp_path)] == ["lift/s0-000000.npz"]
    told = next(line for line in said if "go on with: teamvla" in line)
    assert run([*shlex.split(told.partition("go on with: teamvla ")[2]), "-q"]) == 0
    assert len(state_of(tmp_path)) == 3


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_a_signal_that_comes_twice_at_once_is_one(caplog, number):
    with graceful_stop() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.exit_code == 128 + number
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_the_same_signal_again_later_insists(monkeypatch, number):
    monkeypatch.setattr("teamvla.interrupts._ECHO_S", 0.0)
    with interruptible() as outer, graceful_stop():
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert outer.signal == number


@pytest.mark.parametrize(("number", "code"), CODES[1:])
def test_a_signal_to_two_workers_and_their_parent(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "teamvla", "record", "--episodes", "200", "--workers", "2", *TINY,
         "--out", str(tmp_path / "parts"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("episodes (" in line for line in process.stderr)  # the first is there
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.count("received: finishing what must be safe") == 1
    assert "Traceback" not in err
    said = json.loads(out)
    names = [*state_of(tmp_path / "parts")]
    assert (said["status"], said["recorded"]) == ("interrupted", len(names))
    assert all(name.endswith(".npz") for name in names)
    assert run(["validate", str(tmp_path / "parts"), "-q"]) == 0
    assert "--episodes 200" in said["next"]


# --- worker processes ---------------------------------------------------------------------


def test_signals_do_not_reach_workers_even_while_they_start():
    assert list(run_episodes(Worker("signalled"), range(4), workers=2)) == [0, 1, 2, 3]


def test_a_worker_that_cannot_start_says_why(capfd):
    with pytest.raises(CheckpointError, match="expected another one"):
        list(run_episodes(Worker("refuses"), range(4), workers=2))
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_worker_is_told():
    with pytest.raises(TeamVLAError, match=r"one that was killed\. If memory ran out") as caught:
        list(run_episodes(Worker("killed"), range(4), workers=2))
    assert caught.value.exit_code == 3


def test_whoever_leaves_early_leaves_no_worker_behind():
    episodes = run_episodes(Worker("hangs"), range(4), workers=2)
    assert next(episodes) == 0
    ends = [child.sentinel for child in multiprocessing.active_children()]
    assert len(ends) >= 2
    episodes.close()
    for end in ends:
        assert wait([end], timeout=30)


def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import os, signal\n"
        "from teamvla.rollout import run_episodes\n"
        "from fates import Worker\n"
        "if __name__ == '__main__':\n"
        "    episodes = run_episodes(Worker('hangs'), range(4), workers=2)\n"
        "    next(episodes)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, stdout=subprocess.PIPE, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(here)},
    )  # fmt: skip
    # The workers hold the pipe, too: that it was closed shows that they are gone.
    assert done.returncode == -signal.SIGKILL


# --- commands that have nothing to save ---------------------------------------------------


@pytest.mark.parametrize(("number", "code"), CODES)
def test_an_interrupted_index_leaves_the_old_one(signal_at, tmp_path, capsys, number, code):
    write_episode(tmp_path, episode_id="one")
    assert run(["index", str(tmp_path), "-q"]) == 0
    before = state_of(tmp_path)
    write_episode(tmp_path, episode_id="two")
    signal_at("teamvla.data.index_read.pack", 1, number)
    stopped, said = ended(capsys, "index", tmp_path)
    assert (stopped, said["status"]) == (code, "interrupted")
    after = state_of(tmp_path)
    assert after.pop("lift/two.npz")
    assert after == before
    assert run(["index", str(tmp_path), "-q"]) == 0
    assert Index.open(tmp_path / ".index").num_episodes == 2


def test_an_interrupted_validation(signal_at, tmp_path, capsys):
    write_episode(tmp_path)
    signal_at("teamvla.data.validation.run._read", 1, signal.SIGINT)
    assert ended(capsys, "validate", tmp_path, "--workers", 1)[0] == 130


def test_an_import_that_a_signal_breaks_is_an_interrupt(monkeypatch, capsys):
    def load(name: str) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr(app, "load", load)
    assert ended(capsys, "validate", "data")[0] == 130


def in_a_process(code: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_ctrl_c_before_the_command_line_is_there_is_silent():
    code = (
        "import runpy, signal, sys\n"
        # A suite that was started in the background inherits a SIGINT that is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'teamvla.cli.app':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "runpy.run_module('teamvla', run_name='__main__')\n"
    )
    assert in_a_process(code) == (-signal.SIGINT, "")


def test_ctrl_c_twice_where_nothing_is_saved_ends_the_process():
    code = (
        "import signal\n"
        "from teamvla.interrupts import interruptible\n"
        "with interruptible():\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        print('not here')\n"
    )
    assert in_a_process(code) == (-signal.SIGINT, "")


# --- train --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(lift_root: Path) -> Project:
    return Project.load("train_bc", [*SMALL, *ROLLOUTS]).replace("dataset", roots=[str(lift_root)])


@pytest.fixture(scope="module")
def whole(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs that nobody interrupted."""
    return bc_trainer.main(project, tmp_path_factory.mktemp("whole") / "run").folder


def train_words(lift_root: Path, out: Path) -> list[object]:
    settings = [part for item in (*SMALL, *ROLLOUTS) for part in ("--set", item)]
    return ["train", "--data", lift_root, "--out", out, *settings]


def assert_same_run(left: Path, right: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        one, ours = read_checkpoint(left / "checkpoints" / name)
        other, theirs = read_checkpoint(right / "checkpoints" / name)
        assert ours.keys() == theirs.keys()
        for key, array in ours.items():
            assert np.array_equal(array, theirs[key]), key
        states = [{**header.meta["state"], "seconds": 0} for header in (one, other)]
        assert states[0] == states[1]


MOMENTS = {
    "within an epoch": ("teamvla.train.trainer.Learner.step", 3, signal.SIGINT),
    "in the last step of an epoch": ("teamvla.train.trainer.Learner.step", 7, signal.SIGTERM),
    "in the first rollouts": ("teamvla.evaluation.suites.rollout", 1, signal.SIGUSR1),
    "in the last rollouts": ("teamvla.evaluation.suites.rollout", 3, signal.SIGINT),
    "while a checkpoint is written": ("teamvla.files.os.replace", 1, signal.SIGTERM),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_training_goes_on_to_the_same_tensors(
    signal_at, lift_root, whole, tmp_path, capsys, moment
):
    target, count, number = MOMENTS[moment]
    signal_at(target, count, number)
    code, said = ended(capsys, *train_words(lift_root, tmp_path / "r un"))
    assert (code, said["status"], said["finished"]) == (128 + number, "interrupted", False)
    assert not [name for name in state_of(tmp_path) if name.endswith(".tmp")]
    assert go_on(said) == 0
    assert_same_run(tmp_path / "r un", whole)


def test_a_training_killed_before_its_first_checkpoint_begins_again(
    signal_at, lift_root, whole, tmp_path, capsys
):
    signal_at("teamvla.train.trainer.Learner.step", 3, signal.SIGINT, signal.SIGINT)
    code, said = ended(capsys, *train_words(lift_root, tmp_path / "run"))
    assert (code, said["error"]["message"]) == (130, "interrupted")
    assert [*state_of(tmp_path)] == ["run/config.yaml"]
    assert run(["train", "--resume", str(tmp_path / "run"), "-q"]) == 0
    assert_same_run(tmp_path / "run", whole)


def test_an_interrupted_evaluation_writes_nothing(signal_at, whole, capsys):
    signal_at("teamvla.evaluation.suites.rollout", 2, signal.SIGTERM)
    checkpoint = whole / "checkpoints" / "last.ckpt"
    before = state_of(whole)
    options = ["--episodes", 3, "--seed", 4, "--min-success", 0.9, "--set", "task.max_steps=9"]
    pictures = ["--set", "evaluation.pictures=0"]
    code, said = ended(capsys, "eval", checkpoint, *options, *pictures)
    assert (code, said["status"], said["episodes"], said["out"]) == (143, "interrupted", 2, None)
    assert state_of(whole) == before
    assert go_on(said) == 1  # it asks for 90 % again
    (written,) = checkpoint.parent.glob("eval_last_lift_s4_n3_*/report.json")
    report = json.loads(written.read_text())
    assert (report["seed"], report["episodes"]) == (4, 3)
    assert all(trial["steps"] == 9 for trial in report["trials"])


# --- quickstart ---------------------------------------------------------------------------

STAGES = {
    "record": "teamvla.record.recorder.rollout",
    "validate": "teamvla.quickstart.validate_roots",
    "index": "teamvla.quickstart.build_index",
    "train": "teamvla.train.trainer.Learner.step",
    "evaluate": "teamvla.evaluation.suites.rollout",
    "inspect": "teamvla.quickstart.verify_digest",
}


def test_a_quickstart_interrupted_in_every_stage_gets_there(
    signal_at, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("teamvla.sim.env._OVERVIEW_SIZE", (24, 32))  # the film is slow
    settings = [*SMALL, "trainer.epochs=1", "task.max_steps=110"]
    settings += ["evaluation.baselines=1", "evaluation.pictures=1"]
    words = ["quickstart", "--out", str(tmp_path / "q s"), "--episodes", "2", "--workers", "1"]
    words += ["--eval-episodes", "1", *(part for item in settings for part in ("--set", item))]
    for stage, target in STAGES.items():
        signal_at(target, 1, signal.SIGINT)
        code, said = ended(capsys, *words)
        assert (code, said["status"]) == (130, "interrupted"), stage
        words = shlex.split(said["next"])[1:]
        assert not (tmp_path / "q s" / "report.html").exists()
    assert run(words) == 0
    err = capsys.readouterr().err
    assert err.count("(done before)") == 6
    assert "Next: teamvla ckpt-inspect" in err
    names = [name for name in state_of(tmp_path) if name.endswith((".npz", ".html", "best.ckpt"))]
    assert len(names) == 2 + 1 + 2

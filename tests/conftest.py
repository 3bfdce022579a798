"""Real data for the tests: a few demonstrations recorded once a session."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import pytest

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.registry import Registry

# Read when torch is imported, by the tests that need it: as many workers as cores share them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples every time: a suite that passed must not fail on a re-run.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

#: small pictures and networks, so that a test trains in a second
SMALL = (
    "task.camera.height=32",
    "task.camera.width=32",
    "trainer.epochs=2",
    "trainer.threads=1",
    "trainer.precision=fp32",
    "trainer.rollout_every=0",
    "trainer.log_every=5",
    "trainer.checkpoint_every=1",
    "dataset.batch_size=32",
)


@pytest.fixture(scope="session")
def lift_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four demonstrations of `lift` with 32 x 32 pictures."""
    from teamvla.data.index import IndexConfig, build_index
    from teamvla.record import RecordConfig, Recorder, record
    from teamvla.sim.tasks import TaskConfig

    project = Project.load("lift", SMALL[:2])
    root = tmp_path_factory.mktemp("lift")
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    record(Recorder(task, config, root, seed=0), episodes=4)
    build_index(root, config=IndexConfig(val_fraction=0.6))
    return root


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    from teamvla.models import registries
    from teamvla.sim.tasks import TASKS

    models = [value for value in vars(registries).values() if isinstance(value, Registry)]
    for registry in (TASKS, *models):
        monkeypatch.setattr(registry, "_targets", dict(registry._all()))


@pytest.fixture
def small_project(lift_root: Path) -> Project:
    """A training on :func:`lift_root` that takes seconds."""
    return Project.load("train_bc", SMALL).replace("dataset", roots=[str(lift_root)])


class Shell:
    """Runs commands in one folder and remembers what they answered."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path, code: int = 0) -> dict:
        assert run([*map(str, words), "--json", "-q"]) == code
        return json.loads(self._capsys.readouterr().out)


@pytest.fixture
def shell(capsys, tmp_path, monkeypatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)

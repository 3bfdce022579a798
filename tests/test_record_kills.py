"""A recording that is killed at any moment goes on to the same set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kills import run_and_kill
from small_env import SmallConfig

from teamvla.config import Project
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig

Open = Callable[[Path], Recorder]


def small(out: Path) -> Recorder:
    return Recorder(SmallConfig(), RecordConfig(expert="small_env:Raises"), out, 3)


def lift(out: Path) -> Recorder:
    project = Project.load("lift", ["task.camera.height=16", "task.camera.width=16"])
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    return Recorder(task, config, out, 0)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def survives(tmp_path: Path, opened: Open, episodes: int, kills: int, within_s: float) -> None:
    record(opened(tmp_path / "whole"), episodes)
    whole = contents(tmp_path / "whole")
    killed = 0
    for seed in range(kills):
        root = tmp_path / str(seed)

        def work(_: object, root: Path = root) -> None:
            record(opened(root), episodes)

        killed += run_and_kill(work, seed, within_s).killed
        there = {name: data for name, data in contents(root).items() if name.endswith(".npz")}
        assert there.items() <= whole.items()  # nothing that is there is wrong
        record(opened(root), episodes)
        # Hidden names are what a kill leaves behind the last step; `teamvla repair` sweeps them.
        left = {name: data for name, data in contents(root).items() if "/." not in name}
        assert left == whole
    assert killed > kills // 4  # the others had finished before


def test_a_killed_recording_goes_on_to_the_same_set(tmp_path):
    survives(tmp_path, small, episodes=10, kills=12, within_s=0.1)


@pytest.mark.slow
def test_a_killed_recording_of_the_real_task_goes_on_to_the_same_set(tmp_path):
    survives(tmp_path, lift, episodes=4, kills=40, within_s=1.2)

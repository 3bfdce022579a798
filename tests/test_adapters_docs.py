"""The worked example of docs/environments.md runs as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.config.settings import Settings
from teamvla.data import find_episodes, read_episode, validate_file
from teamvla.sim import make_env
from teamvla.sim.adapters.ids import CONFIGS
from teamvla.sim.adapters.mapping import FieldMapping
from teamvla.sim.adapters.task import GymnasiumConfig
from teamvla.sim.registration import IDS
from teamvla.sim.testing import find_faults

PAGE = (Path(__file__).parent.parent / "docs" / "environments.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A folder with the page's files, which is the current one."""
    for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, flags=re.M | re.S):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder is entered when it is asked for
    yield tmp_path
    sys.modules.pop("my_pendulum", None)


def test_the_example_records_valid_episodes(example, capsys):
    arguments = ["record", "--config", "pendulum.yaml", "-n", "2", "--out", "data"]
    assert run(arguments) == 0, capsys.readouterr().err
    paths = find_episodes(example / "data")
    assert [path.parent.name for path in paths] == ["pendulum"] * 2
    for path in paths:
        assert validate_file(path) == []
        episode = read_episode(path)
        assert bool(np.asarray(episode.fields["success"])[-1])
        assert np.abs(episode.fields["torque"]).max() <= 2
        assert set(episode.fields["phase"]) <= {"swing", "hold"}


def test_the_example_keeps_the_rules_of_every_environment(example):
    task = Project.load("pendulum.yaml").section("task", Settings)
    assert find_faults(lambda: make_env(task), steps=6) == []


def test_the_page_names_every_key_of_a_mapping():
    names = {cell.split(".")[0] for cell in re.findall(r"^\| `([\w.]+)`", PAGE, flags=re.M)}
    assert set(FieldMapping.model_fields) <= names


def test_the_page_shows_the_error_as_it_is_said(example):
    from teamvla.errors import SimulationError
    from teamvla.sim.adapters.reading import pick

    seen = {"agent_position": np.zeros(14), "pixels": np.zeros((2, 2, 3))}
    with pytest.raises(SimulationError) as caught:
        pick("arms.a.q", "agent_pos[0:6]", seen, {})
    assert f"```text\n{caught.value}\n```" in PAGE


def test_the_page_lists_the_shipped_configurations():
    listed = re.findall(r"^\| `(\S+)` \| \[(\w+)\]", PAGE, flags=re.M)
    for id_, name in listed:
        task = Project.load(name).section("task", Settings)
        assert isinstance(task, GymnasiumConfig)
        assert task.id == id_
    own = {*IDS.values()}
    assert dict(listed) == {id_: name for id_, name in CONFIGS.items() if name not in own}

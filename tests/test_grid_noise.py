"""Recordings of grid worlds in which other moves are made than the expert's, and their index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import write_episodes

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.data import EpisodeWriter, find_episodes, read_episode
from teamvla.record import RecordConfig, Recorder, record
from teamvla.replay import Replayed, execute, open_recorded_env
from teamvla.sim.adapters.task import GymnasiumConfig

SLIPS = {"signals": {"action": (0.4,)}}


def recorded(name: str, root: Path, **config: object) -> Path:
    """An episode of a shipped world, without pictures."""
    pytest.importorskip("minigrid")
    task = Project.load(name).source.data["task"]
    task = {**task, "mapping": {**task["mapping"], "pictures": {}}}
    settings = RecordConfig.model_validate(config)
    record(Recorder(GymnasiumConfig.model_validate(task), settings, root, seed=0), 1)
    [path] = find_episodes(root)
    return path


def without_noise(path: Path, root: Path) -> Path:
    """The episode as if its commands had been executed as they are."""
    episode = read_episode(path)
    with EpisodeWriter(root) as writer:
        writer.start_episode({key: v for key, v in episode.meta.items() if key != "noise"})
        for step in range(episode.num_steps):
            writer.add_step(episode.step(step))
        return writer.end_episode()


def replayed(path: Path) -> Replayed:
    episode = read_episode(path)
    return execute(episode, open_recorded_env(episode.meta, str(path)))


def test_a_recording_with_other_moves_happens_again_to_the_bit(tmp_path):
    path = recorded("minigrid_empty_16x16", tmp_path / "a", noise=SLIPS)
    again = replayed(path)
    assert again.noise
    assert again.is_exact
    assert again.outcome.success
    assert not replayed(without_noise(path, tmp_path / "b")).is_exact


def test_the_expert_finds_its_way_back_from_other_moves(tmp_path):
    slipped = read_episode(recorded("minigrid_empty_16x16", tmp_path / "a", noise=SLIPS))
    straight = read_episode(recorded("minigrid_empty_16x16", tmp_path / "b"))
    assert slipped.num_steps > straight.num_steps
    assert {*slipped.fields["action"].tolist()} <= {0, 1, 2}, "of what it would do there"


def proposed(capsys: pytest.CaptureFixture[str], root: Path) -> str:
    """What indexing says to do next."""
    assert run(["index", str(root), "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)["next"]


def test_an_index_of_a_grid_world_proposes_its_own_recipe(capsys, tmp_path):
    recorded("minigrid_four_rooms", tmp_path)
    wanted = f"teamvla train --config minigrid_four_rooms --data {tmp_path}"
    assert proposed(capsys, tmp_path) == wanted


@pytest.mark.parametrize("tasks", [("lift",), ("lift", "handoff"), ("mine",)])
def test_other_data_are_trained_on_as_ever(capsys, tmp_path, tasks):
    for task in tasks:
        write_episodes(tmp_path, 2, task=task)
    assert proposed(capsys, tmp_path) == f"teamvla train --data {tmp_path}"

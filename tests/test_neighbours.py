"""Nearest-neighbour cloning: whose commands are executed, and for how long."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from teamvla.config import Project
from teamvla.data import MultiTaskDataset
from teamvla.errors import ConfigError, ContractError
from teamvla.evaluation.baselines import Deaf
from teamvla.evaluation.neighbours import Memory, NearestNeighbour, _shrunk
from teamvla.evaluation.suites import Suite, evaluate
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig

SETTINGS = ["task.camera.height=32", "task.camera.width=32"]


def task(*overrides: str) -> TaskConfig:
    return Project.load("lift", [*SETTINGS, *overrides]).section("task", TaskConfig)


@pytest.fixture(scope="module")
def data(lift_root: Path) -> MultiTaskDataset:
    return MultiTaskDataset({"roots": [str(lift_root)], "chunk_size": 16})


@pytest.fixture(scope="module")
def memory(lift_root: Path) -> Memory:
    return Memory(NearestNeighbour(lift_root))


def seen_at(data: MultiTaskDataset, row: int) -> tuple[np.ndarray, dict]:
    """State and observation of a recorded step."""
    sample = data[row]
    pictures = sample["observations"]["image"].transpose(0, 2, 3, 1)
    words = {"instruction": sample["language"], "task": "lift"}
    fields = zip(data.contract.cameras, pictures, strict=True)
    return sample["observations"]["state"], {c.field: p for c, p in fields} | words


@pytest.mark.parametrize("row", [0, 17, 60])
def test_a_recorded_step_is_its_own_nearest(data, memory, row):
    assert memory.nearest(*seen_at(data, row)) == row
    assert np.array_equal(memory.commands(row), data[row]["actions"])


def test_pictures_decide_where_the_state_is_the_same(data, memory):
    state, _ = seen_at(data, 10)
    _, pictures = seen_at(data, 50)
    assert memory.nearest(state, pictures) != 10


def test_without_weight_pictures_do_not_count(lift_root, data):
    memory = Memory(NearestNeighbour(lift_root, picture_weight=0.0))
    state, _ = seen_at(data, 10)
    _, pictures = seen_at(data, 50)
    assert memory.nearest(state, pictures) == 10


def test_the_same_instruction_comes_first(lift_root, data):
    memory = Memory(NearestNeighbour(lift_root))
    memory._texts = np.array(["one"] * 20 + ["other"] * (len(data) - 20), object)
    state, observation = seen_at(data, 10)
    assert memory.nearest(state, observation | {"instruction": "one"}) == 10
    assert memory.nearest(state, observation | {"instruction": "other"}) >= 20


def test_an_unknown_instruction_leaves_the_task_and_then_everything(lift_root, data):
    memory = Memory(NearestNeighbour(lift_root))
    memory._tasks = {"lift": np.arange(5), "drawer": np.arange(5, len(data))}
    state, observation = seen_at(data, 10)
    assert memory.nearest(state, observation | {"instruction": "?"}) < 5
    assert memory.nearest(state, observation | {"instruction": "?", "task": "?"}) == 10


def test_commands_are_executed_before_the_next_look(lift_root, data):
    env = make_env(task())
    actor = NearestNeighbour(lift_root, steps=3)(env)
    actor.reset()
    state, first = seen_at(data, 5)
    _, later = seen_at(data, 40)
    joints = {"q_a": state[:6], "grip_q_a": state[6], "q_b": state[7:13], "grip_q_b": state[13]}
    done = [np.concatenate(actor.act(seen | joints)) for seen in (first, later, later)]
    assert np.array_equal(done, data[5]["actions"][:3])
    actor.reset()
    assert np.array_equal(np.concatenate(actor.act(first | joints)), done[0])
    env.close()


def test_the_mean_of_every_area_is_kept():
    ramp = np.arange(36, dtype=np.uint8).reshape(1, 1, 1, 6, 6)
    corners = [ramp[..., y : y + 3, x : x + 3].mean() / 255 for y in (0, 3) for x in (0, 3)]
    assert np.allclose(_shrunk(ramp, 2), [corners], rtol=1e-6)
    assert _shrunk(ramp, 4)[0, 0] == 0.0
    assert np.array_equal(_shrunk(ramp, 9), ramp.reshape(1, 36).astype(np.float32) / 255)


def test_it_moves_like_the_demonstrations_in_closed_loop(lift_root):
    actor = pickle.loads(pickle.dumps(NearestNeighbour(lift_root)))
    suite = Suite(task("task.max_steps=60"))
    score = evaluate(suite, actor, 2)
    assert score.broken == 0
    assert [t.reward for t in score.trials] == [t.reward for t in evaluate(suite, actor, 2).trials]


def test_another_robot_is_refused(lift_root):
    with pytest.raises(ContractError, match="camera"):
        NearestNeighbour(lift_root)(make_env(Project.load("lift").section("task", TaskConfig)))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"side": 0}, {"picture_weight": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NearestNeighbour(Path("data"), **wrong)


def test_the_deaf_are_told_nothing():
    class Listener:
        def reset(self) -> None:
            self.heard = None

        def act(self, observation):
            self.heard = observation
            return []

    listener = Listener()
    deaf = Deaf(listener)
    deaf.reset()
    deaf.act({"instruction": "lift", "task": "lift"})
    assert listener.heard == {"instruction": "", "task": "lift"}

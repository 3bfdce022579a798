"""The Gymnasium ids: what they make, alone and many at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

import teamvla.sim
from teamvla.errors import ConfigError
from teamvla.sim.interface import RobotEnv
from teamvla.sim.registration import IDS
from teamvla.sim.tasks import TASKS

assert teamvla.sim
SMALL = {"camera": {"height": 16, "width": 24}}
HANDOFF = "teamvla/TwoArmHandoff-v0"
FRESH = """
import sys, gymnasium, teamvla.sim
assert {"mujoco", "torch"}.isdisjoint(sys.modules)
env = gymnasium.make("teamvla/TwoArmHandoff-v0", camera={"height": 16, "width": 16})
print(env.reset(seed=1)[1]["task"])
"""


def run_many(env_id: str, mode: str, **vector: Any) -> list[dict[str, Any]]:
    """What three environments at once show in some steps, stacked."""
    envs = gymnasium.make_vec(
        env_id, num_envs=3, vectorization_mode=mode, vector_kwargs=vector, **SMALL
    )
    try:
        seen, _ = envs.reset(seed=5)
        shown = [{**seen}]
        for commands in actions(envs.single_action_space):
            seen, rewards, _, _, info = envs.step(np.stack(commands))
            shown.append({**seen, "reward": rewards, "success": info["success"]})
        return [{name: np.array(value) for name, value in one.items()} for one in shown]
    finally:
        envs.close()


def run_alone(env_id: str) -> list[dict[str, Any]]:
    """The same of single environments, stacked."""
    envs = [gymnasium.make(env_id, **SMALL) for _ in range(3)]
    firsts = [env.reset(seed=5 + number)[0] for number, env in enumerate(envs)]
    shown = [{name: np.stack([first[name] for first in firsts]) for name in firsts[0]}]
    for commands in actions(envs[0].action_space):
        given = [env.step(command) for env, command in zip(envs, commands, strict=True)]
        seen = {name: np.stack([one[0][name] for one in given]) for name in given[0][0]}
        seen["reward"] = np.array([one[1] for one in given])
        seen["success"] = np.array([one[4]["success"] for one in given])
        shown.append(seen)
    return shown


def actions(space: Any, steps: int = 4) -> list[list[Any]]:
    space.seed(3)
    return [[space.sample() for _ in range(3)] for _ in range(steps)]


def require_equal(many: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert len(many) == len(alone)
    for one, other in zip(many, alone, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def test_every_task_of_this_package_has_an_id() -> None:
    assert set(IDS.values()) == {
        name for name in TASKS
        if name != "gymnasium" and TASKS.get(name).__module__.startswith("teamvla.")
    }  # fmt: skip
    assert IDS.keys() <= gymnasium.registry.keys()


@pytest.mark.parametrize(("env_id", "task"), IDS.items())
def test_an_id_makes_its_task(env_id: str, task: str) -> None:
    env = gymnasium.make(env_id, **SMALL, max_steps=77)
    inner = env.unwrapped
    assert isinstance(inner, RobotEnv)
    observation, info = env.reset(seed=2)
    assert (info["task"], inner.max_steps) == (task, 77)
    assert env.observation_space.contains(observation)
    assert all((c.height, c.width) == (16, 24) for c in inner.contract.cameras)
    env.close()


def test_registering_imports_no_simulator() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "handoff"


def test_settings_may_be_given_whole() -> None:
    config = TASKS.get("handoff").Config(name="handoff", max_steps=9)
    assert gymnasium.make(HANDOFF, config=config).unwrapped.max_steps == 9  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="config or single settings"):
        gymnasium.make(HANDOFF, config=config, max_steps=3)


def test_settings_that_there_are_not_are_named() -> None:
    with pytest.raises(ConfigError, match="task handoff:\ncolour: "):
        gymnasium.make(HANDOFF, colour=3)
    with pytest.raises(ConfigError, match="render_mode: expected rgb_array or None, got 'human'"):
        gymnasium.make(HANDOFF, render_mode="human")


@pytest.mark.parametrize("env_id", IDS)
def test_many_at_once_show_what_single_ones_do(env_id: str) -> None:
    require_equal(run_many(env_id, "sync"), run_alone(env_id))


def test_many_in_processes_show_what_single_ones_do() -> None:
    require_equal(run_many(HANDOFF, "async", context="spawn"), run_alone(HANDOFF))

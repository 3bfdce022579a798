"""The two-arm environment: Gymnasium's rules, determinism, state, refused actions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from teamvla.errors import RegistryError, SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.interface import State
from teamvla.sim.scene import HOME, JOINTS
from teamvla.sim.tasks import TASKS, TaskConfig, TwoArmTaskConfig

STAY = np.array([*HOME, 0.0] * 2, np.float32)


def small_env(**task: object) -> TwoArmEnv:
    camera = {"height": 24, "width": 32}
    return make_env(TwoArmTaskConfig.model_validate({"camera": camera, **task}))


def small_env_of(task: str) -> TwoArmEnv:
    camera = {"height": 8, "width": 8, "shadows": False}
    return make_env(TASKS.get(task).Config.model_validate({"name": task, "camera": camera}))


def wander(env: TwoArmEnv, seed: int, steps: int = 12) -> str:
    """Digest of all observations of some random motion."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        for name in sorted(obs):
            digest.update(obs[name].tobytes())
        obs, *_ = env.step(STAY + rng.normal(0, 0.2, 14).astype(np.float32))
    return digest.hexdigest()


def test_env_checker_is_satisfied() -> None:
    import teamvla.sim

    assert teamvla.sim
    env = gymnasium.make("teamvla/TwoArmLift-v0", render_mode="rgb_array")
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        # Targets in radians are no normalised action, and are not meant to be one.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space.*")
        check_env(env.unwrapped)
    env.close()


def test_observation_has_the_fields_and_types_of_the_contract() -> None:
    env = small_env()
    obs, info = env.reset(seed=3)
    kinds = {name: (value.dtype.name, value.shape) for name, value in obs.items()}
    arm = {"rgb": ("uint8", (24, 32, 3)), "q": ("float32", (6,)), "grip_q": ("float32", ())}
    assert kinds == {f"{field}_{side}": kind for field, kind in arm.items() for side in "ab"}
    assert info["instruction"] in env.config.instructions
    assert (info["task"], info["success"]) == ("lift", False)
    assert [(c.field, c.height, c.width) for c in env.contract.cameras] == [
        ("rgb_a", 24, 32),
        ("rgb_b", 24, 32),
    ]


def test_same_seed_and_actions_give_identical_observations_in_another_process() -> None:
    code = "from test_sim_env import *; print(wander(small_env(), 7))"
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent)}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables
    )
    assert other.stdout.strip() == wander(small_env(), 7)


def test_an_episode_does_not_depend_on_those_before_it() -> None:
    used, fresh = small_env(), small_env()
    wander(used, 1, steps=20)
    assert wander(used, 2) == wander(fresh, 2)


def test_different_seeds_differ_in_every_drawn_thing() -> None:
    env = small_env()
    env.reset(seed=1)
    one = env.get_state()
    env.reset(seed=2)
    other = env.get_state()
    same = [name for name in one if np.array_equal(one[name], other[name])]
    assert set(same) <= {"counters", "instruction"}


def test_every_instruction_is_drawn() -> None:
    env = small_env()
    drawn = {env.reset(seed=seed)[1]["instruction"] for seed in range(40)}
    assert drawn == set(env.config.instructions)


@pytest.mark.parametrize("through", [lambda a: a, lambda a: a.tolist()], ids=["arrays", "lists"])
def test_state_brings_back_the_future_to_the_bit(through) -> None:  # type: ignore[no-untyped-def]
    env, other = small_env(), small_env()
    obs, _ = env.reset(seed=4)
    expert = env.expert()
    for _ in range(70):  # the grippers hold the tray: contacts and warm start matter
        obs, *_ = env.step(np.concatenate(expert.act(obs)))
    state = {name: through(value) for name, value in env.get_state().items()}
    commands = [np.concatenate(expert.act(obs)) for _ in range(10)]
    expected = [env.step(command) for command in commands]
    other.reset(seed=99)
    restored = other.set_state(state)
    assert all(np.array_equal(restored[name], obs[name]) for name in obs)
    for command, (obs, *rest) in zip(commands, expected, strict=True):
        again, *outcome = other.step(command)
        assert all(np.array_equal(again[name], obs[name]) for name in obs)
        assert outcome == rest


def test_a_state_of_another_shape_is_refused() -> None:
    env = small_env()
    env.reset(seed=0)
    state = env.get_state()
    state["physics"] = state["physics"][:-1]
    with pytest.raises(SimulationError, match=r"physics: expected shape \(82,\), got"):
        env.set_state(state)


@pytest.mark.parametrize(
    ("at", "value", "part"),
    [(2, np.nan, "arm a, joint j3"), (6, np.inf, "arm a, gripper"), (7, np.nan, "arm b, joint j1")],
)
def test_an_action_that_is_not_finite_names_arm_and_part(at: int, value: float, part: str) -> None:
    env = small_env()
    env.reset(seed=0)
    action = STAY.copy()
    action[at] = value
    before = env.get_state()["physics"]
    with pytest.raises(SimulationError, match=part):
        env.step(action)
    assert np.array_equal(before, env.get_state()["physics"])


def test_an_action_of_another_length_is_refused() -> None:
    env = small_env()
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="expected 14 numbers"):
        env.step(STAY[:7])


def test_a_step_before_any_reset_is_refused() -> None:
    with pytest.raises(SimulationError, match="a reset first"):
        small_env().step(STAY)


def test_targets_out_of_range_act_like_the_nearest_limit() -> None:
    wild, limit = small_env(), small_env()
    far = np.full(14, 50.0, np.float32)
    for env in (wild, limit):
        env.reset(seed=0)
    for _ in range(5):
        got, *_ = wild.step(far)
        want, *_ = limit.step(np.array([*(j.limits[1] for j in JOINTS), 1.0] * 2, np.float32))
    np.testing.assert_allclose(got["q_a"], want["q_a"], atol=1e-6)
    assert got["grip_q_a"] == want["grip_q_a"] > 0.9


def test_physics_that_diverges_is_reported() -> None:
    env = small_env()
    env.reset(seed=0)
    env.world.data.qvel[0] = np.inf
    with pytest.raises(SimulationError, match="expected a finite state"):
        env.step(STAY)


def test_arms_follow_their_targets_and_grippers_close() -> None:
    env = small_env()
    env.reset(seed=0)
    target = STAY.copy()
    target[[0, 8, 13]] = 0.3, -0.4, 1.0
    for _ in range(30):
        obs, *_ = env.step(target)
    np.testing.assert_allclose(obs["q_a"], target[:6], atol=0.02)
    np.testing.assert_allclose(obs["q_b"], target[7:13], atol=0.02)
    assert obs["grip_q_a"] < 0.02
    assert obs["grip_q_b"] > 0.98


def test_an_episode_is_truncated_after_max_steps() -> None:
    env = small_env(max_steps=3)
    env.reset(seed=0)
    assert [env.step(STAY)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_an_unknown_task_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RegistryError, match="Did you mean 'lift'"):
        make_env(TaskConfig(name="lifft"))


def test_importing_the_package_imports_neither_mujoco_nor_torch() -> None:
    code = (
        "import sys, gymnasium, teamvla.sim, teamvla.sim.tasks.lift as lift; lift.LiftConfig();"
        "assert 'teamvla/TwoArmLift-v0' in gymnasium.registry;"
        "print(sorted({'mujoco', 'torch'} & set(sys.modules)));"
        "teamvla.sim.make_env(); print(sorted({'mujoco', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "['mujoco']"]


def _with(name: str, value: object) -> Callable[[State], object]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: "abc", "state: expected entries by name, got str"),
        (lambda state: None, "got NoneType"),
        (lambda state: {}, "others in camera_shift, counters"),
        (_with("more", 1.0), "others in more"),
        (_with("tray_pose", "abc"), "tray_pose: expected numbers, got 'abc'"),
        (_with("tray_pose", None), "tray_pose: expected finite numbers"),
        (_with("tray_pose", [[1.0], [2.0, 3.0]]), "tray_pose: expected numbers"),
        (_with("tray_pose", [1.0, np.nan, 0.0]), "tray_pose: expected finite numbers"),
        (lambda state: {**state, "physics": state["physics"] * np.nan}, "physics: expected finite"),
        (_with("instruction", 999), "instruction: expected whole numbers, 0 to 3, got 999"),
        (_with("instruction", -1), "instruction: expected whole numbers"),
        (_with("edits", 0.5), "edits: expected whole numbers"),
        (_with("counters", [151, 0, 0]), "counters: expected whole numbers"),
        (_with("counters", [0, -1, 0]), "counters: expected whole numbers"),
        (_with("counters", [0, 0, 1]), "counters: expected whole numbers"),  # lift has no stages
        (_with("tray_size", -1.0), "scene: expected one that can be simulated"),
    ],
)
def test_a_state_of_rubbish_is_refused_and_changes_nothing(
    spoil: Callable[[State], object], message: str
) -> None:
    env = small_env()
    env.reset(seed=0)
    env.step(STAY)
    before = env.get_state()
    model = env.world.model
    with pytest.raises(SimulationError, match=message):
        env.set_state(spoil(env.get_state()))
    after = env.get_state()
    assert env.world.model is model
    assert all(np.array_equal(before[name], after[name]) for name in before)
    env.step(STAY)


def test_a_state_that_names_no_colour_or_block_is_refused() -> None:
    env = small_env_of("sort")
    env.reset(seed=0)
    for name, value in (("colours", [0.0, 2.0]), ("wanted", 2.0), ("wanted", 0.5)):
        with pytest.raises(SimulationError, match=f"{name}: expected whole numbers, 0 to 1"):
            env.set_state({**env.get_state(), name: value})

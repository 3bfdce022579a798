"""gym-aloha, MiniGrid and Fetch: they keep every rule, and their experts succeed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from teamvla import seeds
from teamvla.config import Project
from teamvla.config.settings import Settings
from teamvla.errors import ConfigError, SimulationError
from teamvla.sim.adapters.ids import CONFIGS
from teamvla.sim.adapters.states import physics_of
from teamvla.sim.adapters.task import GymnasiumConfig, GymnasiumTask
from teamvla.sim.testing import CHECKS

SHIPPED = ("aloha_transfer", "aloha_insertion", "minigrid_empty", "fetch_pick")
ALOHA = SHIPPED[:2]


def config(name: str, pictures: bool = False, **changes: Any) -> GymnasiumConfig:
    """The shipped settings, with small pictures or none."""
    task = {**Project.load(name).source.data["task"], **changes}
    task["camera"] = {"height": 16, "width": 24}
    if not pictures:
        task["mapping"] = {**task["mapping"], "pictures": {}}
    return GymnasiumConfig.model_validate(task)


def make(name: str, pictures: bool = False, **changes: Any) -> Any:
    return GymnasiumTask.make(config(name, pictures, **changes))


def attempt(env: Any, seed: int) -> tuple[bool, int, list[str]]:
    """Whether the expert succeeds, its steps, its phases."""
    observation, _ = env.reset(seed=seed)
    expert = env.expert()
    expert.reset()
    phases: list[str] = []
    over = False
    while not over:
        parts = expert.act(observation)
        phases.append(expert.phase)
        observation, _, ended, truncated, info = env.step(np.concatenate([*map(np.ravel, parts)]))
        over = ended or truncated
    return bool(ended and info["success"]), len(phases), phases


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SHIPPED)
def test_it_keeps_the_rules_of_every_environment(name, check):
    # ViperX arms that are told to be anywhere else at each step diverge after 0.2 s: 9 steps.
    check(partial(make, name, pictures=name != "fetch_pick", max_steps=9), 8)


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("aloha_transfer", ["approach", "descend", "close", "lift", "reach", "take"]),
        ("aloha_insertion", ["approach", "descend", "close", "lift", "meet", "align", "insert"]),
        ("fetch_pick", ["approach", "descend", "close", "carry"]),
    ],
)
def test_the_expert_succeeds_phase_by_phase(name, phases):
    env = make(name)
    success, _, seen = attempt(env, seeds.reset_seed(1, seeds.Domain.RECORD, 0))
    assert success
    assert list(dict.fromkeys(seen)) == phases


@pytest.mark.parametrize("id_", [i for i, name in CONFIGS.items() if name in SHIPPED])
def test_the_configuration_of_an_id_makes_that_environment(id_):
    task = Project.load(CONFIGS[id_]).section("task", Settings)
    assert isinstance(task, GymnasiumConfig)
    assert task.id == id_
    assert task.task_name == CONFIGS[id_]


# gym-aloha.


@pytest.mark.parametrize(
    ("name", "sampler", "count"),
    [("aloha_transfer", "sample_box_pose", 7), ("aloha_insertion", "sample_insertion_pose", 14)],
)
def test_small_seeds_put_the_objects_where_gym_aloha_does(name, sampler, count):
    from gym_aloha import utils

    env = make(name)
    for seed in (0, 7, 2**32 - 1):
        env.reset(seed=seed)
        _, data = physics_of(env.foreign)
        expected = np.hstack(getattr(utils, sampler)(seed))
        np.testing.assert_array_equal(data.qpos[-count:], expected)


def test_every_bit_of_a_large_seed_counts():
    env = make("aloha_transfer")
    places = set()
    for seed in (1, 1 + (1 << 32), 1 + (1 << 70), 1 + (1 << 103)):
        env.reset(seed=seed)
        places.add(physics_of(env.foreign)[1].qpos[16:18].tobytes())
    assert len(places) == 4


def test_a_reset_leaves_the_global_generator_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].tobytes()
    for name in SHIPPED:
        env = make(name)
        env.reset(seed=1)
        assert np.random.get_state()[1].tobytes() == before, name


def test_threads_do_not_mix_up_their_episodes():
    def places(name: str) -> list[bytes]:
        env = make(name)
        found = []
        for seed in range(25):
            env.reset(seed=seed)
            found.append(physics_of(env.foreign)[1].qpos.tobytes())
        return found

    alone = [places(name) for name in ALOHA * 2]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(places, ALOHA * 2)) == alone


@pytest.mark.parametrize(("told", "least", "most"), [(0.0, 0.0, 0.1), (1.0, 0.85, 1.0)])
def test_grippers_are_zero_open_and_one_closed(told, least, most):
    env = make("aloha_transfer")
    seen, _ = env.reset(seed=0)
    for _ in range(60):
        command = [*seen["q_a"], told, *seen["q_b"], told]
        seen = env.step(np.array(command, np.float32))[0]
    for arm in "ab":
        assert least <= seen[f"grip_q_{arm}"] <= most
    fingers = physics_of(env.foreign)[1].joint("vx300s_left/left_finger").qpos[0]
    assert (fingers > 0.05) == (told == 0.0)


def test_arm_a_is_the_left_one():
    env = make("aloha_transfer")
    seen, _ = env.reset(seed=0)
    command = np.concatenate([seen["q_a"], [1], seen["q_b"], [1]]).astype(np.float32)
    command[0] += 0.3
    for _ in range(25):
        seen = env.step(command)[0]
    data = physics_of(env.foreign)[1]
    assert data.joint("vx300s_left/waist").qpos[0] > 0.15
    np.testing.assert_array_equal(
        seen["q_a"][0], np.float32(data.joint("vx300s_left/waist").qpos[0])
    )
    assert abs(seen["q_b"][0]) < 0.01


def test_the_ray_camera_sees_the_cube_where_it_lies():
    env = GymnasiumTask.make(
        config("aloha_transfer", pictures=True).model_copy(
            update={"camera": config("aloha_transfer").camera.model_copy(update={"height": 48})}
        )
    )
    for seed in range(3):
        seen, _ = env.reset(seed=seed)
        picture = seen["rgb_top"].astype(int)
        red = (picture[..., 0] > 120) & (picture[..., 1] < 60)
        x = physics_of(env.foreign)[1].body("box").xpos[0]
        columns = np.flatnonzero(red.any(axis=0))
        assert len(columns) > 0
        # The camera hangs over the table's middle, 0.8 m up, 78 degrees high.
        column = 12 + x / (0.78 * np.tan(np.radians(39))) * 24
        assert abs(columns.mean() + 0.5 - column) < 1.5


def test_a_camera_that_the_model_has_not_is_answered_with_the_nearest():
    task = config("aloha_transfer", pictures=True)
    mapping = task.mapping.model_dump()
    mapping["pictures"]["rgb_top"]["camera"] = "topp"
    wrong = GymnasiumConfig.model_validate({**task.model_dump(), "mapping": mapping})
    with pytest.raises(ConfigError, match=r"rgb_top\.camera: .* 'topp'\. Did you mean 'top'\?"):
        GymnasiumTask.make(wrong)


def test_what_the_arms_cannot_reach_is_told():
    from teamvla.sim.adapters.aloha_arms import Arms, Pose

    env = make("aloha_transfer")
    env.reset(seed=0)
    arms = Arms(*physics_of(env.foreign))
    here = arms.tool("a")
    near = arms.solve("a", arms.angles("a"), here.moved(x=0.05, z=-0.05))
    assert np.abs(near - arms.angles("a")).max() > 0.02
    with pytest.raises(SimulationError, match="a target in reach of arm a, got one that it misses"):
        arms.solve("a", arms.angles("a"), Pose(here.position + 2.0, here.rotation))


def test_diverging_physics_ends_in_an_error():
    for name in ("aloha_transfer", "fetch_pick"):
        env = make(name)
        env.reset(seed=0)
        physics_of(env.foreign)[1].qvel[:] = 1e12
        with pytest.raises(SimulationError):
            env.step(np.zeros(env.contract.action_dim, np.float32))


# MiniGrid.


def fewest_moves(x: int, y: int, facing: int) -> int:
    """From a cell of the empty room to (6, 6); facing is right, down, left, up."""
    right, down = 6 - x, 6 - y
    if right and down:
        turns = 1 if facing in (0, 1) else 2
    elif right:
        turns = (0, 1, 2, 1)[facing]
    else:
        turns = (1, 0, 1, 2)[facing]
    return right + down + turns


def test_no_way_through_the_grid_is_shorter_than_the_experts():
    env = make("minigrid_empty")
    starts = set()
    for seed in range(60):
        env.reset(seed=seed)
        bare = env.foreign.unwrapped
        start = (*map(int, bare.agent_pos), int(bare.agent_dir))
        success, steps, _ = attempt(env, seed)
        assert success
        assert steps == fewest_moves(*start), start
        starts.add(start)
    assert len(starts) > 30


def test_a_world_without_a_goal_is_told():
    env = make("minigrid_empty")
    env.reset(seed=0)
    env.foreign.unwrapped.grid.set(6, 6, None)
    with pytest.raises(SimulationError, match=r"a goal square, got none. .*--expert"):
        env.expert().act({})


def test_a_goal_that_is_walled_in_is_told():
    from minigrid.core.world_object import Wall

    env = make("minigrid_empty")
    env.reset(seed=0)
    expert = env.expert()
    for cell in ((5, 6), (6, 5)):
        env.foreign.unwrapped.grid.set(*cell, Wall())
    env.foreign.unwrapped.agent_pos = (1, 1)
    with pytest.raises(SimulationError, match="a way to the goal, got none"):
        expert.act({})


def test_a_state_of_the_grid_keeps_what_was_built_in_it():
    from minigrid.core.world_object import Wall

    env, other = make("minigrid_empty"), make("minigrid_empty")
    env.reset(seed=0)
    env.foreign.unwrapped.grid.set(3, 3, Wall())
    other.set_state(env.get_state())
    assert other.foreign.unwrapped.grid.get(3, 3).type == "wall"


# Fetch.


def test_commands_of_the_fetch_arm_are_metres():
    env = make("fetch_pick")
    before, _ = env.reset(seed=0)
    for _ in range(4):
        seen = env.step(np.array([0.02, 0, 0, 0], np.float32))[0]
    for _ in range(6):
        seen = env.step(np.zeros(4, np.float32))[0]
    # Four times 2 cm were asked for; the environment starts each step where the arm lags.
    moved = seen["q_a"] - before["q_a"]
    assert 0.04 < moved[0] < 0.09
    np.testing.assert_allclose(moved[1:], 0, atol=0.005)
    assert seen["grip_q_a"] < 0.1


def test_the_fetch_expert_goes_back_for_a_block_that_it_lost():
    env = make("fetch_pick", max_steps=100)
    observation, _ = env.reset(seed=2)
    expert = env.expert()
    expert.reset()
    lost, ended, phases = False, False, []
    while not ended:
        parts = expert.act(observation)
        phases.append(expert.phase)
        observation, _, ended, truncated, info = env.step(parts[0])
        if phases.count("carry") == 2 and not lost:
            model, data = physics_of(env.foreign)
            start = model.jnt_qposadr[model.joint("object0:joint").id]
            data.qpos[start : start + 3] = (1.3, 0.65, 0.425)
            lost = True
        assert not truncated
    assert lost
    assert info["success"]
    assert phases[phases.index("carry") :].count("descend") > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("aloha_transfer", 49), ("aloha_insertion", 48), ("fetch_pick", 49)]
)
def test_the_rate_of_an_expert(name, least):
    env = make(name)
    wins = [attempt(env, seeds.reset_seed(7, seeds.Domain.RECORD, k))[0] for k in range(50)]
    assert sum(wins) >= least

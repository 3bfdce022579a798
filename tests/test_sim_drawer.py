"""The drawer task: its expert succeeds, and nothing less than both arms at work does."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from teamvla.config import Project
from teamvla.errors import SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.scene import HOME
from teamvla.sim.tasks import TaskConfig
from teamvla.sim.tasks.drawer import DrawerConfig, DrawerTask

Commands = list[np.ndarray]
Change = Callable[[Commands, str, TwoArmEnv], Commands]
HOME_OPEN = np.array([*HOME, 0.0], np.float32)
STAY = np.concatenate([HOME_OPEN, HOME_OPEN])


def drawer_env(**keys: object) -> TwoArmEnv:
    camera = {"height": 8, "width": 8, "shadows": False}
    return make_env(DrawerConfig.model_validate({"name": "drawer", "camera": camera, **keys}))


def demonstrate(
    env: TwoArmEnv, seed: int, change: Change = lambda arms, phase, env: arms
) -> tuple[bool, bool, list[str]]:
    """(terminated, success ever, phase of each step) of the expert, its commands changed."""
    env.reset(seed=seed)
    expert, phases, ever = env.expert(), [], False
    while True:
        command = change(expert.act({}), expert.phase, env)
        phases.append(expert.phase)
        _, _, terminated, truncated, info = env.step(np.concatenate(command))
        ever = ever or info["success"]
        if terminated or truncated:
            return terminated, ever, phases


def play_until(env: TwoArmEnv, seed: int, phase: str, steps: int = 1) -> Callable[[], Commands]:
    """Let the expert work up to ``steps`` steps of ``phase``; its next commands."""
    env.reset(seed=seed)
    expert = env.expert()
    while steps:
        env.step(np.concatenate(expert.act({})))
        steps -= expert.phase == phase
    return lambda: expert.act({})


def move_drawer(env: TwoArmEnv, slide: float) -> None:
    model, data = env.world.model, env.world.data
    data.qpos[model.jnt_qposadr[model.joint("drawer").id]] = slide
    mujoco.mj_forward(model, data)


def put_block(env: TwoArmEnv, x: float, y: float, z: float, frame: str = "drawer") -> None:
    """Put the block at a point of the frame of a body, and forward the physics."""
    position, rotation = env.world.pose(frame)
    yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    env.world.place("block", position + rotation @ (x, y, z), yaw)
    start = env.world.model.jnt_dofadr[env.world.model.body("block").jntadr[0]]
    env.world.data.qvel[start : start + 6] = 0.0
    mujoco.mj_forward(env.world.model, env.world.data)


def test_the_expert_stores_the_block_from_eight_of_eight_states() -> None:
    env = drawer_env()
    results = [demonstrate(env, seed) for seed in range(8)]
    assert [terminated for terminated, *_ in results] == [True] * 8
    assert max(len(phases) for *_, phases in results) < 170


# Each bit of the number picks an end of one range; far and near, turned and straight.
@pytest.mark.parametrize("corner", [0b000000, 0b111111, 0b010101, 0b101010, 0b001111, 0b110000])
def test_the_expert_works_in_the_corners_of_the_ranges(corner: int) -> None:
    keys = ("cabinet_x", "cabinet_y", "cabinet_yaw", "block_x", "block_y", "block_yaw")
    spans = {key: getattr(DrawerConfig(), key) for key in keys}
    ends = {key: spans[key][corner >> bit & 1] for bit, key in enumerate(keys)}
    env = drawer_env(**{key: (end, end) for key, end in ends.items()})
    assert demonstrate(env, corner)[0], ends


@pytest.mark.parametrize(
    "keys",
    [
        {"block_size": (0.85, 0.85), "block_mass": (1.6, 1.6), "drawer_friction": (1.5, 1.5)},
        {"block_size": (1.15, 1.15), "block_mass": (0.6, 0.6), "drawer_friction": (0.7, 0.7)},
        {"physics": {"integrator": "euler", "timestep_ms": 4}},
        {"physics": {"integrator": "euler", "timestep_ms": 5}},
        {"physics": {"integrator": "implicitfast", "timestep_ms": 4}},
    ],
)
def test_the_expert_works_with_any_block_drawer_and_solver(keys: dict[str, object]) -> None:
    assert demonstrate(drawer_env(**keys), 3)[0]


def test_the_expert_survives_noise_on_what_is_executed() -> None:
    rng = np.random.default_rng(0)

    def shake(arms: Commands, phase: str, env: TwoArmEnv) -> Commands:
        return [arm + np.append(rng.normal(0, 0.01, 6), 0).astype(np.float32) for arm in arms]

    assert all(demonstrate(drawer_env(), seed, shake)[0] for seed in range(4))


def test_both_arms_go_through_the_phases_at_the_same_time() -> None:
    env = drawer_env()
    terminated, _, phases = demonstrate(env, 0)
    order = ["approach", "descend", "close", "pull", "carry", "lower", "release", "retreat"]
    assert terminated
    assert list(dict.fromkeys(phases)) == order
    env = drawer_env()
    play_until(env, 0, "pull", 15)
    assert env.world.slide("drawer") > 0.02
    assert env.world.pose("block")[0][2] > 0.05


def test_the_stages_come_in_order_and_each_in_its_phase() -> None:
    env = drawer_env()
    env.reset(seed=1)
    expert, entered, stage = env.expert(), [], 0
    terminated = False
    while not terminated:
        _, _, terminated, *_ = env.step(np.concatenate(expert.act({})))
        assert env.stage in (stage, stage + 1)
        if env.stage > stage:
            stage = env.stage
            entered.append((env.task.stages[stage - 1], expert.phase))
    assert entered == [("opened", "pull"), ("carried", "pull")]


@pytest.mark.parametrize("close", [0.0, 1.0])
def test_doing_nothing_never_succeeds(close: float) -> None:
    env = drawer_env(max_steps=40)
    env.reset(seed=0)
    still = STAY.copy()
    still[[6, 13]] = close
    assert not any(env.step(still)[4]["success"] for _ in range(40))
    assert env.stage == 0


def test_random_actions_never_succeed() -> None:
    env = drawer_env()
    env.action_space.seed(0)
    for seed in range(2):
        env.reset(seed=seed)
        infos = [env.step(env.action_space.sample())[4] for _ in range(300)]
        assert not any(info["success"] for info in infos)


@pytest.mark.parametrize(("arm", "stage"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("part", ["arm", "gripper"])
def test_success_needs_both_arms_and_both_grippers(arm: int, stage: int, part: str) -> None:
    def cripple(arms: Commands, phase: str, env: TwoArmEnv) -> Commands:
        if part == "arm":
            arms[arm] = HOME_OPEN
        else:
            arms[arm][-1] = 0.0
        return arms

    env = drawer_env()
    _, ever, _ = demonstrate(env, 0, cripple)
    assert not ever
    assert env.stage <= stage


def test_a_block_in_a_drawer_that_nobody_opened_is_no_success() -> None:
    env = drawer_env()
    env.reset(seed=0)
    move_drawer(env, 0.16)
    put_block(env, -0.04, 0.0, 0.047)
    infos = [env.step(STAY)[4] for _ in range(20)]
    assert env.task.success(env.world)
    assert env.stage == 0
    assert not any(info["success"] for info in infos)


def test_a_block_that_b_did_not_carry_is_no_success() -> None:
    env = drawer_env()
    env.reset(seed=0)
    move_drawer(env, 0.16)
    put_block(env, -0.04, 0.0, 0.047)
    env.stage = 1  # as if a had just opened the drawer
    infos = [env.step(STAY)[4] for _ in range(20)]
    assert env.task.success(env.world)
    assert env.stage == 1
    assert not any(info["success"] for info in infos)


def test_only_b_can_carry_and_only_a_can_open() -> None:
    env = drawer_env()
    play_until(env, 0, "carry", 10)
    world, task = env.world, env.task
    assert task.reached(world, 0)
    assert task.reached(world, 1)
    world.fingers_on = lambda arm, geoms: 2  # a's fingers on the block, too
    assert not task.reached(world, 1)
    world.fingers_on = lambda arm, geoms: 2 if arm == "b" else 1
    assert not task.reached(world, 0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda env: move_drawer(env, 0.11),
        lambda env: put_block(env, -0.04, 0.0, 0.10),
        lambda env: put_block(env, -0.04, 0.14, 0.04),
        lambda env: put_block(env, -0.16, 0.0, 0.04),
        lambda env: env.world.push("block", np.array([0.0, 0.03, 0.0])),
        lambda env: env.world.place("block", env.world.tool("a"), 0.0),
    ],
    ids=["closed", "above", "beside", "before", "moving", "elsewhere"],
)
def test_success_needs_a_block_at_rest_in_the_open_drawer(
    spoil: Callable[[TwoArmEnv], None],
) -> None:
    env = drawer_env()
    play_until(env, 0, "withdraw", 12)  # both hands are out of the way
    assert env.task.success(env.world)
    spoil(env)
    mujoco.mj_forward(env.world.model, env.world.data)
    assert not env.task.success(env.world)


def test_a_block_that_is_still_held_in_the_drawer_is_no_success() -> None:
    env = drawer_env()
    act = play_until(env, 0, "lower")
    command = act()
    while env.world.speed("block") > 0.01:
        env.step(np.concatenate(command))
    for _ in range(60):
        command = act()
        command[1][-1] = 1.0
        _, _, terminated, _, info = env.step(np.concatenate(command))
        assert not info["success"]
    assert not terminated


def test_a_missed_handle_is_tried_again() -> None:
    seen: list[str] = []

    def slip(arms: Commands, phase: str, env: TwoArmEnv) -> Commands:
        seen.append(phase)
        if "withdraw" not in seen:
            arms[0][-1] = 0.0
        return arms

    terminated, _, phases = demonstrate(drawer_env(), 1, slip)
    assert terminated
    assert phases.index("withdraw") < phases.index("pull")


@pytest.mark.parametrize("when", ["pull", "carry", "lower"])
def test_a_block_that_falls_out_of_the_hand_is_fetched_again(when: str) -> None:
    seen: list[str] = []

    def drop(arms: Commands, phase: str, env: TwoArmEnv) -> Commands:
        seen.append(phase)
        begun = seen.index(when) if when in seen else len(seen)
        if 8 <= len(seen) - begun < 16:
            arms[1][-1] = 0.0
        return arms

    terminated, _, phases = demonstrate(drawer_env(), 2, drop)
    assert terminated
    assert when == "lower" or phases.count("close") > 8


def test_a_block_beside_the_drawer_is_gripped_along_it() -> None:
    env = drawer_env()
    act = play_until(env, 4, "carry", 1)
    put_block(env, -0.05, -0.15, 0.025)  # too near for a finger between
    for _ in range(200):
        _, _, terminated, *_ = env.step(np.concatenate(act()))
        if terminated:
            break
    assert terminated


def test_the_expert_gives_up_on_a_block_that_fell_out_of_reach() -> None:
    env = drawer_env()
    act = play_until(env, 0, "carry", 5)
    env.world.place("block", np.array([0.78, -0.5, 0.03]), 0.0)
    finals = [env.step(np.concatenate(act())) for _ in range(60)]
    assert not any(terminated for _, _, terminated, *_ in finals)
    assert env.world.closure("a") < 0.2  # it let go of the handle


def test_the_reward_grows_along_the_experts_way() -> None:
    env = drawer_env()
    env.reset(seed=0)
    expert, by_phase, terminated = env.expert(), {}, False
    while not terminated:
        _, reward, terminated, *_ = env.step(np.concatenate(expert.act({})))
        by_phase[expert.phase] = reward
        assert 0.0 <= reward <= 1.0
    last = [by_phase[phase] for phase in ("approach", "descend", "pull", "carry", "lower")]
    assert last == sorted(last)
    assert reward == pytest.approx(1.0)


def test_the_reward_is_the_documented_formula() -> None:
    env = drawer_env(reward={"reach": 0.0, "open": 1.0, "place": 0.0})
    env.reset(seed=0)
    for slide, expected in ((0.0, 0.0), (0.06, 0.5), (0.12, 1.0), (0.17, 1.0)):
        move_drawer(env, slide)
        assert env.task.reward(env.world, 0) == pytest.approx(expected, abs=0.01)
    placed = DrawerTask(DrawerConfig(reward={"reach": 0.0, "open": 0.0, "place": 1.0}))
    put_block(env, -0.04, 0.0, 0.047)
    assert [placed.reward(env.world, stage) for stage in (0, 1, 2)] == [0.0, 0.0, 1.0]


def test_the_expert_starts_over_after_reset() -> None:
    env = drawer_env()
    env.reset(seed=4)
    expert = env.expert()
    for _ in range(60):
        env.step(np.concatenate(expert.act({})))
    env.reset(seed=5)
    expert.reset()
    again = [np.concatenate(expert.act({})) for _ in range(5)]
    env.reset(seed=5)
    fresh = env.expert()
    assert np.array_equal(again, [np.concatenate(fresh.act({})) for _ in range(5)])


def test_a_state_taken_while_pulling_goes_on_to_the_bit() -> None:
    env = drawer_env()
    act = play_until(env, 6, "pull", 8)
    state = env.get_state()
    commands = [np.concatenate(act())]
    first = [env.step(commands[0])]
    for _ in range(30):
        commands.append(np.concatenate(act()))
        first.append(env.step(commands[-1]))
    other = drawer_env()
    other.reset(seed=99)
    other.set_state(state)
    for command, (obs, reward, *_) in zip(commands, first, strict=True):
        twin, same_reward, *_ = other.step(command)
        assert all(np.array_equal(obs[name], twin[name]) for name in obs)
        assert reward == same_reward
    assert (env.stage, env.world.slide("drawer")) == (other.stage, other.world.slide("drawer"))


def test_a_block_out_of_reach_is_an_error_not_a_failure() -> None:
    with pytest.raises(SimulationError, match="a point within reach"):
        demonstrate(drawer_env(block_x=(0.8, 0.8)), 0)


def test_the_draws_fill_their_ranges() -> None:
    task, rng = DrawerTask(DrawerConfig()), np.random.default_rng(0)
    drawn = [task.draw(rng) for _ in range(300)]
    for name, least, greatest in (
        ("cabinet_pose", [0.54, 0.02, -0.15], [0.60, 0.12, 0.15]),
        ("block_pose", [0.26, -0.38, -0.7], [0.42, -0.24, 0.7]),
        ("block_size", 0.85, 1.15),
        ("block_mass", 0.6, 1.6),
        ("drawer_friction", 0.7, 1.5),
    ):
        values = np.array([variation[name] for variation in drawn])
        np.testing.assert_allclose(values.min(axis=0), least, atol=0.02)
        np.testing.assert_allclose(values.max(axis=0), greatest, atol=0.02)


def test_what_was_drawn_reaches_the_physics() -> None:
    little = {"block_mass": (0.5, 0.5), "block_size": (0.9, 0.9), "drawer_friction": (0.5, 0.5)}
    much = {"block_mass": (2.0, 2.0), "block_size": (1.1, 1.1), "drawer_friction": (2.0, 2.0)}
    worlds = []
    for keys in (little, much):
        env = drawer_env(**keys)
        env.reset(seed=0)
        worlds.append(env.world.model)
    light, heavy = worlds
    assert heavy.body("block").mass == pytest.approx(4.0 * light.body("block").mass)
    assert heavy.geom("block").size == pytest.approx(light.geom("block").size * 1.1 / 0.9)
    runners = [float(m.dof_frictionloss[m.joint("drawer").dofadr[0]]) for m in worlds]
    assert runners == pytest.approx([0.5, 2.0])


def test_the_drawer_stays_where_it_is_until_it_is_pulled() -> None:
    env = drawer_env()
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(10):
            env.step(STAY)
        assert abs(env.world.slide("drawer")) < 1e-3


def test_shipped_configuration_spells_out_the_defaults() -> None:
    project = Project.load("drawer")
    assert project.check() == []
    assert project.section("task", TaskConfig) == DrawerConfig(name="drawer")


def test_phrasings_are_many_and_the_paraphrases_are_none_of_them() -> None:
    phrasings = DrawerConfig().instructions
    assert len(set(phrasings)) >= 4
    assert len(set(DrawerTask.paraphrases)) >= 3
    assert not set(phrasings) & set(DrawerTask.paraphrases)

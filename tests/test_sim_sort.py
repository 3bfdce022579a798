"""The sort task: the words decide which block belongs on the plate, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import mujoco
import numpy as np
import pytest
from pydantic import ValidationError
from test_sim_lift import HOME_OPEN, Commands, demonstrate, outcome

from teamvla.config import Project
from teamvla.sim import Expert, TwoArmEnv, make_env
from teamvla.sim.kinematics import InverseKinematics
from teamvla.sim.scene import HOME
from teamvla.sim.tasks import TaskConfig
from teamvla.sim.tasks.sort import BLOCKS, COLOURS, SortConfig, SortTask, wanted

ARM_OF = dict(zip(BLOCKS, "ab", strict=True))
PHASES = ["approach", "descend", "close", "lift", "carry", "lower", "release", "retreat"]


def sort_env(**keys: object) -> TwoArmEnv:
    return make_env(SortConfig.model_validate({"camera": {"height": 8, "width": 8}, **keys}))


def serving(env: TwoArmEnv, block: str) -> Expert:
    """An expert that puts ``block`` on the plate, wanted or not."""
    script = lambda world: env.task.serve(world, block)  # noqa: E731
    return Expert(env.world, InverseKinematics(env.world), script, env.config.expert)


def other_than(block: str) -> str:
    return BLOCKS[1 - BLOCKS.index(block)]


def meant(state: Mapping[str, np.ndarray], env: TwoArmEnv, words: str) -> str:
    """The block that somebody takes who goes by the words, and knows which colour lies where."""
    colours = [env.config.colours[int(index)] for index in state["colours"]]
    (named,) = [number for number, colour in enumerate(colours) if f" {colour} " in words]
    return BLOCKS[named]


def follow(env: TwoArmEnv, expert: Expert, steps: int) -> tuple[bool, bool]:
    """(terminated, success ever) of an episode that has been reset."""
    ever = False
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(np.concatenate(expert.act({})))
        ever = ever or info["success"]
        if terminated or truncated:
            return terminated, ever
    return False, ever


def put(env: TwoArmEnv, block: str, x: float, y: float, z: float = 0.036) -> None:
    env.world.place(block, np.array([x, y, z]), 0.0)
    mujoco.mj_forward(env.world.model, env.world.data)


def seed_where(env: TwoArmEnv, block: str) -> int:
    """The first seed for which ``block`` is the wanted one."""
    for seed in range(50):
        env.reset(seed=seed)
        if wanted(env.world) == block:
            return seed
    raise AssertionError(block)


def test_the_expert_sorts_ten_of_ten_within_the_promised_time() -> None:
    env = sort_env()
    results = [demonstrate(env, seed) for seed in range(10)]
    assert [terminated for terminated, *_ in results] == [True] * 10
    assert np.mean([steps for *_, steps in results]) <= 110


@pytest.mark.parametrize("corner", range(16))
def test_the_expert_reaches_every_corner_of_the_ranges(corner: int) -> None:
    config = SortConfig()
    names = ("block_x", "block_y", "block_yaw", "block_size")
    picked = {name: getattr(config, name)[corner >> bit & 1] for bit, name in enumerate(names)}
    plate = {"plate_x": config.plate_x[corner & 1], "plate_y": config.plate_y[corner >> 1 & 1]}
    env = sort_env(**{key: (value, value) for key, value in {**picked, **plate}.items()})
    assert demonstrate(env, corner)[0], picked


@pytest.mark.parametrize("block", BLOCKS)
def test_the_arm_of_that_side_works_and_the_other_one_stays(block: str) -> None:
    env = sort_env()
    env.reset(seed=seed_where(env, block))
    expert, moved = env.expert(), {"a": 0.0, "b": 0.0}
    for _ in range(80):
        obs, *_ = env.step(np.concatenate(expert.act({})))
        for arm in moved:
            moved[arm] = max(moved[arm], float(np.abs(obs[f"q_{arm}"] - HOME).max()))
    worker = ARM_OF[block]
    idle = "b" if worker == "a" else "a"
    assert moved[worker] > 0.3
    assert moved[idle] < 0.01


def test_the_phases_come_in_order_and_the_arm_goes_home() -> None:
    env = sort_env(hold_steps=150)
    env.reset(seed=0)
    expert, phases = env.expert(), []
    for _ in range(160):
        obs, *_ = env.step(np.concatenate(expert.act({})))
        phases.append(expert.phase)
    assert list(dict.fromkeys(phases)) == [*PHASES, "return"]
    for arm in "ab":
        np.testing.assert_allclose(obs[f"q_{arm}"], HOME, atol=0.02)


def test_the_wrong_block_on_the_plate_is_no_success() -> None:
    for seed in range(4):
        env = sort_env()
        env.reset(seed=seed)
        wrong = other_than(wanted(env.world))
        assert follow(env, serving(env, wrong), 130) == (False, False)
        assert env.task.served(env.world, wrong)


def other_moved(env: TwoArmEnv, shift: float) -> None:
    block = other_than(wanted(env.world))
    x, y, z = env.world.pose(block)[0]
    put(env, block, x + shift, y, z)


def test_trying_both_blocks_does_not_pay() -> None:
    env = sort_env(max_steps=400)
    env.reset(seed=1)
    right, wrong = wanted(env.world), other_than(wanted(env.world))
    lay = env.world.pose(wrong)[0]
    follow(env, serving(env, wrong), 130)
    assert env.stage == -1
    put(env, wrong, *lay)  # as if nothing had happened
    assert follow(env, serving(env, right), 150) == (False, False)
    assert env.task.success(env.world)
    assert not env.task.spoilt(env.world)
    assert env.task.reward(env.world, env.stage) == 0.0


def test_a_lost_episode_stays_lost_in_its_state() -> None:
    env = sort_env()
    env.reset(seed=0)
    lay = env.world.pose(other_than(wanted(env.world)))[0]
    other_moved(env, 0.06)
    env.step(np.tile(HOME_OPEN, 2))
    put(env, other_than(wanted(env.world)), *lay)
    fresh = sort_env()
    fresh.reset(seed=5)
    fresh.set_state(env.get_state())
    assert follow(fresh, fresh.expert(), 150) == (False, False)


@pytest.mark.parametrize(("shift", "lost"), [(0.04, False), (0.06, True)])
def test_the_other_block_may_be_touched_but_not_taken_away(shift: float, lost: bool) -> None:
    env = sort_env()
    env.reset(seed=0)
    expert = env.expert()
    env.step(np.concatenate(expert.act({})))
    other_moved(env, shift)
    assert follow(env, expert, 150)[0] is not lost


def test_who_goes_by_the_words_succeeds_and_by_the_other_words_fails() -> None:
    env = sort_env()
    for seed in range(4):
        env.reset(seed=seed)
        state = env.get_state()
        taken = meant(state, env, env.instruction)
        assert follow(env, serving(env, taken), 200) == (True, True)
        env.reset(seed=seed)
        for words in env.other_instructions():
            assert meant(state, env, words) == other_than(taken)
        assert not follow(env, serving(env, other_than(taken)), 140)[1]


def test_without_the_words_half_is_the_best_that_is_possible() -> None:
    env, rng = sort_env(), np.random.default_rng(0)
    drawn = [env.task.draw(rng) for _ in range(2000)]
    side = np.array([float(variation["wanted"]) for variation in drawn])
    red_at_a = np.array([variation["colours"][0] for variation in drawn])
    red_wanted = np.array([env.task.colour(variation) == "red" for variation in drawn])
    for guess in (side, red_at_a, red_wanted):
        assert abs(guess.mean() - 0.5) < 0.04
    for seen in (0.0, 1.0):  # nor does it help to know which colour lies where
        assert abs(side[red_at_a == seen].mean() - 0.5) < 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_no_observation_tells_which_block_is_wanted(seed: int) -> None:
    env = sort_env(camera={"height": 32, "width": 32})
    env.reset(seed=seed)
    rng, state = np.random.default_rng(seed), env.get_state()
    commands = [np.tile(HOME_OPEN, 2) + rng.normal(0, 0.2, 14) for _ in range(12)]
    seen, said = [], set()
    for choice in (0.0, 1.0):
        seen.append([env.set_state({**state, "wanted": np.array(choice)})])
        said.add(env.instruction)
        seen[-1] += [env.step(command.astype(np.float32))[0] for command in commands]
    for left, right in zip(*seen, strict=True):
        assert all(np.array_equal(left[name], right[name]) for name in left)
    assert len(said) == 2


def test_every_phrasing_and_paraphrase_names_the_colour_and_is_new() -> None:
    env = sort_env()
    assert len(env.config.instructions) >= 4
    assert len(env.task.paraphrases) >= 3
    assert not set(env.config.instructions) & set(env.task.paraphrases)
    env.reset(seed=0)
    colour = env.task.colour(env.get_state())
    for phrasing in (*env.config.instructions, *env.task.paraphrases):
        assert f" {colour} " in env.say(phrasing)
        assert "{" not in env.say(phrasing)


def test_a_block_that_was_never_carried_does_not_count() -> None:
    env = sort_env()
    env.reset(seed=0)
    x, y = env.get_state()["plate"]
    put(env, wanted(env.world), x, y)
    env.world.settle(40)
    assert env.task.success(env.world)
    for _ in range(10):
        *_, terminated, _, info = env.step(np.tile(HOME_OPEN, 2))
        assert (terminated, info["success"]) == (False, False)


def served_env(**keys: object) -> TwoArmEnv:
    """An environment in which the expert has just succeeded."""
    env = sort_env(**keys)
    assert demonstrate(env, 0)[0]
    assert env.task.success(env.world)
    return env


def in_the_air(env: TwoArmEnv) -> None:
    x, y = env.get_state()["plate"]
    put(env, wanted(env.world), x, y, z=0.09)


def moving(env: TwoArmEnv) -> None:
    env.world.push(wanted(env.world), np.array([0.06, 0.0, 0.0]))


@pytest.mark.parametrize("spoil", [in_the_air, moving])
def test_success_needs_a_block_at_rest_on_the_plate(spoil: Callable[[TwoArmEnv], None]) -> None:
    env = served_env()
    spoil(env)
    assert not env.task.success(env.world)


def test_success_needs_the_block_near_the_middle_of_the_plate() -> None:
    world = served_env().world
    off = np.linalg.norm(world.pose(wanted(world))[0][:2] - world.data.geom("plate").xpos[:2])
    assert 1e-5 < off < 0.01, "how well the expert places it"
    assert SortTask(SortConfig(tolerance=0.01)).success(world)
    assert not SortTask(SortConfig(tolerance=1e-5)).success(world)


@pytest.mark.parametrize("arm", ["a", "b"])
def test_success_needs_open_hands(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = served_env()
    monkeypatch.setattr(env.world, "fingers_on", lambda who, geoms: int(who == arm))
    assert not env.task.success(env.world)


def test_a_block_that_leans_on_the_plates_edge_is_not_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = served_env()
    monkeypatch.setattr(env.world, "touching", lambda left, right: True)  # the table as well
    assert not env.task.success(env.world)


def test_carried_means_in_the_air_between_two_fingers() -> None:
    env = sort_env()
    env.reset(seed=0)
    expert, block = env.expert(), wanted(env.world)
    seen = {}
    while expert.phase != "carry":
        env.step(np.concatenate(expert.act({})))
        seen[expert.phase] = env.task.reached(env.world, 0)
    fingers = env.world.fingers_on(ARM_OF[block], env.world.geoms(block))
    assert (seen["close"], seen["lift"], seen["carry"], fingers) == (False, True, True, 2)
    put(env, block, 0.4, 0.0, z=0.3)
    assert not env.task.reached(env.world, 0)


def test_a_block_that_was_pushed_aside_is_followed() -> None:
    env = sort_env(max_steps=300)
    env.reset(seed=0)
    expert, block, pushed, phases = env.expert(), wanted(env.world), False, []
    over = terminated = False
    while not over:
        command = np.concatenate(expert.act({}))
        phases.append(expert.phase)
        if expert.phase == "close" and not pushed:
            x, y, z = env.world.pose(block)[0]
            put(env, block, x + 0.09, y, z)
            pushed = True
        *_, terminated, truncated, _ = env.step(command)
        over = terminated or truncated
    assert terminated
    assert "withdraw" in phases, "the miss was noticed"


def test_a_dropped_block_is_picked_up_again() -> None:
    env = sort_env(max_steps=300)
    dropping = 6

    def fumble(arms: Commands) -> Commands:
        nonlocal dropping
        if dropping and max(env.world.pose(block)[0][2] for block in BLOCKS) > 0.07:
            dropping -= 1
            for arm in arms:
                arm[-1] = 0.0
        return arms

    terminated, _, steps = demonstrate(env, 3, fumble)
    assert (terminated, dropping) == (True, 0)
    assert steps > 110


def test_doing_nothing_and_random_actions_never_succeed() -> None:
    env = sort_env()
    assert outcome(env, 0, lambda: [HOME_OPEN, HOME_OPEN]) == (False, False, 200)
    env.action_space.seed(0)
    for seed in range(3):
        assert not outcome(env, seed, lambda: list(env.action_space.sample().reshape(2, 7)))[1]


@pytest.mark.parametrize("part", [slice(0, 7), slice(6, 7)], ids=["arm", "gripper"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_expert_without_its_arm_or_gripper_never_succeeds(block: str, part: slice) -> None:
    env = sort_env()
    number = BLOCKS.index(block)

    def disabled(arms: Commands) -> Commands:
        arms[number][part] = HOME_OPEN[part]
        return arms

    assert not demonstrate(env, seed_where(env, block), disabled)[1]


def test_the_reward_grows_along_the_experts_way() -> None:
    env = sort_env()
    env.reset(seed=0)
    expert, by_phase, terminated, reward = env.expert(), {}, False, 0.0
    while not terminated:
        _, reward, terminated, _, _ = env.step(np.concatenate(expert.act({})))
        by_phase[expert.phase] = reward
        assert 0.0 <= reward <= 1.0
    last = [by_phase[phase] for phase in ("approach", "descend", "lift", "carry", "release")]
    assert last == sorted(last)
    assert reward > 0.9


def test_a_state_in_the_hand_brings_back_the_future_to_the_bit() -> None:
    env, other = sort_env(), sort_env()
    env.reset(seed=2)
    expert = env.expert()
    while expert.phase != "carry":
        env.step(np.concatenate(expert.act({})))
    state = {name: array.tolist() for name, array in env.get_state().items()}
    commands = [np.concatenate(expert.act({})) for _ in range(10)]
    expected = [env.step(command) for command in commands]
    other.reset(seed=9)
    other.set_state(state)
    for command, (obs, *rest) in zip(commands, expected, strict=True):
        again, *outcomes = other.step(command)
        assert all(np.array_equal(again[name], obs[name]) for name in obs)
        assert outcomes == rest


def test_the_draws_fill_their_ranges_and_reach_the_physics() -> None:
    env, rng = sort_env(), np.random.default_rng(0)
    drawn = [env.task.draw(rng) for _ in range(400)]
    blocks = np.concatenate([variation["blocks"] for variation in drawn])
    np.testing.assert_allclose(blocks.min(axis=0), [0.34, 0.16, -0.35], atol=0.01)
    np.testing.assert_allclose(blocks.max(axis=0), [0.46, 0.25, 0.35], atol=0.01)
    env.reset(seed=0)
    state = env.get_state()
    for number, block in enumerate(BLOCKS):
        body = env.world.model.body(block)
        assert float(body.mass[0]) == pytest.approx(0.12 * state["masses"][number])
        half = env.world.model.geom(block).size
        np.testing.assert_allclose(half, 0.025 * state["sizes"][number])
        assert np.sign(env.world.pose(block)[0][1]) == (1 if block == "block_a" else -1)


def test_colours_stay_apart_however_they_are_changed() -> None:
    reach = 2 * SortConfig().block_colour
    for left, right in combinations(COLOURS.values(), 2):
        assert np.abs(np.subtract(left, right)).max() > reach + 0.15


def test_more_colours_are_drawn_in_all_pairs() -> None:
    env, rng = sort_env(colours=("red", "green", "yellow")), np.random.default_rng(0)
    pairs = {tuple(env.task.draw(rng)["colours"]) for _ in range(200)}
    assert len(pairs) == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"instructions": ["put it on the plate"]}, "does not hold {colour}"),
        ({"colours": ["red", "red"]}, "stands in it twice"),
        ({"colours": ["red"]}, "at least 2"),
        ({"colours": ["red", "pink"]}, "'red', 'blue'"),
    ],
)
def test_settings_that_tell_nothing_apart_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SortConfig(**keys)


def test_shipped_configuration_spells_out_the_defaults() -> None:
    project = Project.load("sort")
    assert project.check() == []
    assert project.section("task", TaskConfig) == SortConfig()

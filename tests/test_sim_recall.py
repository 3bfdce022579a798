"""The recall task: a lamp that is dark by then decides, so only memory beats chance."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from test_sim_lift import HOME_OPEN, Commands, demonstrate, outcome
from test_sim_sort import follow, other_than, serving

from teamvla.config import Project
from teamvla.record.noise import ActionNoise, NoiseConfig
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.interface import Observation
from teamvla.sim.tasks import TaskConfig
from teamvla.sim.tasks.recall import RecallConfig
from teamvla.sim.tasks.sort import wanted

WATCH, WAIT = RecallConfig().watch_steps, RecallConfig().wait_steps
PICTURES = ("rgb_a", "rgb_b")
STAY = np.tile(HOME_OPEN, 2)


def recall_env(size: int = 8, **keys: object) -> TwoArmEnv:
    camera = {"height": size, "width": size}
    return make_env(RecallConfig.model_validate({"camera": camera, **keys}))


def start(env: TwoArmEnv, seed: int, choice: int) -> Observation:
    """An episode that differs from its twin only in what the lamp shows."""
    env.reset(seed=seed)
    return env.set_state({**env.get_state(), "wanted": np.array(float(choice))})


def same(left: Observation, right: Observation) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_the_expert_succeeds_in_eight_of_eight() -> None:
    env = recall_env()
    results = [demonstrate(env, seed) for seed in range(8)]
    assert [terminated for terminated, *_ in results] == [True] * 8
    assert np.mean([steps for *_, steps in results]) <= 110 + WATCH + WAIT


def test_the_expert_watches_waits_and_then_works() -> None:
    env = recall_env()
    env.reset(seed=0)
    expert, phases = env.expert(), []
    for _ in range(WATCH + WAIT + 20):
        env.step(np.concatenate(expert.act({})))
        phases.append(expert.phase)
    assert phases[: WATCH + WAIT + 1] == ["watch"] * WATCH + ["wait"] * WAIT + ["approach"]


@pytest.mark.parametrize("noisy", [False, True], ids=["clean", "recording noise"])
@pytest.mark.parametrize("seed", [0, 1])
def test_once_the_lamp_is_dark_nothing_tells_until_the_expert_moves(seed: int, noisy: bool) -> None:
    env, runs = recall_env(32), []
    for choice in (0, 1):
        observations = [start(env, seed, choice)]
        expert = env.expert()
        noise = ActionNoise(NoiseConfig(), np.random.default_rng(seed + choice), env.contract)
        for _ in range(WATCH + WAIT + 3):
            command = np.concatenate(expert.act({}))
            observations.append(env.step(noise(command) if noisy else command)[0])
        runs.append(observations)
    equal = [same(left, right) for left, right in zip(*runs, strict=True)]
    decision = WATCH + WAIT  # the first observation from which the expert moves
    assert equal[: decision + 1] == [False] * WATCH + [True] * (WAIT + 1)
    assert not equal[decision + 2]
    for left, right in zip(*(run[:WATCH] for run in runs), strict=True):
        assert [name for name in left if not np.array_equal(left[name], right[name])] == [*PICTURES]


def test_no_pose_can_carry_the_choice_past_the_dark() -> None:
    """Arms that strain towards their choice for as long as they are locked, and grip or not."""
    env, decisive = recall_env(16), []
    for choice in (0, 1):
        start(env, 3, choice)
        lean = STAY + (0.3 if choice else -0.3)
        lean[[6, 13]] = choice
        for _ in range(WATCH + WAIT):
            obs, *_ = env.step(lean.astype(np.float32))
        decisive.append((obs, env.get_state()))
    (left, state), (right, other) = decisive
    assert same(left, right)
    assert [name for name in state if not np.array_equal(state[name], other[name])] == ["wanted"]
    moved, *_ = env.step(lean.astype(np.float32))
    assert np.abs(moved["q_a"] - right["q_a"]).max() > 0.01, "now the brakes are off"


def test_a_policy_that_is_blind_to_the_lamp_succeeds_in_half() -> None:
    env = recall_env(max_steps=170)
    for seed in range(3):
        results = []
        for choice in (0, 1):  # the same deeds in both twins
            start(env, seed, choice)
            results.append(follow(env, waiting(env, "block_a"), 170)[0])
        assert results == [True, False]


def waiting(env: TwoArmEnv, block: str):  # type: ignore[no-untyped-def]
    for _ in range(WATCH + WAIT):
        env.step(STAY)
    return serving(env, block)


def test_sides_and_colours_of_the_lamp_are_balanced() -> None:
    env, rng = recall_env(), np.random.default_rng(0)
    drawn = [env.task.draw(rng) for _ in range(2000)]
    side = np.array([float(variation["wanted"]) for variation in drawn])
    red_at_a = np.array([variation["colours"][0] for variation in drawn])
    for seen in (0.0, 1.0):
        assert abs(side[red_at_a == seen].mean() - 0.5) < 0.05


def test_the_words_are_the_same_whatever_the_lamp_shows() -> None:
    env = recall_env()
    assert len(env.config.instructions) >= 4
    assert len(env.task.paraphrases) >= 3
    assert not set(env.config.instructions) & set(env.task.paraphrases)
    for seed in range(8):
        said = set()
        for choice in (0, 1):
            start(env, seed, choice)
            said |= {env.instruction}
        (words,) = said
        assert not set(words.split()) & set(env.config.colours)


@pytest.mark.parametrize("seed", range(4))
def test_both_cameras_see_the_lamp_in_the_colour_of_the_wanted_block(seed: int) -> None:
    env = recall_env(64)
    obs, _ = env.reset(seed=seed)
    channel = 0 if env.task.colour(env.get_state()) == "red" else 2
    for _ in range(WATCH):
        dark, *_ = env.step(STAY)
    for camera in PICTURES:
        changed = (obs[camera] != dark[camera]).any(axis=-1)
        assert changed.sum() >= 40, "pixels of the lamp"
        lit = obs[camera][changed].mean(axis=0)
        assert lit[channel] == lit.max() > 2 * np.median(lit)
        assert dark[camera][changed].mean() < 60


def test_the_lamp_changes_nothing_that_happens() -> None:
    env, runs = recall_env(), []
    rng = np.random.default_rng(0)
    commands = STAY + rng.normal(0, 0.2, (60, 14))
    for choice in (0, 1):
        start(env, 5, choice)
        states = []
        for command in commands.astype(np.float32):
            env.step(command)
            states.append(env.get_state()["physics"])
        runs.append(states)
    assert np.array_equal(*runs)


@pytest.mark.parametrize("at", [4, WATCH, WATCH + WAIT - 2])
def test_a_state_brings_back_the_lamp_and_the_future_to_the_bit(at: int) -> None:
    env, other = recall_env(24), recall_env(24)
    obs, _ = env.reset(seed=6)
    rng = np.random.default_rng(0)
    commands = (STAY + rng.normal(0, 0.2, (at + 15, 14))).astype(np.float32)
    for command in commands[:at]:
        obs, *_ = env.step(command)
    state = {name: array.tolist() for name, array in env.get_state().items()}
    expected = [env.step(command)[0] for command in commands[at:]]
    other.reset(seed=99)
    for _ in range(50):
        other.step(STAY)
    assert same(other.set_state(state), obs)
    for command, later in zip(commands[at:], expected, strict=True):
        assert same(other.step(command)[0], later)


def test_the_block_that_was_not_shown_is_no_success() -> None:
    env = recall_env(max_steps=170)
    env.reset(seed=1)
    expert = waiting(env, other_than(wanted(env.world)))
    assert follow(env, expert, 170) == (False, False)


def test_doing_nothing_and_random_actions_never_succeed() -> None:
    env = recall_env()
    assert outcome(env, 0, lambda: [HOME_OPEN, HOME_OPEN]) == (False, False, 240)
    env.action_space.seed(0)
    for seed in range(2):
        assert not outcome(env, seed, lambda: list(env.action_space.sample().reshape(2, 7)))[1]


@pytest.mark.parametrize("part", [slice(0, 7), slice(6, 7)], ids=["arm", "gripper"])
def test_the_expert_without_its_arm_or_gripper_never_succeeds(part: slice) -> None:
    def disabled(arms: Commands) -> Commands:
        for arm in arms:
            arm[part] = HOME_OPEN[part]
        return arms

    assert not demonstrate(recall_env(), 0, disabled)[1]


def test_times_of_watching_and_waiting_can_be_set() -> None:
    env = recall_env(watch_steps=3, wait_steps=2)
    env.reset(seed=0)
    expert, phases = env.expert(), []
    for _ in range(6):
        env.step(np.concatenate(expert.act({})))
        phases.append(expert.phase)
    assert phases == ["watch"] * 3 + ["wait"] * 2 + ["approach"]
    assert [env.task.locked(step) for step in (0, 4, 5)] == [True, True, False]


def test_an_episode_that_ends_before_the_brakes_are_off_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_steps is 35, but the arms are locked for 35"):
        RecallConfig(max_steps=35)


def test_shipped_configuration_spells_out_the_defaults() -> None:
    project = Project.load("recall")
    assert project.check() == []
    assert project.section("task", TaskConfig) == RecallConfig()

"""The handoff task: its expert succeeds and tries again, and nothing less succeeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from teamvla.config import Project
from teamvla.errors import SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.kinematics import InverseKinematics, pointing_down
from teamvla.sim.scene import ARMS, HOME
from teamvla.sim.tasks import TaskConfig
from teamvla.sim.tasks.handoff import HandoffConfig, HandoffTask

Commands = list[np.ndarray]
Change = Callable[[str, Commands], Commands]
HOME_OPEN = np.array([*HOME, 0.0], np.float32)
ALL_PHASES = (
    *("approach", "descend", "close", "lift", "present", "join", "reach", "take"),
    *("give", "part", "carry", "lower", "release"),
)


def handoff_env(**keys: object) -> TwoArmEnv:
    config = {"camera": {"height": 8, "width": 8, "shadows": False}, **keys}
    env = make_env(HandoffConfig.model_validate({"name": "handoff", **config}))
    assert isinstance(env, TwoArmEnv)
    return env


class Run:
    """An episode of the expert; ``change`` sees each phase and may spoil what happens in it."""

    def __init__(
        self, env: TwoArmEnv, seed: int, change: Change = lambda phase, arms: arms
    ) -> None:
        obs, _ = env.reset(seed=seed)
        expert = env.expert()
        self.phases: list[str] = []
        self.stages: list[int] = []
        self.rewards: list[float] = []
        self.success = self.terminated = over = False
        while not over:
            arms = expert.act(obs)
            arms = change(expert.phase, arms)
            obs, reward, self.terminated, late, info = env.step(np.concatenate(arms))
            over = self.terminated or late
            self.success = self.success or info["success"]
            self.stages.append(env.stage)
            self.rewards.append(reward)
            if self.phases[-1:] != [expert.phase]:
                self.phases.append(expert.phase)
        self.steps = len(self.stages)


def once(phase: str, spoil: Callable[[], None]) -> Change:
    """Do ``spoil`` at the first step of ``phase``, once."""
    left = [spoil]

    def change(now: str, arms: Commands) -> Commands:
        if now == phase and left:
            left.pop()()
        return arms

    return change


def test_the_expert_succeeds_from_ten_of_ten_states_in_good_time() -> None:
    env = handoff_env()
    runs = [Run(env, seed) for seed in range(10)]
    assert [run.terminated for run in runs] == [True] * 10
    assert max(run.steps for run in runs) < 200


def test_the_phases_come_in_order() -> None:
    phases = Run(handoff_env(), 0).phases
    assert tuple(phases[: len(ALL_PHASES)]) == ALL_PHASES


def test_the_expert_succeeds_from_every_corner_of_the_ranges() -> None:
    spans = {key: getattr(HandoffConfig(), key) for key in ("bar_x", "bar_y", "bar_yaw")}
    others = ("bar_length", "bar_width", "bar_mass", "goal_x", "goal_y")
    for corner in range(8):
        picked = {key: span[corner >> k & 1] for k, (key, span) in enumerate(spans.items())}
        for k, key in enumerate(others):
            picked[key] = getattr(HandoffConfig(), key)[(corner * 5 + corner // 3 >> k) & 1]
        env = handoff_env(**{key: (value, value) for key, value in picked.items()})
        assert Run(env, 0).terminated, picked


def test_the_expert_survives_noise_on_what_is_executed() -> None:
    rng = np.random.default_rng(0)

    def shake(phase: str, arms: Commands) -> Commands:
        return [arm + np.append(rng.normal(0, 0.01, 6), 0).astype(np.float32) for arm in arms]

    env = handoff_env()
    assert sum(Run(env, seed, shake).terminated for seed in range(8)) >= 7


@pytest.mark.parametrize("integrator", ["implicitfast", "euler"])
@pytest.mark.parametrize("timestep_ms", [4, 5])
def test_the_expert_does_not_depend_on_the_solver(integrator: str, timestep_ms: int) -> None:
    env = handoff_env(physics={"integrator": integrator, "timestep_ms": timestep_ms})
    assert all(Run(env, seed).terminated for seed in (11, 12))


def test_the_stages_are_reached_in_order_by_those_who_hold_the_bar() -> None:
    env = handoff_env()
    holders: dict[int, list[int]] = {}

    def watch(phase: str, arms: Commands) -> Commands:
        fingers = [env.world.fingers_on(arm, env.world.geoms("bar")) for arm in ARMS]
        holders.setdefault(env.stage, fingers)
        return arms

    run = Run(env, 0, watch)
    assert sorted(set(run.stages)) == [0, 1, 2, 3]
    assert run.stages == sorted(run.stages)
    assert holders == {0: [0, 0], 1: [2, 0], 2: [2, 2], 3: [0, 2]}


@pytest.mark.parametrize("phase", ["lift", "present", "take"])
def test_a_bar_that_a_lost_is_picked_up_where_it_lies(phase: str) -> None:
    env = handoff_env()
    lying = np.array([0.38, 0.22, 0.02])
    run = Run(env, 1, once(phase, lambda: env.world.place("bar", lying, 1.2)))
    assert run.phases.count("approach") == 2
    assert run.terminated


def test_a_bar_that_b_lost_is_picked_up_by_b_on_its_side() -> None:
    env = handoff_env()
    lying = np.array([0.42, -0.2, 0.02])
    run = Run(env, 1, once("carry", lambda: env.world.place("bar", lying, -0.8)))
    assert run.phases.count("take") == 1
    assert run.phases.count("carry") == 2
    assert run.terminated


def test_a_bar_that_b_lost_on_the_other_side_is_handed_over_again() -> None:
    env = handoff_env()
    lying = np.array([0.42, 0.15, 0.02])
    run = Run(env, 1, once("carry", lambda: env.world.place("bar", lying, 0.3)))
    assert run.phases.count("take") == 2
    assert run.terminated


def opened(arm: int, phase: str, steps: int) -> Change:
    """The gripper of one arm is open for ``steps`` steps from the first of ``phase`` on."""
    left = [steps]

    def change(now: str, arms: Commands) -> Commands:
        if left[0] > 0 and (now == phase or left[0] < steps):
            left[0] -= 1
            arms[arm][-1] = 0.0
        return arms

    return change


@pytest.mark.parametrize(("arm", "phase"), [(0, "lift"), (0, "present"), (0, "reach"), (1, "take")])
@pytest.mark.parametrize("seed", [2, 3])
def test_a_grip_that_gave_way_is_taken_again(arm: int, phase: str, seed: int) -> None:
    run = Run(handoff_env(), seed, opened(arm, phase, 8))
    assert len(run.phases) > len(ALL_PHASES) + 1
    assert run.terminated


def test_a_bar_that_b_let_fall_after_the_hand_over_is_fetched() -> None:
    run = Run(handoff_env(), 4, opened(1, "carry", 8))
    assert run.phases.count("take") == 1
    assert run.terminated


def test_a_missed_grasp_is_tried_again() -> None:
    env = handoff_env()
    away = np.array([0.45, 0.31, 0.02])
    run = Run(env, 1, once("close", lambda: env.world.place("bar", away, 0.0)))
    assert run.phases[2:7] == ["close", "look", "close", "look", "release"]
    assert run.phases[7:10] == ["withdraw", "approach", "descend"]
    assert run.terminated


def test_a_bar_out_of_reach_before_the_hand_over_is_an_error_that_says_so() -> None:
    env = handoff_env()
    far = np.array([0.42, -0.35, 0.02])
    with pytest.raises(SimulationError, match=r"arm a: .*within reach"):
        Run(env, 1, once("lift", lambda: env.world.place("bar", far, 0.0)))


def test_the_expert_starts_over_after_reset() -> None:
    env = handoff_env()
    obs, _ = env.reset(seed=1)
    expert = env.expert()
    first = [np.concatenate(expert.act(obs)) for _ in range(40)]
    env.reset(seed=1)
    expert.reset()
    assert expert.phase == ""
    assert np.array_equal(first, [np.concatenate(expert.act(obs)) for _ in range(40)])


def test_the_grasp_turns_smoothly_with_the_bar() -> None:
    commands = []
    for yaw in np.linspace(-0.04, 0.04, 5):
        env = handoff_env(bar_x=(0.4, 0.4), bar_y=(0.26, 0.26), bar_yaw=(yaw, yaw))
        obs, _ = env.reset(seed=0)
        expert = env.expert()
        for _ in range(40):
            command = np.concatenate(expert.act(obs))
        commands.append(command)
    assert np.abs(np.diff(commands, axis=0)).max() < 0.04


def without_expert(env: TwoArmEnv, seed: int, act: Callable[[], np.ndarray]) -> tuple[bool, int]:
    """(success ever, stages reached) of an episode of joined commands."""
    env.reset(seed=seed)
    told = [env.step(act())[4]["success"] for _ in range(150)]
    return any(told), env.stage


@pytest.mark.parametrize("command", [HOME_OPEN, np.zeros(7, np.float32)], ids=["home", "zero"])
def test_doing_nothing_never_succeeds(command: np.ndarray) -> None:
    still = np.concatenate([command, command])
    assert without_expert(handoff_env(), 0, lambda: still) == (False, 0)


def test_random_actions_never_succeed() -> None:
    env = handoff_env()
    env.action_space.seed(0)
    ended = [without_expert(env, seed, env.action_space.sample) for seed in range(3)]
    assert not any(success for success, _ in ended)


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_arm_alone_never_succeeds(arm: int, seed: int) -> None:
    def idle(phase: str, arms: Commands) -> Commands:
        arms[arm] = HOME_OPEN
        return arms

    run = Run(handoff_env(max_steps=250), seed, idle)
    assert not run.success
    assert run.stages[-1] == arm  # nothing without a, "held by a" without b


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_arm_whose_gripper_stays_open_never_succeeds(arm: int, seed: int) -> None:
    def weak(phase: str, arms: Commands) -> Commands:
        arms[arm][-1] = 0.0
        return arms

    run = Run(handoff_env(max_steps=250), seed, weak)
    assert not run.success
    assert run.stages[-1] == arm


def on_the_disc(env: TwoArmEnv) -> Any:
    x, y = env.get_state()["goal"]
    return np.array([x, y, 0.021])


@pytest.mark.parametrize("phase", ["approach", "present", "take"])
def test_a_bar_that_came_to_the_disc_another_way_does_not_count(phase: str) -> None:
    env = handoff_env()
    env.reset(seed=0)
    expert, obs = env.expert(), {}
    while expert.phase != phase:
        env.step(np.concatenate(expert.act(obs)))
    env.world.place("bar", on_the_disc(env), 0.0)
    stay = np.concatenate([HOME_OPEN, HOME_OPEN])
    told = [env.step(stay)[4]["success"] for _ in range(30)]
    assert env.task.success(env.world)
    assert not any(told)


def test_the_middle_of_the_disc_is_out_of_reach_of_a() -> None:
    env = handoff_env()
    env.reset(seed=0)
    nearest = np.array([env.config.goal_x[0], env.config.goal_y[1], 0.02])
    with pytest.raises(SimulationError):
        InverseKinematics(env.world).solve("a", np.array(HOME), nearest, pointing_down(0.0))


def test_success_needs_the_disc_rest_and_no_touch() -> None:
    env = handoff_env()
    Run(env, 0)
    world, bar = env.world, env.world.pose("bar")[0]
    assert env.task.success(world)
    for stricter in ({"goal_radius": 1e-4}, {"max_speed": 1e-12}):
        assert not HandoffTask(HandoffConfig.model_validate(stricter)).success(world)
    world.place("bar", bar + np.array([0.0, 0.0, 0.05]), 0.0)
    world.settle(1)
    assert not env.task.success(world)


def test_a_bar_that_is_still_held_is_not_laid_down() -> None:
    env = handoff_env()
    laid: list[bool] = []
    touched: list[int] = []

    def watch(phase: str, arms: Commands) -> Commands:
        if phase in ("lower", "release"):
            laid.append(env.task.success(env.world))
            touched.append(env.world.fingers_on("b", env.world.geoms("bar")))
        return arms

    Run(env, 3, watch)
    assert 2 in touched
    assert not any(done and fingers for done, fingers in zip(laid, touched, strict=True))


def test_a_state_in_the_middle_of_the_hand_over_goes_on_to_the_bit() -> None:
    env = handoff_env()
    obs, _ = env.reset(seed=5)
    expert = env.expert()
    while expert.phase != "take" or env.stage < 2:
        obs, *_ = env.step(np.concatenate(expert.act(obs)))
    state, commands, first = env.get_state(), [], []
    over = False
    while not over:
        commands.append(np.concatenate(expert.act(obs)))
        obs, reward, terminated, late, info = env.step(commands[-1])
        over = terminated or late
        first.append((obs, reward, terminated, info["success"], env.stage))
    assert terminated
    other = handoff_env()
    other.reset(seed=77)
    other.set_state({name: array.tolist() for name, array in state.items()})
    for command, (seen, *rest) in zip(commands, first, strict=True):
        again, reward, terminated, _, info = other.step(command)
        assert [reward, terminated, info["success"], other.stage] == rest
        assert all(np.array_equal(again[name], seen[name]) for name in seen)


def test_the_reward_lies_in_0_to_1_and_grows_along_the_experts_way() -> None:
    env = handoff_env()
    by_phase: dict[str, float] = {}

    def note(phase: str, arms: Commands) -> Commands:
        by_phase[phase] = env.task.reward(env.world, env.stage)
        return arms

    run = Run(env, 0, note)
    order = ("approach", "close", "present", "take", "carry", "release")
    along = [by_phase[phase] for phase in order]
    assert along == sorted(along)
    assert 0.0 <= min(run.rewards) <= max(run.rewards) <= 1.0
    assert run.rewards[-1] > 0.93


def test_the_reward_adds_up_as_documented() -> None:
    env = handoff_env()
    env.reset(seed=0)
    gap = env.world.pose("bar")[0][:2] - env.get_state()["goal"]
    expected = 0.1 + 0.6 + 0.2 * (1 - np.tanh(5 * np.linalg.norm(gap)))
    assert env.task.reward(env.world, 3) == pytest.approx(expected)
    assert env.task.reward(env.world, 2) == pytest.approx(0.1 + 0.6 * 2 / 3)


def test_the_draws_fill_their_ranges() -> None:
    env, rng = handoff_env(), np.random.default_rng(0)
    drawn = [env.task.draw(rng) for _ in range(400)]
    for name, keys in {
        "bar_pose": ("bar_x", "bar_y", "bar_yaw"),
        "bar_size": ("bar_width", "bar_length"),
        "goal": ("goal_x", "goal_y"),
    }.items():
        values = np.array([variation[name] for variation in drawn])
        spans = np.array([getattr(env.config, key) for key in keys])
        np.testing.assert_allclose(values.min(axis=0), spans[:, 0], atol=0.02)
        np.testing.assert_allclose(values.max(axis=0), spans[:, 1], atol=0.02)


def test_what_was_drawn_reaches_the_physics() -> None:
    keys = {"bar_mass": (2.0, 2.0), "bar_length": (1.1, 1.1), "bar_width": (0.9, 0.9)}
    env = handoff_env(**keys)
    env.reset(seed=0)
    assert env.world.model.body("bar").mass[0] == pytest.approx(0.2)
    np.testing.assert_allclose(env.world.model.geom("bar").size, [0.0135, 0.11, 0.02])
    x, y = env.get_state()["goal"]
    np.testing.assert_allclose(env.world.data.geom("goal").xpos[:2], [x, y])


def test_phrasings_and_paraphrases_are_many_and_different() -> None:
    phrasings, others = HandoffConfig().instructions, HandoffTask.paraphrases
    assert len(set(phrasings)) >= 4
    assert len(set(others)) >= 3
    assert not set(phrasings) & set(others)


def test_shipped_configuration_spells_out_the_defaults() -> None:
    project = Project.load("handoff")
    assert project.check() == []
    assert project.section("task", TaskConfig) == HandoffConfig(name="handoff")


def test_one_key_of_the_expert_leaves_the_others_at_the_tasks_defaults() -> None:
    config = HandoffConfig.model_validate({"expert": {"free_speed": 0.3}})
    assert config.expert.careful_speed == HandoffConfig().expert.careful_speed

"""The lift task: its expert succeeds, nothing less does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise

import mujoco
import numpy as np
import pytest
from pydantic import ValidationError

from teamvla.config import Project
from teamvla.errors import SimulationError
from teamvla.sim import Expert, TwoArmEnv, make_env
from teamvla.sim.scene import HOME
from teamvla.sim.tasks import TASKS, TaskConfig
from teamvla.sim.tasks.lift import LiftConfig

Commands = list[np.ndarray]
HOME_OPEN = np.array([*HOME, 0.0], np.float32)


def lift_env(**keys: object) -> TwoArmEnv:
    return make_env(LiftConfig.model_validate({"camera": {"height": 8, "width": 8}, **keys}))


def outcome(env: TwoArmEnv, seed: int, act: Callable[[], Commands]) -> tuple[bool, bool, int]:
    """(terminated, success ever, steps) of one episode of any policy."""
    env.reset(seed=seed)
    ever, steps = False, 0
    while True:
        _, _, terminated, truncated, info = env.step(np.concatenate(act()))
        ever, steps = ever or info["success"], steps + 1
        if terminated or truncated:
            return terminated, ever, steps


def demonstrate(
    env: TwoArmEnv, seed: int, change: Callable[[Commands], Commands] = lambda arms: arms
) -> tuple[bool, bool, int]:
    """The outcome of the expert, its commands changed on their way."""
    experts: list[Expert] = []

    def act() -> Commands:
        if not experts:
            experts.append(env.expert())
        return change(experts[0].act({}))

    return outcome(env, seed, act)


def test_the_expert_lifts_from_ten_of_ten_states() -> None:
    env = lift_env()
    results = [demonstrate(env, seed) for seed in range(10)]
    assert [terminated for terminated, *_ in results] == [True] * 10
    assert max(steps for *_, steps in results) < 125


def test_the_expert_lifts_from_every_corner_of_the_ranges() -> None:
    ends = {"tray_x": (0.36, 0.48), "tray_y": (-0.06, 0.06), "tray_yaw": (-0.25, 0.25)}
    for corner in range(8):
        picked = {key: span[corner >> k & 1] for k, (key, span) in enumerate(ends.items())}
        env = lift_env(**{key: (value, value) for key, value in picked.items()})
        assert demonstrate(env, 0)[0], picked


def test_the_expert_survives_noise_on_what_is_executed() -> None:
    rng = np.random.default_rng(0)

    def shake(arms: Commands) -> Commands:
        return [arm + np.append(rng.normal(0, 0.005, 6), 0).astype(np.float32) for arm in arms]

    assert sum(demonstrate(lift_env(), seed, shake)[0] for seed in range(5)) >= 4


def test_the_phases_come_in_order_and_the_last_pose_is_held() -> None:
    env = lift_env()
    obs, _ = env.reset(seed=0)
    expert, phases = env.expert(), []
    for _ in range(130):
        command = expert.act(obs)
        phases.append(expert.phase)
        obs, *_ = env.step(np.concatenate(command))
    assert list(dict.fromkeys(phases)) == ["approach", "descend", "close", "lift", "hold"]
    again = expert.act(obs)
    for arm in (0, 1):
        np.testing.assert_allclose(again[arm], command[arm], atol=1e-3)
        assert again[arm].dtype == np.float32
        assert again[arm][-1] == 1.0


def test_the_expert_starts_over_after_reset() -> None:
    env = lift_env()
    obs, _ = env.reset(seed=1)
    expert = env.expert()
    first = [np.concatenate(expert.act(obs)) for _ in range(5)]
    env.reset(seed=1)
    expert.reset()
    assert np.array_equal(first, [np.concatenate(expert.act(obs)) for _ in range(5)])


def test_the_expert_looks_at_the_tray_again_before_it_goes_down() -> None:
    env = lift_env()
    obs, _ = env.reset(seed=2)
    expert = env.expert()
    moved, over = False, False
    while not over:
        command = expert.act(obs)
        if not moved and expert.phase == "approach":
            x, y, yaw = env.get_state()["tray_pose"]
            env.world.place("tray", np.array([x - 0.04, y, 0.012]), yaw)
            moved = True
        obs, _, success, late, _ = env.step(np.concatenate(command))
        over = success or late
    assert success


def test_the_grasp_turns_smoothly_with_the_tray() -> None:
    commands = []
    for yaw in np.linspace(-0.04, 0.04, 9):
        still = {"tray_x": (0.42, 0.42), "tray_y": (0.0, 0.0), "tray_yaw": (yaw, yaw)}
        env = lift_env(**still)
        obs, _ = env.reset(seed=0)
        expert = env.expert()
        for _ in range(40):
            command = np.concatenate(expert.act(obs))
        commands.append(command)
    assert np.abs(np.diff(commands, axis=0)).max() < 0.03


def test_doing_nothing_never_succeeds() -> None:
    for command in (HOME_OPEN, np.zeros(7, np.float32)):
        terminated, ever, steps = outcome(lift_env(), 0, lambda c=command: [c, c])
        assert (terminated, ever, steps) == (False, False, 150)


def test_random_actions_never_succeed() -> None:
    env = lift_env()
    env.action_space.seed(0)

    def at_random() -> Commands:
        return list(env.action_space.sample().reshape(2, 7))

    assert not any(outcome(env, seed, at_random)[1] for seed in range(3))


@pytest.mark.parametrize("idle", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_arm_alone_never_succeeds(idle: int, seed: int) -> None:
    def one(arms: Commands) -> Commands:
        arms[idle] = HOME_OPEN
        return arms

    assert not demonstrate(lift_env(), seed, one)[1]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gripper_that_never_closes_never_succeeds(number: int, seed: int) -> None:
    def open_hand(arms: Commands) -> Commands:
        arms[number][-1] = 0.0
        return arms

    assert not demonstrate(lift_env(max_steps=260), seed, open_hand)[1]


def test_the_expert_notices_a_missed_handle_and_takes_it_again() -> None:
    env = lift_env(max_steps=260)
    env.reset(seed=2)
    expert, phases, over, terminated = env.expert(), [], False, False
    while not over:
        command = np.concatenate(expert.act({}))
        if expert.phase == "close" and "close" not in phases:
            x, y, yaw = env.get_state()["tray_pose"]
            env.world.place("tray", np.array([x + 0.09, y, 0.012]), yaw)
        phases.append(expert.phase)
        *_, terminated, truncated, _ = env.step(command)
        over = terminated or truncated
    again = ["approach", "descend", "close", "release", "withdraw", "approach", "descend", "close"]
    assert terminated
    assert [now for before, now in pairwise(["", *phases]) if before != now][:8] == again


def lifted_after(env: TwoArmEnv, mishap: Callable[[Commands], bool]) -> list[tuple[str, int]]:
    """Phases, and the steps of each, of an expert to whom something happens while it lifts.

    ``mishap`` sees, and may change, the commands until it says that it is over.
    """
    env.reset(seed=4)
    expert, phases, over, done, terminated = env.expert(), [""], False, False, False
    while not over:
        arms = expert.act({})
        if not done and expert.phase == "lift" and env.world.pose("tray")[0][2] > 0.06:
            done = mishap(arms)
        if expert.phase == "release" != phases[-1]:
            assert max(env.world.tool(arm)[2] for arm in "ab") < 0.065, "let go near the table"
        phases.append(expert.phase)
        *_, terminated, truncated, _ = env.step(np.concatenate(arms))
        over = terminated or truncated
    assert terminated
    return [(phase, len(list(run))) for phase, run in groupby(phases[1:])]


AGAIN = ["lower", "release", "withdraw", "approach", "descend", "close", "lift"]


@pytest.mark.parametrize("number", [0, 1])
def test_the_expert_lowers_a_tray_that_slips_and_lifts_it_again(number: int) -> None:
    opened = 0

    def open_for_a_moment(arms: Commands) -> bool:
        nonlocal opened
        opened += 1
        arms[number][-1] = 0.0
        return opened == 8

    phases = lifted_after(lift_env(max_steps=320), open_for_a_moment)
    assert [phase for phase, _ in phases[3:11]] == ["lift", *AGAIN]


def test_the_expert_stops_lifting_a_tray_that_fell() -> None:
    env = lift_env(max_steps=320)

    def fall(arms: Commands) -> bool:
        x, y, yaw = env.get_state()["tray_pose"]
        env.world.place("tray", np.array([x, y, 0.012]), yaw)
        return True

    phases = lifted_after(env, fall)
    assert [phase for phase, _ in phases[3:11]] == ["lift", *AGAIN]
    assert phases[3][1] < phases[10][1] - 5, "the first time it did not go on to the top"


def test_a_grip_that_nothing_disturbs_is_never_renewed() -> None:
    env, rng = lift_env(), np.random.default_rng(0)
    seen = set()
    for seed in range(4):
        env.reset(seed=seed)
        expert, over = env.expert(), False
        while not over:
            command = np.concatenate(expert.act({}))
            command[[*range(6), *range(7, 13)]] += rng.normal(0, 0.01, 12).astype(np.float32)
            seen.add(expert.phase)
            *_, terminated, truncated, _ = env.step(command)
            over = terminated or truncated
    assert seen == {"approach", "descend", "close", "lift", "hold"}


@pytest.mark.parametrize("arm", ["a", "b"])
def test_success_needs_the_grip_of_each_arm(arm: str) -> None:
    env = lift_env()
    demonstrate(env, 0)
    assert env.task.success(env.world)
    env.world.data.qpos[env.world.arms[arm].fingers[0]] += 0.02  # one finger comes off
    mujoco.mj_forward(env.world.model, env.world.data)
    other = "b" if arm == "a" else "a"
    assert env.world.fingers_on(other, env.world.geoms(f"handle_{other}")) == 2
    assert not env.task.success(env.world)


def test_success_needs_height_level_and_rest() -> None:
    reached = lift_env()
    demonstrate(reached, 0)
    world = reached.world
    for stricter in ({"rise": 0.4}, {"max_tilt": 1e-6}, {"max_speed": 1e-9}):
        config = LiftConfig.model_validate(stricter)
        assert not TASKS.get("lift")(config).success(world), stricter


def test_a_held_tray_that_touches_the_table_is_not_lifted() -> None:
    env = lift_env()
    obs, _ = env.reset(seed=0)
    expert, handles = env.expert(), {arm: env.world.geoms(f"handle_{arm}") for arm in "ab"}
    while not all(env.world.fingers_on(arm, handles[arm]) == 2 for arm in "ab"):
        obs, *_ = env.step(np.concatenate(expert.act(obs)))
    no_height = LiftConfig().model_copy(update={"rise": -1.0})
    assert env.world.touching(env.world.geoms("tray"), env.world.geoms("table"))
    assert not TASKS.get("lift")(no_height).success(env.world)


def test_success_must_hold_for_consecutive_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    env = lift_env(hold_steps=3)
    verdicts = [False, True, True, False, True, True, True]
    at_each_step = iter(verdicts)
    monkeypatch.setattr(env.task, "success", lambda world: next(at_each_step))
    env.reset(seed=0)
    stay = np.concatenate([HOME_OPEN, HOME_OPEN])
    outcomes = [env.step(stay) for _ in verdicts[1:]]
    assert [terminated for _, _, terminated, _, _ in outcomes] == [False] * 5 + [True]
    assert [info["success"] for *_, info in outcomes] == verdicts[1:]


def test_the_reward_grows_along_the_experts_way() -> None:
    env = lift_env()
    obs, _ = env.reset(seed=0)
    expert, by_phase = env.expert(), {}
    terminated = False
    while not terminated:
        obs, reward, terminated, _, _ = env.step(np.concatenate(expert.act(obs)))
        by_phase[expert.phase] = reward
        assert 0.0 <= reward <= 1.0
    last = [by_phase[phase] for phase in ("approach", "descend", "close", "lift")]
    assert last == sorted(last)
    assert reward > 0.9


def test_a_tray_out_of_reach_is_an_error_not_a_failure() -> None:
    env = lift_env(tray_x=(0.8, 0.8))
    with pytest.raises(SimulationError, match="a point within reach"):
        demonstrate(env, 0)


def test_the_draws_fill_their_ranges() -> None:
    env = lift_env()
    rng = np.random.default_rng(0)
    drawn = [env.task.draw(rng) for _ in range(400)]
    poses = np.array([variation["tray_pose"] for variation in drawn])
    np.testing.assert_allclose(poses.min(axis=0), [0.36, -0.06, -0.25], atol=0.02)
    np.testing.assert_allclose(poses.max(axis=0), [0.48, 0.06, 0.25], atol=0.02)
    masses = [float(variation["tray_mass"]) for variation in drawn]
    assert min(masses) >= 0.8
    assert max(masses) <= 1.3


def test_the_drawn_mass_reaches_the_physics() -> None:
    light, heavy = lift_env(tray_mass=(0.5, 0.5)), lift_env(tray_mass=(2.0, 2.0))
    for env in (light, heavy):
        env.reset(seed=0)
    bodies = [env.world.model.body("tray") for env in (light, heavy)]
    for part in ("mass", "inertia", "subtreemass"):
        lighter, heavier = (getattr(body, part) for body in bodies)
        np.testing.assert_allclose(heavier, 4.0 * lighter)


def test_shipped_configuration_spells_out_the_defaults() -> None:
    project = Project.load("lift")
    assert project.check() == []
    assert project.section("task", TaskConfig) == LiftConfig()


def test_a_span_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than the second"):
        LiftConfig(tray_x=(0.5, 0.4))

"""The engine that carries out scripts, and the parts that scripts are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teamvla.errors import SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.experts import CLOSED, OPEN, Expert, ExpertConfig, Move, Target
from teamvla.sim.kinematics import InverseKinematics
from teamvla.sim.skills import (
    Grasp,
    Skill,
    confirmed,
    gripped,
    holds,
    nearest_branch,
    pick,
    place,
    raised,
    released,
)
from teamvla.sim.tasks.lift import LiftConfig
from teamvla.sim.world import World

PACE = ExpertConfig()
HERE = Target(np.array([0.42, 0.2, 0.15]), 0.3, OPEN)


@pytest.fixture(scope="module")
def env() -> TwoArmEnv:
    made = make_env(LiftConfig.model_validate({"camera": {"height": 8, "width": 8}}))
    assert isinstance(made, TwoArmEnv)
    return made


def expert_of(env: TwoArmEnv, *moves: Move) -> Expert:
    """An expert with a fixed script, in a fresh episode."""
    env.reset(seed=0)

    def script(world: World) -> Iterator[Move]:
        yield from moves

    return Expert(env.world, InverseKinematics(env.world), script, PACE)


def tool_after(env: TwoArmEnv, expert: Expert, steps: int) -> np.ndarray:
    """Where the commands of ``steps`` steps lead arm a's tool, float[3] m."""
    for _ in range(steps):
        joints = expert.act({})[0][:-1]
    return InverseKinematics(env.world).tool("a", joints)[0]


def test_a_move_of_so_many_steps_ends_at_its_target_and_is_held(env: TwoArmEnv) -> None:
    expert = expert_of(env, Move("go", {"a": HERE}, steps=20))
    assert np.linalg.norm(tool_after(env, expert, 19) - HERE.position) > 1e-4
    np.testing.assert_allclose(tool_after(env, expert, 1), HERE.position, atol=2e-4)
    assert expert.phase == "go"
    np.testing.assert_allclose(tool_after(env, expert, 30), HERE.position, atol=2e-4)


def test_a_move_keeps_to_its_speed_and_starts_and_ends_gently(env: TwoArmEnv) -> None:
    speed = 0.2
    expert = expert_of(env, Move("go", {"a": HERE}, speed=speed))
    path = [env.world.tool("a")]
    while np.linalg.norm(path[-1] - HERE.position) > 1e-3:
        path.append(tool_after(env, expert, 1))
    speeds = 20.0 * np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert 0.9 * speed < speeds.max() < 1.25 * speed
    assert max(speeds[0], speeds[-1]) < 0.2 * speed


def test_an_arm_without_a_goal_stands_still(env: TwoArmEnv) -> None:
    expert = expert_of(env, Move("go", {"a": HERE}, steps=10))
    commands = [expert.act({})[1] for _ in range(12)]
    assert np.abs(np.diff(commands, axis=0)).max() < 1e-6


def test_a_goal_may_be_relative_to_the_arms_present_target(env: TwoArmEnv) -> None:
    moves = [Move("go", {"a": HERE}, steps=10), Move("up", {"a": raised(0.1)}, steps=10)]
    expert = expert_of(env, *moves)
    higher = HERE.position + np.array([0.0, 0.0, 0.1])
    np.testing.assert_allclose(tool_after(env, expert, 20), higher, atol=2e-4)


def test_a_gripper_is_switched_where_the_tool_is(env: TwoArmEnv) -> None:
    expert = expert_of(
        env, Move("close", {"a": gripped}, steps=3), Move("open", {"a": released}, steps=3)
    )
    commands = np.array([expert.act({})[0] for _ in range(6)])
    assert commands[:, -1].tolist() == [CLOSED] * 3 + [OPEN] * 3
    assert np.abs(np.diff(commands[:, :-1], axis=0)).max() < 1e-6


@pytest.mark.parametrize(
    ("answers", "steps"),
    [([True] * 10, 10), ([True, False, True, False] * 3, 10), ([True, False, False], 2)],
)
def test_a_move_is_broken_off_when_its_guard_fails_twice_running(
    env: TwoArmEnv, answers: list[bool], steps: int
) -> None:
    said = iter(answers)
    guarded = Move("go", {"a": HERE}, steps=10, guard=lambda: next(said))
    expert = expert_of(env, guarded, Move("after", {}, steps=1))
    phases = []
    while expert.phase != "after":
        expert.act({})
        phases.append(expert.phase)
    assert phases.count("go") == steps


def test_the_next_move_goes_on_from_where_one_was_broken_off(env: TwoArmEnv) -> None:
    guarded = Move("go", {"a": HERE}, steps=40, guard=lambda: False)
    expert = expert_of(env, guarded, Move("stop", {}, steps=5))
    before = tool_after(env, expert, 1)
    assert np.linalg.norm(tool_after(env, expert, 5) - before) < 1e-3


def test_a_target_out_of_reach_stops_the_expert(env: TwoArmEnv) -> None:
    far = Target(np.array([1.5, 0.0, 0.1]), 0.0, OPEN)
    expert = expert_of(env, Move("go", {"b": far}, steps=3))
    with pytest.raises(SimulationError, match="arm b"):
        tool_after(env, expert, 3)


@given(st.floats(-20, 20), st.floats(-4, 4), st.sampled_from([np.pi, np.pi / 2]))
def test_the_nearest_branch_is_near_and_the_same_for_the_gripper(
    yaw: float, preferred: float, period: float
) -> None:
    branch = nearest_branch(yaw, preferred, period)
    assert abs(branch - preferred) <= period / 2 + 1e-9
    turns = (branch - yaw) / period
    assert turns == pytest.approx(round(turns), abs=1e-6)


class TouchingWorld:
    """A world in which fingers touch as often as is said, and nothing else."""

    def __init__(self, touches: Callable[[], int]) -> None:
        self._touches = touches

    def geoms(self, *names: str) -> frozenset[int]:
        return frozenset(range(len(names)))

    def fingers_on(self, arm: str, geoms: frozenset[int]) -> int:
        return self._touches()


def played(skill: Skill) -> tuple[list[Move], bool]:
    """The moves of a skill, and what it returns."""
    moves = []
    while True:
        try:
            moves.append(next(skill))
        except StopIteration as end:
            return moves, end.value


def phases_of(moves: list[Move]) -> list[str]:
    return [move.phase for move in moves]


def grasp_at(pose: Callable[[], tuple[np.ndarray, float]], opening: float = OPEN) -> Grasp:
    return Grasp("a", ("thing",), pose, opening)


def still() -> tuple[np.ndarray, float]:
    return np.array([0.4, 0.2, 0.02]), 0.1


def test_a_pick_goes_above_down_and_closes() -> None:
    moves, held = played(
        pick(TouchingWorld(lambda: 2), [grasp_at(still, 0.4)], PACE, clearance=0.1)
    )
    assert held
    assert phases_of(moves) == ["approach", "descend", "close"]
    above, down = moves[0].targets["a"], moves[1].targets["a"]
    np.testing.assert_allclose(above.position - down.position, [0.0, 0.0, 0.1])
    assert (above.grip, down.grip) == (0.4, 0.4)
    assert moves[2].targets["a"](down).grip == CLOSED


def test_a_pick_that_misses_is_tried_again_and_given_up_open_and_above() -> None:
    moves, held = played(pick(TouchingWorld(lambda: 1), [grasp_at(still)], PACE, tries=3))
    assert not held
    assert phases_of(moves).count("descend") == 3
    assert phases_of(moves)[-2:] == ["release", "withdraw"]


def test_a_second_try_goes_where_the_object_is_by_then() -> None:
    touches = iter([0, 0, 0, 0, 0, 0, 2])
    places = iter(np.linspace(0.3, 0.4, 30))

    def drifting() -> tuple[np.ndarray, float]:
        return np.array([next(places), 0.2, 0.02]), 0.0

    moves, held = played(pick(TouchingWorld(lambda: next(touches)), [grasp_at(drifting)], PACE))
    assert held
    aims = [move.targets["a"].position[0] for move in moves if move.phase == "approach"]
    assert len(aims) == 2
    assert aims[1] > aims[0]


def test_an_object_that_strays_on_the_way_down_is_followed() -> None:
    places = iter([0.40, 0.40, 0.42, 0.42])

    def pushed() -> tuple[np.ndarray, float]:
        return np.array([next(places), 0.2, 0.02]), 0.0

    moves, _ = played(pick(TouchingWorld(lambda: 2), [grasp_at(pushed)], PACE))
    assert phases_of(moves) == ["approach", "descend", "descend", "close"]
    assert moves[2].targets["a"].position[0] == pytest.approx(0.42)


def test_a_pick_ends_at_once_when_its_guard_fails() -> None:
    moves, held = played(
        pick(TouchingWorld(lambda: 2), [grasp_at(still)], PACE, guard=lambda: False)
    )
    assert not held
    assert set(phases_of(moves)) == {"approach", "look"}


def test_the_other_arm_moves_aside_during_the_first_approach_only() -> None:
    aside = {"b": HERE}
    moves, _ = played(
        pick(TouchingWorld(lambda: 0), [grasp_at(still)], PACE, meanwhile=aside, tries=2)
    )
    assert ["b" in move.targets for move in moves if move.phase == "approach"] == [True, False]


def test_holding_needs_both_fingers_of_every_arm() -> None:
    grasps = [grasp_at(still), Grasp("b", ("thing",), still)]
    for touches, held in (([2, 2], True), ([2, 1], False), ([0, 2], False)):
        answers = iter(touches)
        assert holds(TouchingWorld(lambda answers=answers: next(answers)), grasps) is held


def test_a_place_goes_above_down_lets_go_and_draws_up() -> None:
    moves, kept = played(place("a", still, PACE, held=lambda: True))
    assert kept
    assert phases_of(moves) == ["carry", "lower", "release", "retreat"]
    down = moves[1].targets["a"]
    assert (moves[0].targets["a"].grip, down.grip) == (CLOSED, CLOSED)
    assert moves[2].targets["a"](down).grip == OPEN
    assert moves[3].targets["a"](down).position[2] > down.position[2]


def test_a_place_ends_when_the_object_was_dropped_on_the_way() -> None:
    moves, kept = played(place("a", still, PACE, held=lambda: False))
    assert not kept
    assert "lower" not in phases_of(moves)


def test_an_object_lost_on_the_way_down_was_not_placed() -> None:
    holding = [True]
    skill = place("a", still, PACE, held=lambda: holding[0])
    next(skill)
    assert next(skill).phase == "lower"
    holding[0] = False
    moves, kept = played(skill)
    assert not kept
    assert phases_of(moves)[-2:] == ["release", "retreat"]


@pytest.mark.parametrize(
    ("answers", "looks", "verdict"),
    [([True], 0, True), ([False, True], 1, True), ([False] * 3, 2, False)],
)
def test_a_doubt_is_looked_at_again(answers: list[bool], looks: int, verdict: bool) -> None:
    said = iter(answers)
    moves, held = played(confirmed(lambda: next(said)))
    assert phases_of(moves) == ["look"] * looks
    assert held is verdict

"""The driving environment: Gymnasium's rules, determinism, state, refused actions, words."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from teamvla.errors import SimulationError
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.planner import CRUISE, speed_limit
from teamvla.sim.driving.roads import EAST_INNER, route
from teamvla.sim.driving.task import DrivingConfig, DrivingTask
from teamvla.sim.tasks import TASKS, TaskConfig

SMALL = {"camera": {"height": 8, "width": 10}, "lidar": {"columns": 36, "beams": 4}}


def small_env(**task: object) -> DrivingEnv:
    return DrivingTask.make(DrivingConfig.model_validate({**SMALL, **task}))


def wander(env: DrivingEnv, seed: int, steps: int = 15) -> str:
    """Digest of all observations and targets of some random driving."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    for _ in range(steps):
        for name in sorted(obs):
            digest.update(obs[name].tobytes())
        digest.update(info["targets"]["trajectory"].tobytes())
        obs, _, _, _, info = env.step(rng.uniform((0.0, -0.2), (3.0, 0.2)).astype(np.float32))
    return digest.hexdigest()


def drive(env: DrivingEnv, steps: int) -> dict[str, Any]:
    """Let the expert drive; the info of the last step."""
    expert, info = env.expert(), {}
    for _ in range(steps):
        *_, info = env.step(np.concatenate(expert.act({})))
    return info


def test_env_checker_is_satisfied() -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        for harmless in (".*symmetric and normalized space.*", ".*infinity.*", ".*unbounded.*"):
            warnings.filterwarnings("ignore", message=harmless)
        check_env(small_env(), skip_render_check=True)


def test_observations_lie_in_the_space_and_have_the_contracts_fields() -> None:
    env = small_env()
    obs, _ = env.reset(seed=4)
    drive(env, 5)
    assert obs in env.observation_space
    contract = env.contract
    seen = [camera.field for camera in contract.cameras]
    seen += [signal.field for signal in contract.signals if signal.role == "observation"]
    masks = [f"{signal.field}_mask" for signal in contract.signals if signal.varies]
    assert sorted(obs) == sorted([*seen, *masks])
    assert (contract.embodiment, contract.arms, contract.action_dim) == ("driving", (), 2)


def test_valid_rows_stand_first() -> None:
    obs, _ = small_env().reset(seed=0)
    for name in ("points", "radar", "imu"):
        rows, mask = obs[name], obs[f"{name}_mask"]
        count = int(mask.sum())
        assert count > 0
        assert mask[:count].all()
        assert not rows[count:].any()


def test_same_seed_and_actions_give_identical_observations_in_another_process() -> None:
    code = "from test_driving_env import *; print(wander(small_env(), 7))"
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent)}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables
    )
    assert other.stdout.strip() == wander(small_env(), 7)


def test_an_episode_does_not_depend_on_those_before_it() -> None:
    used, fresh = small_env(), small_env()
    wander(used, 1)
    assert wander(used, 2) == wander(fresh, 2)
    assert wander(fresh, 2) != wander(fresh, 3)


@pytest.mark.parametrize("situation", ["night", "fog"])
def test_a_state_that_went_through_json_continues_to_the_bit(situation: str) -> None:
    env = small_env(situation=situation)
    env.reset(seed=5)
    drive(env, 40)
    saved = json.loads(json.dumps({k: v.tolist() for k, v in env.get_state().items()}))

    def ahead(env: DrivingEnv) -> list[dict[str, Any]]:
        expert = env.expert()
        return [env.step(np.concatenate(expert.act({})))[0] for _ in range(15)]

    expected = ahead(env)
    other = small_env(situation=situation)
    other.reset(seed=99)
    again = other.set_state(saved)
    assert {n: v.tobytes() for n, v in again.items()} == {
        n: v.tobytes() for n, v in env.set_state(saved).items()
    }
    for one, two in zip(expected, ahead(other), strict=True):
        assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in two.items()}


RUBBISH: list[tuple[str, Any, str]] = [
    ("vehicle", None, "vehicle: expected finite numbers"),
    ("vehicle", [3.0, np.nan, 0.0], "vehicle: expected finite numbers"),
    ("vehicle", [3.0, 0.0], r"vehicle: expected shape \(3,\)"),
    ("vehicle", [-1.0, 0.0, 0.0], "vehicle: expected numbers from"),
    ("counters", [0.5, 0], "counters: expected whole numbers"),
    ("counters", [10**6, 0], "counters: expected"),
    ("others", "fast", "others: expected numbers"),
    ("drawn_route", 7, "drawn_route: expected"),
    ("drawn_words", [0, 99], "drawn_words: expected"),
    ("drawn_sensors", -1, "drawn_sensors: expected"),
    ("drawn_weather", [0, 0, 1, 0.5, 0.5, -1], "drawn_weather: expected numbers from"),
    ("drawn_buildings", -np.ones((16, 5)), "scene: expected one that can be simulated"),
]


@pytest.mark.parametrize(("name", "value", "said"), RUBBISH)
def test_a_state_of_rubbish_is_refused_and_changes_nothing(
    name: str, value: Any, said: str
) -> None:
    env = small_env()
    env.reset(seed=0)
    drive(env, 3)
    before = env.get_state()
    with pytest.raises(SimulationError, match=said):
        env.set_state({**before, name: value})
    after = env.get_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_state_of_another_task_is_refused() -> None:
    env = small_env()
    env.reset(seed=0)
    state = env.get_state()
    del state["vehicle"]
    with pytest.raises(SimulationError, match="saved by another task"):
        env.set_state(state)


@pytest.mark.parametrize(
    ("action", "said"),
    [([0.0], "2 numbers"), ([np.nan, 0.0], "acceleration"), ([0.0, np.inf], "steering")],
)
def test_unfit_actions_are_refused(action: list[float], said: str) -> None:
    env = small_env()
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=said):
        env.step(np.array(action, np.float32))


def test_it_must_be_reset_first() -> None:
    with pytest.raises(SimulationError, match="a reset first"):
        small_env().step(np.zeros(2, np.float32))


def test_commands_out_of_range_are_clipped() -> None:
    env = small_env()
    env.reset(seed=0)
    for _ in range(4):
        obs, *_ = env.step(np.array([1e6, -1e6], np.float32))
    speed, _, steering, acceleration = obs["ego"]
    assert acceleration == pytest.approx(3.0)
    assert speed == pytest.approx(0.6)
    assert steering == pytest.approx(-0.8 * 0.2)  # the wheels turn at 0.8 rad/s


@pytest.mark.parametrize("route", ["keep_lane", "turn_left", "turn_right", "stop_behind"])
def test_the_words_are_those_of_the_route(route: str) -> None:
    env = small_env(routes=(route,), situation="clear", instructions=("do {route}, please",))
    said = set()
    for seed in range(12):
        _, info = env.reset(seed=seed)
        assert info["route"] == route
        said.add(info["instruction"])
    phrasings = getattr(env.config.phrasings, route)
    assert said <= {f"do {words}, please" for words in phrasings}
    assert len(said) > 1


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"instructions": ["go"]}, "has no {route}"),
        ({"routes": []}, "at least 1"),
        ({"routes": ["fly"]}, "keep_lane"),
        ({"camera": {"height": 2}}, "greater than or equal to 8"),
        ({"start_m": [-10, -5]}, "between -70 and -45"),
        ({"situation": "rain"}, "occlusion"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(task: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DrivingConfig.model_validate(task)


def test_the_registry_makes_it_and_reading_its_settings_does_not_import_mujoco() -> None:
    kind = TASKS.get("driving")
    assert TaskConfig.choose({"name": "driving"}) is kind.Config is DrivingConfig
    code = "import sys, teamvla.sim.driving.task; print('mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("seed", range(3))
def test_the_target_trajectory_is_where_the_expert_then_drives(seed: int) -> None:
    env = small_env(situation="clear", traffic=0.0, routes=("keep_lane", "turn_right"))
    env.reset(seed=seed)
    info = drive(env, 60 + 30 * seed)
    promised = info["targets"]["trajectory"]
    x, y, heading = env.world.vehicle.pose
    driven = []
    for _ in range(len(promised)):
        drive(env, 10)
        offset = env.world.vehicle.pose[:2] - (x, y)
        ahead = offset @ (np.cos(heading), np.sin(heading))
        driven.append((ahead, offset @ (-np.sin(heading), np.cos(heading))))
    gaps = np.linalg.norm(promised - np.array(driven), axis=1)
    assert promised.dtype == np.float32
    assert (gaps < 0.12 + 0.06 * np.linalg.norm(promised, axis=1)).all()


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_neither_standing_still_nor_random_driving_succeeds(scale: float) -> None:
    env = small_env(max_steps=150, hold_steps=1)
    rng = np.random.default_rng(3)
    low, high = env.action_space.low, env.action_space.high
    for seed in range(3):
        env.reset(seed=seed)
        over = False
        while not over:
            action = (scale * rng.uniform(low, high)).astype(np.float32)
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            assert not info["success"]


def test_the_picture_from_above_shows_the_ego() -> None:
    env = small_env()
    env.reset(seed=1)
    picture = env.render()
    assert picture.shape == (240, 320, 3)
    red = (picture[..., 0] > 190) & (picture[..., 1] < 40) & (picture[..., 2] < 40)
    assert 80 < red.sum() < 200  # 4.5 m by 1.8 m in pixels of 0.25 m


def test_the_picture_from_above_shows_the_lines_wherever_the_ego_is() -> None:
    env = small_env(routes=["keep_lane"])
    for seed in range(8):
        env.reset(seed=seed)
        north = env.world.vehicle.pose[1]  # of the middle of the picture
        dark = env.render().min(axis=-1)
        for line in (-3.5, 3.5):  # between two lanes of one way, m
            row = round(119.5 - (line - north) / 0.25)
            painted = dark[row - 1 : row + 2].max(axis=0) > 105  # asphalt has 79
            assert 30 < painted.sum() < 200


@pytest.mark.parametrize("name", ["keep_lane", "turn_left"])
def test_who_drives_on_beyond_the_end_of_a_route_meets_no_bend(name: Any) -> None:
    way = route(name, EAST_INNER)
    end = float(np.linalg.norm(np.diff(way.points, axis=0), axis=1).sum())
    assert speed_limit(way, end + 5.0) == CRUISE

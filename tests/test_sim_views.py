"""Every camera of the two arms sees what it is there for."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.cameras import RayRenderer
from teamvla.sim.scene import ARMS, MAX_OPENING
from teamvla.sim.tasks import TaskConfig


@pytest.fixture
def env() -> TwoArmEnv:
    env = make_env()
    env.reset(seed=0)
    return env


def hue(picture: np.ndarray, strong: int, weak: tuple[int, int]) -> int:
    """How many pixels have one channel far above the two others."""
    channels = picture.astype(int)
    first, second = (channels[..., strong] - channels[..., other] for other in weak)
    return int(((first > 70) & (second > 70)).sum())


def play(env: TwoArmEnv, seed: int, phase: str) -> None:
    """Run the expert until it is a few steps into ``phase``."""
    env.reset(seed=seed)
    expert, since = env.expert(), 0
    while since < 5:
        command = np.concatenate(expert.act({}))
        since += expert.phase == phase
        for arm, part in zip(ARMS, np.split(command.astype(float), 2), strict=True):
            env.world.set_command(arm, part)
        env.world.advance()


def geoms_of(env: TwoArmEnv, *prefixes: str) -> np.ndarray:
    """Ids of the geoms of bodies whose names begin so."""
    model = env.world.model
    bodies = [model.body(int(body)).name for body in model.geom_bodyid]
    return np.flatnonzero([body.startswith(prefixes) for body in bodies])


@pytest.mark.parametrize("seed", range(8))
def test_each_camera_sees_both_handles(seed: int) -> None:
    obs, _ = make_env().reset(seed=seed)
    for camera in ("rgb_a", "rgb_b"):
        assert hue(obs[camera], 0, (1, 2)) >= 5, "the red handle of arm a"
        assert hue(obs[camera], 2, (0, 1)) >= 5, "the blue handle of arm b"


#: task, phase, whose camera, body that its arm works on, share that no arm hides at least.
WORK = [
    ("lift", "approach", "a", "tray", 0.9),
    ("lift", "approach", "b", "tray", 0.9),
    ("lift", "descend", "a", "tray", 0.85),
    ("lift", "close", "b", "tray", 0.85),
    ("lift", "lift", "a", "tray", 0.85),
    ("handoff", "approach", "a", "bar", 0.7),
    ("handoff", "present", "a", "bar", 0.5),
    ("handoff", "reach", "b", "bar", 0.4),
    ("handoff", "lower", "b", "bar", 0.5),
    ("drawer", "approach", "a", "drawer", 0.7),
    ("drawer", "approach", "b", "block", 0.3),
    ("drawer", "pull", "a", "drawer", 0.6),
    ("drawer", "lower", "b", "drawer", 0.5),
]


@pytest.mark.parametrize(("task", "phase", "arm", "body", "share"), WORK)
def test_no_arm_hides_its_work(task: str, phase: str, arm: str, body: str, share: float) -> None:
    for seed in (0, 1):
        env = make_env(TaskConfig.model_validate({"name": task}))
        play(env, seed, phase)
        camera, groups = RayRenderer(env.world, 64, 64), env.world.model.geom_group
        seen = camera.capture(f"rgb_{arm}").geoms
        before = groups.copy()
        groups[geoms_of(env, "a_", "b_")] = 3  # as if there were no arms
        bare = camera.capture(f"rgb_{arm}").geoms
        groups[:] = before
        work = geoms_of(env, body)
        assert np.isin(seen, work).sum() >= max(4, share * np.isin(bare, work).sum())
        assert np.isin(seen, geoms_of(env, f"{arm}_l6", f"{arm}_f")).sum() >= 8, "its own hand"


@pytest.mark.parametrize("opening", [0.0, 1.0])
@pytest.mark.parametrize("arm", ARMS)
def test_a_wrist_camera_sees_both_finger_tips_and_between_them(
    env: TwoArmEnv, arm: str, opening: float
) -> None:
    model, data = env.world.model, env.world.data
    data.qpos[env.world.arms[arm].fingers] = opening * MAX_OPENING
    mujoco.mj_forward(model, data)
    seen = RayRenderer(env.world, 64, 64).capture(f"rgb_wrist_{arm}").geoms
    for finger in ("f1", "f2"):
        assert (seen == model.geom(f"{arm}_{finger}").id).mean() > 0.02
    assert not (seen == model.geom(f"{arm}_palm").id).any(), "the palm is in the way"
    assert np.isin(seen, geoms_of(env, "world")).mean() > 0.5
    tool = env.world.tool(arm) - data.camera(f"rgb_wrist_{arm}").xpos
    right, up, back = data.camera(f"rgb_wrist_{arm}").xmat.reshape(3, 3).T @ tool
    assert max(abs(right), abs(up)) < -0.5 * back, "the tool is far from the middle"


@pytest.mark.parametrize("arm", ARMS)
def test_a_wrist_camera_sees_what_the_fingers_hold(env: TwoArmEnv, arm: str) -> None:
    play(env, 0, "lift")
    seen = RayRenderer(env.world, 64, 64).capture(f"rgb_wrist_{arm}").geoms
    assert (seen == env.world.model.geom(f"handle_{arm}").id).mean() > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_the_top_camera_keeps_its_heading(seed: int) -> None:
    env = make_env()
    env.reset(seed=seed)
    right, up, _ = env.world.data.camera("rgb_top").xmat.reshape(3, 3).T
    assert up @ [1.0, 0.0, 0.0] > 0.999
    assert right @ [0.0, -1.0, 0.0] > 0.999

"""The ray camera sees what is there; OpenGL's absence is explained."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from teamvla.errors import SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.cameras import RayRenderer
from teamvla.sim.tasks import TwoArmTaskConfig

VISIBLE = np.array([1, 1, 1, 0, 0, 0], np.uint8)


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


@pytest.mark.parametrize("seed", range(8))
def test_each_camera_sees_both_handles(seed: int) -> None:
    obs, _ = make_env().reset(seed=seed)
    for camera in ("rgb_a", "rgb_b"):
        assert hue(obs[camera], 0, (1, 2)) >= 5, "the red handle of arm a"
        assert hue(obs[camera], 2, (0, 1)) >= 5, "the blue handle of arm b"


@pytest.mark.parametrize("camera", ["rgb_a", "rgb_b", "overview"])
def test_every_pixel_shows_what_a_single_ray_hits(env: TwoArmEnv, camera: str) -> None:
    model, data = env.world.model, env.world.data
    for number in range(model.ngeom):  # each geom a colour of its own, nothing but ambient light
        model.geom_rgba[number, :3] = (number / 255, 0.0, 0.0)
    model.vis.headlight.ambient[:] = 1.0
    model.vis.headlight.diffuse[:] = model.light_diffuse[:] = 0.0
    size = 20
    picture = RayRenderer(env.world, size, size).render(camera)
    turn, origin = data.camera(camera).xmat.reshape(3, 3), data.camera(camera).xpos.copy()
    focal = size / 2 / np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
    found = np.zeros((1, 1), np.int32)
    for row in range(size):
        for column in range(size):
            ray = turn @ [(column + 0.5 - size / 2) / focal, (size / 2 - row - 0.5) / focal, -1.0]
            mujoco.mj_ray(model, data, origin, ray / np.linalg.norm(ray), VISIBLE, 1, -1, found)
            if found[0, 0] >= 0:
                assert picture[row, column].tolist() == [found[0, 0], 0, 0]
            else:
                assert picture[row, column].min() > 150


def test_shadows_darken_the_table_and_nothing_brightens(env: TwoArmEnv) -> None:
    plain = RayRenderer(env.world, 48, 48).render("overview").astype(int)
    shaded = RayRenderer(env.world, 48, 48, shadows=True).render("overview").astype(int)
    assert (shaded <= plain).all()
    assert 5 < (shaded < plain - 20).any(axis=-1).sum() < 0.3 * 48 * 48


def test_samples_average_the_finer_picture(env: TwoArmEnv) -> None:
    fine = RayRenderer(env.world, 32, 32).render("overview").astype(float)
    smooth = RayRenderer(env.world, 16, 16, samples=2).render("overview")
    mean = fine.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(smooth, mean, atol=1.0)


def test_the_picture_follows_the_drawn_light_and_colour(env: TwoArmEnv) -> None:
    camera = RayRenderer(env.world, 32, 32)
    before = camera.render("rgb_a").astype(int)
    env.world.set_light(np.array([0.4, 0.0, 1.9]), 0.0)
    dark = camera.render("rgb_a").astype(int)
    env.world.set_colour("table", np.array([0.0, 1.0, 0.0]))
    green = camera.render("rgb_a")
    assert dark.mean() < 0.8 * before.mean()
    assert hue(green, 1, (0, 2)) > 300


def test_the_overview_is_a_picture_of_its_own_size(env: TwoArmEnv) -> None:
    picture = env.render()
    assert (picture.shape, picture.dtype.name) == ((240, 320, 3), "uint8")
    assert hue(picture, 0, (1, 2)) > 20
    assert hue(picture, 2, (0, 1)) > 20


def test_missing_opengl_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gl(*_: object) -> None:
        raise mujoco.FatalError("gladLoadGL error")

    monkeypatch.setattr(mujoco, "Renderer", no_gl)
    config = TwoArmTaskConfig.model_validate({"camera": {"renderer": "gl"}})
    with pytest.raises(SimulationError, match=r"a working OpenGL.*renderer=ray"):
        make_env(config)

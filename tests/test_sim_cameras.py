"""The ray camera sees what is there, and so do depth and segmentation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import partial

import mujoco
import numpy as np
import pytest
from pydantic import ValidationError

from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.cameras import Capture, RayRenderer, Segments
from teamvla.sim.scene import VIEWS, add
from teamvla.sim.tasks import TwoArmTaskConfig
from teamvla.sim.testing import check_environment

VISIBLE = np.array([1, 1, 1, 0, 0, 0], np.uint8)
EVERYTHING = {"wrist": True, "top": True, "depth": True, "segmentation": True}
FIXED = [view.name for view in VIEWS if not view.body]


class Still:
    """A scene that stands still."""

    def __init__(self, xml: str) -> None:
        self.model = mujoco.MjModel.from_xml_string(f"<mujoco>{xml}</mujoco>")
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)


@pytest.fixture
def env() -> TwoArmEnv:
    env = make_env()
    env.reset(seed=0)
    return env


def with_cameras(**camera: object) -> TwoArmEnv:
    return make_env(TwoArmTaskConfig.model_validate({"camera": camera}))


def hue(picture: np.ndarray, strong: int, weak: tuple[int, int]) -> int:
    """How many pixels have one channel far above the two others."""
    channels = picture.astype(int)
    first, second = (channels[..., strong] - channels[..., other] for other in weak)
    return int(((first > 70) & (second > 70)).sum())


def rays_of(model: object, data: object, camera: str, height: int, width: int) -> np.ndarray:
    """World directions of all pixels, 1 m along the optical axis, float64[H, W, 3]."""
    focal = height / 2 / np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
    right = (np.arange(width) + 0.5 - width / 2) / focal
    down = (np.arange(height) + 0.5 - height / 2) / focal
    ahead = np.stack([*np.meshgrid(right, -down), -np.ones((height, width))], axis=-1)
    return ahead @ data.camera(camera).xmat.reshape(3, 3).T


def geoms_of(env: TwoArmEnv, *prefixes: str) -> np.ndarray:
    """Ids of the geoms of bodies whose names begin so."""
    model = env.world.model
    bodies = [model.body(int(body)).name for body in model.geom_bodyid]
    return np.flatnonzero([body.startswith(prefixes) for body in bodies])


@pytest.mark.parametrize("camera", ["rgb_a", "rgb_b", "overview", "rgb_wrist_a"])
def test_every_pixel_shows_what_a_single_ray_hits(env: TwoArmEnv, camera: str) -> None:
    model, data = env.world.model, env.world.data
    for number in range(model.ngeom):  # each geom a colour of its own, nothing but ambient light
        model.geom_rgba[number, :3] = (number / 255, 0.0, 0.0)
    model.vis.headlight.ambient[:] = 1.0
    model.vis.headlight.diffuse[:] = model.light_diffuse[:] = 0.0
    size = 20
    capture = RayRenderer(env.world, size, size).capture(camera)
    origin, found = data.camera(camera).xpos.copy(), np.zeros((1, 1), np.int32)
    for place, ray in enumerate(rays_of(model, data, camera, size, size).reshape(-1, 3)):
        row, column = divmod(place, size)
        length = np.linalg.norm(ray)
        far = mujoco.mj_ray(model, data, origin, ray / length, VISIBLE, 1, -1, found)
        assert capture.geoms[row, column] == found[0, 0]
        if found[0, 0] >= 0:
            assert capture.rgb[row, column].tolist() == [found[0, 0], 0, 0]
            assert capture.depth[row, column] == pytest.approx(far / length, rel=1e-6)
        else:
            assert capture.rgb[row, column].min() > 150
            assert capture.depth[row, column] == np.inf


@pytest.mark.parametrize("camera", FIXED)
def test_depth_of_the_table_is_that_of_its_plane(env: TwoArmEnv, camera: str) -> None:
    model, data = env.world.model, env.world.data
    capture = RayRenderer(env.world, 48, 64).capture(camera)
    rays, height = rays_of(model, data, camera, 48, 64), float(data.camera(camera).xpos[2])
    points = data.camera(camera).xpos + rays * (height / -rays[..., 2:])
    centre, half = model.geom("table").pos[:2], model.geom("table").size[:2]
    on_top = (capture.geoms == model.geom("table").id) & (
        np.abs(points[..., :2] - centre) < half - 1e-3
    ).all(axis=-1)
    assert on_top.mean() > 0.2
    plane = height / -rays[..., 2]
    np.testing.assert_allclose(capture.depth[on_top], plane[on_top], rtol=1e-6)


def test_depth_puts_every_pixel_onto_the_geom_that_it_shows(env: TwoArmEnv) -> None:
    model, data = env.world.model, env.world.data
    capture = RayRenderer(env.world, 64, 64).capture("rgb_a")
    rays = rays_of(model, data, "rgb_a", 64, 64)
    checked = 0
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX):
        shown = capture.geoms == geom
        points = data.camera("rgb_a").xpos + rays[shown] * capture.depth[shown][:, None]
        local = (points - data.geom_xpos[geom]) @ data.geom_xmat[geom].reshape(3, 3)
        beyond = (np.abs(local) - model.geom_size[geom]).max(axis=1)  # 0 on the surface
        np.testing.assert_allclose(beyond, 0.0, atol=1e-5)
        checked += shown.sum()
    assert checked > 2000


def test_a_capture_shows_the_picture_that_render_gives(env: TwoArmEnv) -> None:
    camera = RayRenderer(env.world, 40, 56, shadows=True)
    capture = camera.capture("rgb_b")
    np.testing.assert_array_equal(capture.rgb, camera.render("rgb_b"))
    shapes = (capture.rgb.shape, capture.depth.shape, capture.geoms.shape)
    assert shapes == ((40, 56, 3), (40, 56), (40, 56))
    assert (capture.depth.dtype, capture.geoms.dtype) == (np.float32, np.int32)


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


def test_the_picture_follows_the_drawn_light() -> None:
    def brightness(level: float) -> float:
        config = {"light_level": (level, level), "light_shift": 0.0}
        obs, _ = make_env(TwoArmTaskConfig.model_validate(config)).reset(seed=0)
        return float(obs["rgb_a"].mean())

    dark, usual, bright = map(brightness, (0.1, 1.0, 1.4))
    assert dark < 0.8 * usual < 0.8 * bright


def test_the_picture_follows_a_colour_that_changes(env: TwoArmEnv) -> None:
    camera = RayRenderer(env.world, 32, 32)
    assert hue(camera.render("rgb_a"), 1, (0, 2)) == 0
    env.world.set_colour("table", np.array([0.0, 1.0, 0.0]))
    assert hue(camera.render("rgb_a"), 1, (0, 2)) > 300


def test_the_overview_is_a_picture_of_its_own_size(env: TwoArmEnv) -> None:
    picture = env.render()
    assert (picture.shape, picture.dtype.name) == ((240, 320, 3), "uint8")
    assert hue(picture, 0, (1, 2)) > 20
    assert hue(picture, 2, (0, 1)) > 20


ROOM = """
<asset><mesh name="pyramid" vertex="1 1 0  1 -1 0  -1 1 0  -1 -1 0  0 0 2"/>
<material name="red" rgba="1 0 0 1"/></asset>
<worldbody><light pos="0 0 9"/><camera name="eye" pos="0 0 5" fovy="40"/>{}</worldbody>
"""


def looking_down(geoms: str, **options: object) -> Capture:
    return RayRenderer(Still(ROOM.format(geoms)), 33, 33, **options).capture("eye")


def test_meshes_and_materials_are_seen() -> None:
    capture = looking_down('<geom type="mesh" mesh="pyramid" material="red"/>')
    beside = capture.depth[16, 17]  # of the tip, which is 2 m high; a step sideways is 0.055 m
    assert beside == pytest.approx(3.0, abs=0.2)
    # One ray, through the very tip, slips in between the faces and shows the dark inside.
    assert hue(capture.rgb, 0, (1, 2)) >= (capture.geoms == 0).sum() - 1 > 50


def test_a_colour_of_its_own_goes_before_the_material() -> None:
    capture = looking_down('<geom type="box" size="1 1 1" material="red" rgba="0 0 1 1"/>')
    assert hue(capture.rgb, 2, (0, 1)) == (capture.geoms == 0).sum() > 50


@pytest.mark.parametrize(
    ("paint", "seen"),
    [('rgba="0 1 0 0.1"', 0), ('rgba="0 1 0 0.7"', 1), ('material="glass"', 0)],
)
def test_what_is_nearly_transparent_is_neither_seen_nor_shadows(paint: str, seen: int) -> None:
    boxes = """<geom type="box" size="3 3 .1"/>
        <geom type="box" size=".5 .5 .1" pos="0 0 1.5" PAINT/>""".replace("PAINT", paint)
    glass = '<material name="glass" rgba="0 1 0 .2"/></asset>'
    scene = Still(ROOM.format(boxes).replace("</asset>", glass).replace("0 0 9", "6 0 9"))
    groups = scene.model.geom_group.copy()
    plain, shaded = (
        RayRenderer(scene, 33, 33, shadows).capture("eye") for shadows in (False, True)
    )
    assert {*np.unique(plain.geoms)} == {*range(seen + 1)}
    assert (shaded.rgb < plain.rgb).any() == bool(seen)
    assert (scene.model.geom_group == groups).all()


def test_rays_end_at_their_reach() -> None:
    ground = '<geom type="plane" size="50 50 1"/>'
    assert np.isfinite(looking_down(ground, reach=20.0).depth).all()
    assert np.isinf(looking_down(ground, reach=4.0).depth).all()


def test_a_lamp_beyond_the_reach_casts_shadows() -> None:
    boxes = '<geom type="plane" size="9 9 1"/><geom type="box" size=".3 .3 .3" pos="0 0 2"/>'
    scene = Still(ROOM.format(boxes).replace("0 0 9", "20 0 30"))
    plain, shaded = (
        RayRenderer(scene, 33, 33, shadows, reach=6.0).render("eye") for shadows in (False, True)
    )
    assert 5 < (shaded < plain).any(axis=-1).sum() < 200


def test_a_directional_light_shines_from_its_direction() -> None:
    ball = '<geom type="sphere" size="1"/>'
    sun = ROOM.format(ball).replace(
        '<light pos="0 0 9"/>', '<light type="directional" dir="1 0 -1"/>'
    )
    picture = RayRenderer(Still(sun), 33, 33).render("eye").astype(int)
    left, right = picture[16, 10], picture[16, 22]  # light comes from the left
    assert (left > right + 40).all()


def test_all_cameras_with_depth_and_segmentation_keep_the_rules() -> None:
    config = {"camera": {"height": 16, "width": 24, **EVERYTHING}}
    make = partial(make_env, TwoArmTaskConfig.model_validate(config))
    check_environment(make, steps=6)
    fields = [camera.field for camera in make().contract.cameras]
    assert fields == ["rgb_a", "rgb_b", "rgb_wrist_a", "rgb_wrist_b", "rgb_top"]
    observation, _ = make().reset(seed=0)
    stems = ("a", "b", "wrist_a", "wrist_b", "top")
    assert {name for name in observation if name.startswith(("depth", "seg"))} == {
        f"{kind}_{stem}" for kind in ("depth", "seg") for stem in stems
    }


def test_more_cameras_leave_the_two_as_they_are() -> None:
    plain, _ = make_env().reset(seed=3)
    rich, _ = with_cameras(**EVERYTHING).reset(seed=3)
    for field in plain:
        np.testing.assert_array_equal(plain[field], rich[field])


def test_segments_name_the_room_the_arms_and_the_objects(env: TwoArmEnv) -> None:
    model = env.world.model
    segments = Segments(model)
    expected = {"table": 1, "tray": 6, "handle_b": 6, "a_palm": 4, "b_f2": 5}
    for geom, number in expected.items():
        ids = np.array([model.geom(geom).id, -1], np.int32)
        assert segments.of(model, ids).tolist() == [number, 0]
    assert segments.numbers["tray"] == 6
    assert env.segments == segments.numbers
    assert set(segments.of(model, geoms_of(env, "a_l1", "a_base"))) == {segments.numbers["arm_a"]}


def test_segments_stay_when_something_is_put_into_the_scene() -> None:
    env = with_cameras(segmentation=True)
    before, _ = env.reset(seed=0)

    def put_in(root: object, rng: object) -> None:
        world = root.find("worldbody")
        ball = add(world, "geom", name="ball", type="sphere", size=(0.05,), pos=(0.6, 0.3, 0.3))
        world.remove(ball)
        world.insert(0, ball)  # every other geom gets another id

    env.edits.append(put_in)
    after, _ = env.reset(seed=0)
    new = after["seg_a"] == 255
    assert 5 < new.sum() < 500
    np.testing.assert_array_equal(after["seg_a"][~new], before["seg_a"][~new])


SCRIPT = """
import hashlib
from teamvla.sim import make_env
from teamvla.sim.tasks import TwoArmTaskConfig
camera = {"wrist": True, "top": True, "depth": True, "segmentation": True}
observation, _ = make_env(TwoArmTaskConfig.model_validate({"camera": camera})).reset(seed=5)
fields = b"".join(observation[field].tobytes() for field in sorted(observation))
print(hashlib.sha256(fields).hexdigest())
"""


def test_another_process_with_more_threads_sees_the_same_bits() -> None:
    observation, _ = with_cameras(**EVERYTHING).reset(seed=5)
    fields = b"".join(observation[field].tobytes() for field in sorted(observation))
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(fields).hexdigest()


@pytest.mark.parametrize("size", [7, 2049, 64.5, 0, -64])
@pytest.mark.parametrize("side", ["height", "width"])
def test_sizes_out_of_range_are_refused(side: str, size: float) -> None:
    with pytest.raises(ValidationError, match=side):
        TwoArmTaskConfig.model_validate({"camera": {side: size}})


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 300), (224, 224)])
def test_pictures_have_the_size_that_is_asked_for(height: int, width: int) -> None:
    observation, _ = with_cameras(height=height, width=width).reset(seed=0)
    assert observation["rgb_a"].shape == (height, width, 3)
    assert hue(observation["rgb_a"], 0, (1, 2)) >= height // 32

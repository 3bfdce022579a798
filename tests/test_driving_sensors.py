"""Driving: what the sensors say against what is there."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from teamvla.sim.driving import ground
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.rays import GROUND, Fan
from teamvla.sim.driving.scene import LIDAR_AT, RADAR_AT
from teamvla.sim.driving.task import DrivingConfig
from teamvla.sim.driving.vehicle import WHEELBASE_M

EXACT = {
    "camera": {"height": 8, "width": 8},
    "lidar": {"noise_m": 0.0, "dropout": 0.0},
    "radar": {"noise_m": 0.0, "noise_speed": 0.0},
}


def exact_env(**task: object) -> DrivingEnv:
    return DrivingEnv(DrivingConfig.model_validate({"situation": "clear", **EXACT, **task}))


def driven(env: DrivingEnv, seed: int, steps: int) -> dict[str, Any]:
    """What is observed after the expert has driven for a while; only then do sensors look."""
    obs, _ = env.reset(seed=seed)
    expert = env.expert()
    for _ in range(steps - 1):
        env.world.advance(*map(float, expert.act({})[0]))
    return env.step(np.concatenate(expert.act({})))[0] if steps else obs


def steady(env: DrivingEnv, action: tuple[float, float], steps: int) -> dict[str, Any]:
    obs: dict[str, Any] = {}
    for _ in range(steps):
        obs, *_ = env.step(np.array(action, np.float32))
    return obs


def in_world(env: DrivingEnv, points: np.ndarray, sensor: tuple[float, ...]) -> np.ndarray:
    """Points of a sensor's frame, float[N, 2], on the map."""
    x, y, heading = env.world.vehicle.pose
    cosine, sine = np.cos(heading), np.sin(heading)
    ahead, left = points[:, 0] + sensor[0], points[:, 1] + sensor[1]
    return np.stack([x + ahead * cosine - left * sine, y + ahead * sine + left * cosine], -1)


def rows(obs: dict[str, Any], name: str) -> np.ndarray:
    return np.asarray(obs[name][obs[f"{name}_mask"]])


@pytest.mark.parametrize("site", ["cameras", "lidar", "radar"])
def test_cells_of_rays_meet_what_single_rays_meet(site: str) -> None:
    env = exact_env(situation="occlusion")
    driven(env, 3, 100)
    world, rng = env.world, np.random.default_rng(0)
    rays = rng.normal(size=(1500, 3)) * (1.0, 1.0, 0.3)
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    origin, heading = world.site(site), float(world.vehicle.pose[2])
    hits = Fan(rays).cast(world.model, world.data, origin, heading, 90.0, world.ego_body)
    met = np.empty(1, np.int32)
    for ray, geom, distance in zip(hits.rays, hits.geoms, hits.distances, strict=True):
        found = mujoco.mj_ray(
            world.model, world.data, origin, ray, None, True, world.ego_body, met
        )  # fmt: skip
        floor = -origin[2] / ray[2] if ray[2] < 0 else np.inf
        nearest = min(found if found >= 0 else np.inf, floor)
        assert distance == (nearest if nearest <= 90.0 else np.inf)
        assert geom < 0 or geom == met[0]
        assert (geom == GROUND) == (floor == nearest <= 90.0)


def test_lidar_points_lie_on_the_ground_and_on_boxes() -> None:
    env = exact_env()
    points = rows(driven(env, 2, 60), "points")
    height = points[:, 2] + LIDAR_AT[2]
    low = np.abs(height) < 1e-4
    assert 500 < low.sum() < len(points)
    # Every other point lies on the surface of some geom, to the float's precision.
    world = env.world
    raised = points[~low].astype(np.float64)
    flat = in_world(env, raised, LIDAR_AT)
    places = np.concatenate([flat, (raised[:, 2] + LIDAR_AT[2])[:, None]], axis=1)
    offsets = places[:, None] - world.data.geom_xpos
    axes = world.data.geom_xmat.reshape(-1, 3, 3)
    local = np.abs(np.einsum("ngx,gxa->nga", offsets, axes))
    outside = (local - world.model.geom_size).max(axis=-1)
    assert np.abs(outside).min(axis=1).max() < 1e-3


def test_lidar_range_to_the_vehicle_ahead_is_the_gap() -> None:
    env = exact_env(
        situation="night", routes=("stop_behind",), lidar={**EXACT["lidar"], "beams": 61}
    )
    obs, _ = env.reset(seed=0)
    world = env.world
    gap = world.traffic.along[0] - 160.0 - 2.2 - (world.vehicle.pose[0] + LIDAR_AT[0])
    points = rows(obs, "points")
    height = points[:, 2] + LIDAR_AT[2]
    lane = (np.abs(points[:, 1]) < 0.5) & (points[:, 0] > 5)
    ahead = points[lane & (height > 0.4) & (height < 0.95)]  # its hull
    assert len(ahead) > 2
    assert ahead[:, 0].min() == pytest.approx(gap, abs=1e-3)


def test_paint_on_the_road_reflects() -> None:
    kinds = ground.surfaces(np.array([(-30.0, -3.4), (-30.0, -6.75), (-30.0, 0.18), (-30.0, -9.0)]))
    assert kinds[1:].tolist() == [ground.WHITE, ground.YELLOW, ground.PAVEMENT]
    env = exact_env()
    points = rows(driven(env, 2, 60), "points")
    low = np.abs(points[:, 2] + LIDAR_AT[2]) < 1e-4
    surfaces = ground.surfaces(in_world(env, points[low], LIDAR_AT).astype(np.float64))
    painted = surfaces == ground.WHITE
    slant = -points[low][:, 2] / np.linalg.norm(points[low][:, :3], axis=1)
    albedo = points[low][:, 3] / slant
    assert painted.sum() > 10
    # At the edge of a cell the rounding of float32 may change sides.
    assert np.median(albedo[painted]) == pytest.approx(0.8, abs=1e-3)
    assert np.median(albedo[surfaces == ground.ASPHALT]) == pytest.approx(0.12, abs=1e-3)


def test_lidar_noise_and_dropout_are_as_told() -> None:
    noisy = {"noise_m": 0.05, "dropout": 0.3}
    exact, rough = exact_env(), exact_env(lidar=noisy)
    clean, _ = exact.reset(seed=6)
    noised, _ = rough.reset(seed=6)
    kept = noised["points_mask"].sum() / clean["points_mask"].sum()
    assert kept == pytest.approx(0.7, abs=0.03)
    # Rays keep their directions: match by them, compare the ranges.
    before, after = rows(clean, "points"), rows(noised, "points")
    lengths = [np.linalg.norm(part[:, :3], axis=1) for part in (before, after)]
    keys = [
        np.round(p[:, :3] / n[:, None], 4) for p, n in zip((before, after), lengths, strict=True)
    ]
    index = {tuple(key): length for key, length in zip(keys[0], lengths[0], strict=True)}
    errors = [
        n - index[tuple(k)] for k, n in zip(keys[1], lengths[1], strict=True) if tuple(k) in index
    ]
    assert len(errors) > 1000
    assert np.std(errors) == pytest.approx(0.05, rel=0.1)


def test_fog_shortens_the_lidars_sight_but_not_the_radars() -> None:
    clear = driven(exact_env(situation="night"), 4, 60)
    foggy = driven(exact_env(situation="fog"), 4, 60)
    far = [np.linalg.norm(rows(obs, "points")[:, :3], axis=1).max() for obs in (clear, foggy)]
    assert far[0] > 60
    assert far[1] < 20
    np.testing.assert_array_equal(clear["radar"], foggy["radar"])
    assert np.hypot(*rows(foggy, "radar")[:, :2].T).max() > 40


@pytest.mark.parametrize("steps", [0, 40, 90, 150])
def test_radar_velocities_are_those_of_the_bodies(steps: int) -> None:
    env = exact_env(routes=("turn_left",), situation="crossing")
    targets = rows(driven(env, 5, steps), "radar")
    world = env.world
    assert len(targets) > 3
    places = in_world(env, targets, RADAR_AT)
    points, headings = world.traffic.points()
    heading = float(world.vehicle.pose[2])
    turning = world.vehicle.yaw_rate * RADAR_AT[0] * np.array([-np.sin(heading), np.cos(heading)])
    own = world.vehicle.speed * np.array([np.cos(heading), np.sin(heading)]) + turning
    origin = in_world(env, np.zeros((1, 2)), RADAR_AT)[0]
    for place, (vx, vy) in zip(places, targets[:, 2:4], strict=True):
        gaps = np.linalg.norm(points - place, axis=1)
        nearest, velocity = int(gaps.argmin()), np.zeros(2)
        if gaps[nearest] < 2.6:
            way = np.array([np.cos(headings[nearest]), np.sin(headings[nearest])])
            velocity = world.traffic.speeds[nearest] * way
        sight = (place - origin) / np.linalg.norm(place - origin)
        radial = (velocity - own) @ sight
        turned = np.array([sight @ (np.cos(heading), np.sin(heading)),
                           sight @ (-np.sin(heading), np.cos(heading))])  # fmt: skip
        np.testing.assert_allclose((vx, vy), radial * turned, atol=0.02 + 0.02 * abs(radial))


def test_radar_rows_are_sorted_and_cut_at_the_nearest() -> None:
    many = rows(driven(exact_env(), 1, 50), "radar")
    few = rows(driven(exact_env(radar={**EXACT["radar"], "targets": 3}), 1, 50), "radar")
    ranges = np.hypot(many[:, 0], many[:, 1])
    assert (np.diff(ranges) >= 0).all()
    np.testing.assert_array_equal(few, many[:3])


def test_at_rest_the_accelerometer_shows_gravity_alone() -> None:
    obs, _ = exact_env().reset(seed=0)
    samples = obs["imu"]
    np.testing.assert_allclose(samples[:, 0], [-0.05, -0.04, -0.03, -0.02, -0.01], atol=1e-6)
    np.testing.assert_allclose(samples[:, 1:], np.tile([0, 0, 9.81, 0, 0, 0], (5, 1)), atol=1e-5)


def test_inertial_samples_follow_speeding_up_and_braking() -> None:
    env = exact_env()
    env.reset(seed=0)
    faster = steady(env, (2.5, 0.0), 20)
    assert faster["ego"][0] == pytest.approx(2.5, abs=1e-4)
    np.testing.assert_allclose(faster["imu"][:, 1], 2.5, atol=1e-4)
    np.testing.assert_allclose(steady(env, (-4.0, 0.0), 2)["imu"][:, 1], -4.0, atol=1e-4)
    stopped = steady(env, (-4.0, 0.0), 20)
    assert stopped["ego"][0] == 0.0
    np.testing.assert_allclose(stopped["imu"][:, 1], 0.0, atol=1e-5)


def test_inertial_samples_follow_a_turn() -> None:
    env = exact_env(traffic=0.0, parked=0.0)
    env.reset(seed=0)
    steady(env, (2.0, 0.0), 40)
    obs = steady(env, (0.0, 0.2), 10)
    speed, rate, steering, _ = obs["ego"]
    assert steering == pytest.approx(0.2)
    assert rate == pytest.approx(speed * np.tan(0.2) / WHEELBASE_M, rel=1e-5)
    np.testing.assert_allclose(obs["imu"][:, 6], rate, rtol=1e-3)
    # Towards the inside, at the sensor 1.35 m ahead of the rear axle; backwards a little.
    np.testing.assert_allclose(obs["imu"][:, 2], speed * rate, rtol=0.02)
    np.testing.assert_allclose(obs["imu"][:, 1], -1.35 * rate**2, atol=0.05)
    np.testing.assert_allclose(obs["imu"][:, 3], 9.81, atol=1e-4)


def test_inertial_noise_is_as_told() -> None:
    env = exact_env(imu={"noise_acceleration": 0.3, "noise_turn": 0.02})
    env.reset(seed=0)
    samples = np.concatenate([steady(env, (0.0, 0.0), 1)["imu"] for _ in range(80)])
    assert np.std(samples[:, 1:4] - (0, 0, 9.81)) == pytest.approx(0.3, rel=0.1)
    assert np.std(samples[:, 4:]) == pytest.approx(0.02, rel=0.1)


def test_the_vehicle_keeps_to_its_circle() -> None:
    env = exact_env(traffic=0.0, parked=0.0)
    env.reset(seed=0)
    steady(env, (2.0, 0.0), 30)
    steady(env, (0.0, 0.15), 6)
    track = []
    for _ in range(10):
        steady(env, (0.0, 0.15), 1)
        track.append(env.world.vehicle.pose)
    track_xy = np.array(track)[:, :2]
    radius = WHEELBASE_M / np.tan(0.15)
    left = np.array([(-np.sin(h), np.cos(h)) for *_, h in track])
    centres = track_xy + radius * left
    np.testing.assert_allclose(centres, np.tile(centres[0], (10, 1)), atol=0.01)

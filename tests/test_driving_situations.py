"""Driving: the expert, the traffic, and situations in which one sensor decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from teamvla.sim.driving import layout, roads
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.layout import SITUATIONS
from teamvla.sim.driving.planner import decide
from teamvla.sim.driving.scene import LIDAR_AT, RADAR_AT
from teamvla.sim.driving.task import DrivingConfig
from teamvla.sim.driving.vehicle import FRONT_M
from teamvla.sim.driving.verdict import Verdict, judge
from teamvla.sim.driving.world import DrivingWorld

HAZARD = 0
ENOUGH_PIXELS = 6  # of the 24,576, that change by more than 6 levels of 255
_QUIET = {
    "lidar": {"noise_m": 0.0, "dropout": 0.0},
    "radar": {"noise_m": 0.0, "noise_speed": 0.0},
}


def make_world(seed: int, **task: object) -> DrivingWorld:
    config = DrivingConfig.model_validate(task)
    return DrivingWorld(layout.draw(config, np.random.default_rng(seed)))


def advance(world: DrivingWorld, ignored: frozenset[int] = frozenset()) -> Verdict:
    """One step of the expert, who does not notice the ``ignored``; no sensor looks."""
    others = world.traffic.others().without(ignored)
    plan = decide(world.route, world.ego(), others)
    world.advance(plan.acceleration, plan.steering)
    return judge(world)


def attempt(seed: int, ignored: frozenset[int] = frozenset(), **task: object) -> str:
    """How an episode of the expert ends: success, collision, off_road, off_route or too long."""
    world, held = make_world(seed, **task), 0
    for _ in range(800):
        verdict = advance(world, ignored)
        held = held + 1 if verdict.success else 0
        ends = ("collision", "off_road", "off_route")
        ended = [name for name in ends if getattr(verdict, name)]
        if ended or held >= 10:
            return ended[0] if ended else "success"
    return "too long"


def comes(seed: int) -> bool:
    """Whether the crossing vehicle of this episode does not give way."""
    return bool(make_world(seed, situation="crossing").traffic.speeds[HAZARD] > 0)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson, JASA 22, 1927)."""
    z = 1.959964
    rate, scale = successes / count, 1 + z * z / count
    middle = (rate + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return middle - half, middle + half


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_expert_succeeds(situation: str) -> None:
    assert [attempt(seed, situation=situation) for seed in range(100, 103)] == ["success"] * 3


@pytest.mark.parametrize("situation", SITUATIONS[1:])
def test_who_does_not_notice_the_hidden_vehicle_collides(situation: str) -> None:
    seeds = [seed for seed in range(60, 70) if situation != "crossing" or comes(seed)][:4]
    ends = [attempt(seed, frozenset({HAZARD}), situation=situation) for seed in seeds]
    assert ends == ["collision"] * 4


def test_waiting_for_a_vehicle_that_gives_way_is_not_needed() -> None:
    seeds = [seed for seed in range(60, 80) if not comes(seed)][:2]
    for seed in seeds:
        world = make_world(seed, situation="crossing")
        plans = []
        while world.ego().along < world.route.stop_m:
            advance(world)
            plan = decide(world.route, world.ego(), world.traffic.others())
            plans.append(plan.phase)
        assert "yield at the crossing" not in plans


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_rate_of_the_expert(situation: str, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, hidden = range(10_000, 10_200), frozenset({HAZARD})
    ends = [attempt(seed, situation=situation) for seed in seeds]
    successes = ends.count("success")
    low, high = wilson(successes, len(ends))
    unaware = [attempt(seed, hidden, situation=situation) for seed in seeds[:50]]
    with capsys.disabled():
        rate = f"{successes}/{len(ends)} [{100 * low:.1f}, {100 * high:.1f}] %"
        print(f"\n{situation}: {rate}; unaware {unaware.count('success')}/50")  # noqa: T201
    assert successes >= 0.99 * len(ends)


@pytest.mark.parametrize("seed", range(6))
def test_traffic_keeps_its_lanes_and_distances(seed: int) -> None:
    """Whatever the ego does; here it stands, in the lane of some of them."""
    world = make_world(seed, situation=SITUATIONS[seed % 5], traffic=1.0)
    for _ in range(500):
        world.advance(0.0, 0.0)
        shapes = world.traffic.footprints()
        touching = shapes.touching(shapes)
        np.fill_diagonal(touching, False)
        assert not touching.any()
        assert (world.traffic.speeds <= 10.0).all()
    assert not world.touched()


def test_followers_keep_the_time_gap_of_the_model() -> None:
    world = make_world(0, situation="clear", traffic=1.0)
    traffic = world.traffic
    traffic.lanes[:] = roads.SOUTH
    world.drawn["traffic"][:, layout.LANE] = roads.SOUTH
    world.drawn["traffic"][:, layout.ALONG] = 20.0 + 15.0 * np.arange(layout.VEHICLES)
    world.drawn["traffic"][:, layout.HALT_UNTIL] = 0.0
    world.drawn["traffic"][:, layout.DESIRED] = np.where(np.arange(layout.VEHICLES) == 8, 5, 9)
    world.drawn["traffic"][:, layout.SPEED] = 5.0
    column = DrivingWorld(world.drawn).traffic
    for _ in range(1600):
        column.advance(world.ego())
    gaps = np.diff(column.along) - layout.CAR_LENGTH_M
    # In equilibrium (2.5 + 1.1 v) / sqrt(1 - (v / v0)^4) of Treiber et al., equation 6.
    wanted = (2.5 + 1.1 * 5.0) / np.sqrt(1 - (5.0 / 9.0) ** 4)
    np.testing.assert_allclose(gaps[2:], wanted, rtol=0.02)


@pytest.mark.parametrize(
    ("place", "reason"),
    [((0.0, 3.2), "off_route"), ((0.0, -1.2), "off_road"), ((0.2, 0.0), "collision")],
)
def test_ends_are_told_apart(place: tuple[float, float], reason: str) -> None:
    """The ego is put beside its lane, or into the vehicle ahead."""
    task = {"situation": "fog", "routes": ("stop_behind",), "traffic": 0.0, "parked": 0.0}
    env = DrivingEnv(DrivingConfig.model_validate({**task, "camera": {"height": 8, "width": 8}}))
    env.reset(seed=next(s for s in range(20) if _lane_of(env, s) == roads.EAST_OUTER))
    into, aside = place
    if into:
        into += _gap_ahead(env.world)
    env.world.data.qpos[:2] += (into, aside - env.world.ego().left)
    *_, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    reasons = {name for name in ("collision", "off_road", "off_route") if info[name]}
    assert (reasons, terminated, truncated) == ({reason}, True, False)


def _gap_ahead(world: DrivingWorld) -> float:
    ahead = world.traffic.along[HAZARD] - roads.FAR_M - layout.CAR_LENGTH_M / 2
    return float(ahead - FRONT_M - world.vehicle.pose[0])


def _lane_of(env: DrivingEnv, seed: int) -> int:
    env.reset(seed=seed)
    return int(env.world.drawn["lane"])


# What each sensor sees of the vehicle that matters.


def views(env: DrivingEnv) -> dict[str, int]:
    """How much of the hidden vehicle is in the observation: pixels of the cameras that change
    with it by more than 6 levels, LiDAR points on it, radar targets at it."""
    with_it = env.set_state(env.get_state())
    without = DrivingEnv(env.config)
    state = env.get_state()
    state["others"][HAZARD] = 5000.0
    blank = without.set_state(state)
    pixels = sum(
        int((np.abs(with_it[f].astype(int) - blank[f]).max(axis=-1) > 6).sum())
        for f in with_it
        if f.startswith("rgb")
    )
    points, targets = (with_it[name][with_it[f"{name}_mask"]] for name in ("points", "radar"))
    raised = points[points[:, 2] + LIDAR_AT[2] > 0.1]
    return {
        "cameras": pixels,
        "points": int(hazard_rows(env, raised, LIDAR_AT, 0.3).sum()),
        "radar": int(hazard_rows(env, targets, RADAR_AT, 1.5).sum()),
    }


def hazard_rows(
    env: DrivingEnv, rows: np.ndarray, sensor: tuple[float, ...], reach: float
) -> np.ndarray:
    """Which rows of a sensor lie within ``reach`` m of the hidden vehicle."""
    x, y, heading = env.world.vehicle.pose
    cosine, sine = np.cos(heading), np.sin(heading)
    ahead, left = rows[:, 0] + sensor[0], rows[:, 1] + sensor[1]
    places = np.stack([x + ahead * cosine - left * sine, y + ahead * sine + left * cosine], -1)
    shape = env.world.traffic.footprints()
    offsets = np.abs((places - shape.centres[HAZARD]) @ shape.axes()[HAZARD].T)
    return np.asarray((offsets < shape.halves[HAZARD] + reach).all(axis=1))


def before_collision(situation: str, seed: int, times_s: tuple[float, ...]) -> list[dict[str, int]]:
    """What is seen so long before somebody who does not notice collides."""
    config = DrivingConfig.model_validate({"situation": situation, "traffic": 0.3, **_QUIET})
    env, states = DrivingEnv(config), []
    env.reset(seed=seed)
    for _ in range(400):
        states.append(env.get_state())
        if advance(env.world, frozenset({HAZARD})).collision:
            break
    seen = []
    for time_s in times_s:
        env.set_state(states[-1 - round(20 * time_s)])
        seen.append(views(env))
    return seen


@pytest.mark.parametrize("seed", [61, 62])
def test_at_night_the_lidar_sees_what_the_cameras_do_not(seed: int) -> None:
    for seen in before_collision("night", seed, (3.0, 2.0)):
        assert seen["cameras"] < ENOUGH_PIXELS
        assert seen["points"] >= 5
        assert seen["radar"] == 1


@pytest.mark.parametrize("seed", [61, 62])
def test_in_fog_only_the_radar_sees_far_enough(seed: int) -> None:
    for seen in before_collision("fog", seed, (3.0, 2.0)):
        assert seen["cameras"] < ENOUGH_PIXELS
        assert seen["points"] == 0
        assert seen["radar"] == 1


@pytest.mark.parametrize("seed", [61, 62])
def test_under_the_lorry_only_the_radar_sees(seed: int) -> None:
    found = before_collision("occlusion", seed, (3.0, 2.75, 2.5, 2.25, 2.0))
    for seen in found:
        assert seen["cameras"] < ENOUGH_PIXELS
        assert seen["points"] == 0
    assert sum(seen["radar"] for seen in found) >= 3  # its wheels pass in between


def test_the_radar_tells_who_comes_from_who_gives_way() -> None:
    """Across the ego's way both look alike for a moment; what differs is the velocity."""
    told = {}
    for seed in range(60, 68):
        task = {"situation": "crossing", "traffic": 0.0, "camera": {"height": 8, "width": 8}}
        env = DrivingEnv(DrivingConfig.model_validate({**task, **_QUIET}))
        env.reset(seed=seed)
        while env.world.ego().along < env.world.route.stop_m - 12.0:
            advance(env.world)
        obs = env.set_state(env.get_state())
        rows = obs["radar"][obs["radar_mask"]]
        bearing = np.arctan2(rows[:, 1], rows[:, 0])
        # What stands still comes closer by the ego's own speed alone.
        own = rows[:, 2] * np.cos(bearing) + rows[:, 3] * np.sin(bearing)
        own += obs["ego"][0] * np.cos(bearing)
        place = hazard_rows(env, rows, RADAR_AT, 1.5)
        if place.any():
            told.setdefault(comes(seed), []).append(abs(float(own[place][0])))
    assert min(told[True]) > 2.0
    assert max(told[False]) < 0.3

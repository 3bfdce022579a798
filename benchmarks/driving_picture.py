"""The picture of docs/driving.md: cameras in four situations, and what the sensors tell.

python benchmarks/driving_picture.py [--out docs/driving.png]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from PIL import Image

from teamvla.sim.driving import ground
from teamvla.sim.driving.cameras import SurroundCameras
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.footprints import Footprints
from teamvla.sim.driving.planner import decide, trajectory
from teamvla.sim.driving.scene import LIDAR_AT, RADAR_AT
from teamvla.sim.driving.task import DrivingConfig
from teamvla.sim.driving.vehicle import FRONT_M

SIDES = ("back_left", "front_left", "front", "front_right", "back_right", "back")
SIZE, SAMPLES = 150, 3  # of a camera's picture, and rays along each side of a pixel
ROWS = slice(25, -15)  # of it that are shown
HAZARD = 0  # the vehicle that matters
LEFT_S = 1.6  # until an ego that does not know of it collides
NIGHT = 3  # times brighter
AROUND = (-16.0, 56.0, -36.0, 14.0)  # the map: west and east of the ego, south and north, m
MOVING = 0.6  # m/s; slower targets have no arrow
COLOURS = 200  # of the file
RADAR, PATH, LIDAR = "crimson", "#ff7f0e", "#2a788e"


@dataclass(frozen=True)
class Scene:
    title: str
    env: DrivingEnv
    seen: Mapping[str, NDArray[Any]]


def started(situation: str, seed: int, **task: object) -> DrivingEnv:
    small = {"height": 8, "width": 8}
    env = DrivingEnv(
        DrivingConfig.model_validate({"situation": situation, "camera": small, **task})
    )
    env.reset(seed=seed)
    return env


def advance(env: DrivingEnv, ignored: frozenset[int] = frozenset()) -> None:
    """One step of the expert, who does not notice the ``ignored``; no sensor looks."""
    world = env.world
    plan = decide(world.route, world.ego(), world.traffic.others().without(ignored))
    world.advance(plan.acceleration, plan.steering)


def now(title: str, env: DrivingEnv) -> Scene:
    return Scene(title, env, env.set_state(env.get_state()))


def after(situation: str, seed: int, steps: int, **task: object) -> Scene:
    env = started(situation, seed, **task)
    for _ in range(steps):
        advance(env)
    return now(situation, env)


def before_collision(situation: str, seed: int) -> Scene:
    """So long before somebody who does not notice the vehicle collides with it."""
    env, states = started(situation, seed), []
    while not env.world.touched():
        states.append(env.get_state())
        advance(env, frozenset({HAZARD}))
    env.set_state(states[-1 - round(20 * LEFT_S)])
    return now(situation, env)


def seen_by_radar(situation: str, seed: int) -> Scene:
    """Close to the stop line, as soon as the radar sees the vehicle."""
    env = started(situation, seed)
    while True:
        advance(env)
        if env.world.ego().along > env.world.route.stop_m - FRONT_M - 9.5:
            scene = now(situation, env)
            if on_hazard(scene).any():
                return scene


def on_hazard(scene: Scene) -> NDArray[np.bool_]:
    """Which radar targets lie on the vehicle that matters, or 1.5 m beside it."""
    targets, shapes = valid(scene, "radar"), scene.env.world.traffic.footprints()
    offsets = on_map(scene, targets, RADAR_AT) - shapes.centres[HAZARD]
    inside = np.abs(offsets @ shapes.axes()[HAZARD].T) < shapes.halves[HAZARD] + 1.5
    return np.asarray(inside.all(axis=1))


def valid(scene: Scene, sensor: str) -> NDArray[Any]:
    return np.asarray(scene.seen[sensor][scene.seen[f"{sensor}_mask"]])


def on_map(scene: Scene, rows: NDArray[Any], sensor: tuple[float, ...]) -> NDArray[np.float64]:
    """Points of a sensor's frame in the world's, m."""
    x, y, heading = scene.env.world.vehicle.pose
    ahead, left = rows[:, 0] + sensor[0], rows[:, 1] + sensor[1]
    return np.array([x, y]) + turned(ahead, left, heading)


def turned(ahead: NDArray[Any], left: NDArray[Any], heading: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([ahead * cosine - left * sine, ahead * sine + left * cosine], axis=-1)


def draw_cameras(axes: Any, scene: Scene, first: bool) -> None:
    pictures = SurroundCameras(SIZE, SIZE, SAMPLES).observe(scene.env.world, 1, 1)
    all_round = np.hstack([pictures[f"rgb_surround_{side}"] for side in SIDES])[ROWS]
    title = scene.title
    if title == "night":
        all_round = np.clip(all_round.astype(int) * NIGHT, 0, 255).astype(np.uint8)
        title = f"night ({NIGHT} x brighter)"
    axes.imshow(all_round, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(title, fontsize=11)
    for number, side in enumerate(SIDES):
        if number:
            axes.axvline(SIZE * number - 0.5, color="w", lw=1)
        if first:
            at, name = SIZE * (number + 0.5), f"rgb_surround_{side}"
            axes.text(at, -4, name, ha="center", va="bottom", fontsize=9)


def draw_map(axes: Any, scene: Scene, legend: bool, label_below: float) -> None:
    x = float(scene.env.world.vehicle.pose[0])
    extent = (x + AROUND[0], x + AROUND[1], AROUND[2], AROUND[3])
    draw_ground(axes, extent)
    draw_vehicles(axes, scene)
    draw_sensors(axes, scene)
    hazard = scene.env.world.traffic.footprints().centres[HAZARD]
    axes.annotate(
        "the vehicle that matters", hazard, xytext=(hazard[0] + 7, hazard[1] - label_below),
        arrowprops={"arrowstyle": "->", "lw": 1.2}, fontsize=10, zorder=8,
        bbox={"fc": "w", "ec": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
    axes.set(xlim=extent[:2], ylim=extent[2:])
    axes.set_title(f"{scene.title}: from above, m", fontsize=11, pad=3)
    axes.tick_params(labelsize=8)
    if legend:
        axes.legend(loc="lower left", fontsize=9, framealpha=0.95).set_zorder(9)


def draw_ground(axes: Any, extent: tuple[float, float, float, float]) -> None:
    west, right, south, top = extent
    east, north = np.meshgrid(np.arange(west, right, 0.1), np.arange(south, top, 0.1))
    points = np.stack([east, north], axis=-1).reshape(-1, 2)
    colours = ground.COLOURS[ground.surfaces(points)].reshape(*east.shape, 3)
    axes.imshow(0.55 * colours + 0.45, extent=extent, origin="lower")


def draw_vehicles(axes: Any, scene: Scene) -> None:
    world, drawn = scene.env.world, scene.env.world.drawn
    standing = np.concatenate([drawn["parked_colour"], drawn["building_colour"]])
    outlines: list[tuple[Footprints, Any, float]] = [
        (world.standing, standing * 0.6 + 0.4, 0.9),
        (world.traffic.footprints(), drawn["traffic_colour"], 1.0),
        (world.ego_footprint(), [(0.85, 0.1, 0.1)], 1.0),
    ]
    for shapes, paint, alpha in outlines:
        for corners, colour in zip(shapes.corners(), paint, strict=True):
            axes.add_patch(Polygon(corners, fc=colour, ec="k", lw=0.6, alpha=alpha))


def draw_sensors(axes: Any, scene: Scene) -> None:
    points, targets = valid(scene, "points"), valid(scene, "radar")
    heights = np.clip(points[:, 2] + LIDAR_AT[2], 0, 4)
    where = on_map(scene, points, LIDAR_AT).T
    axes.scatter(*where, c=heights, s=2.2, cmap="viridis", lw=0, zorder=3)
    places, speeds = on_map(scene, targets, RADAR_AT), own_speeds(scene, targets)
    axes.scatter(
        *places.T, marker="D", s=34, fc="none", ec=RADAR, lw=1.5, zorder=5, label="radar targets"
    )
    moving = np.hypot(*speeds.T) > MOVING
    axes.quiver(
        *places[moving].T, *speeds[moving].T, angles="xy", scale_units="xy", scale=0.8,
        color=RADAR, width=0.006, zorder=6, label="radial velocity (own motion removed)",
    )  # fmt: skip
    world = scene.env.world
    plan = decide(world.route, world.ego(), world.traffic.others())
    path = np.vstack([(0.0, 0.0), trajectory(world.route, world.ego(), plan, 6, 0.5)])
    way, told = on_map(scene, path, (0.0, 0.0)).T, "target trajectory, 6 x 0.5 s"
    axes.plot(*way, "o-", color=PATH, ms=4, lw=1.8, zorder=6, label=told)
    axes.scatter([], [], c=LIDAR, s=12, label="LiDAR points, colour: height")


def own_speeds(scene: Scene, targets: NDArray[Any]) -> NDArray[np.float64]:
    """Radial velocities of radar targets over ground, m/s in the world's frame."""
    ahead, left = (targets[:, :2] / np.hypot(*targets[:, :2].T)[:, None]).T
    radial = targets[:, 2] * ahead + targets[:, 3] * left + scene.seen["ego"][0] * ahead
    return turned(radial * ahead, radial * left, scene.env.world.vehicle.pose[2])


def picture(path: Path) -> None:
    scenes = [
        after("clear", 17, 120, routes=["keep_lane"]),
        before_collision("night", 62),
        before_collision("fog", 62),
        seen_by_radar("occlusion", 63),
    ]
    figure = plt.figure(figsize=(15, 12.4), dpi=100)
    grid = figure.add_gridspec(
        5, 2, height_ratios=[1, 1, 1, 1, 2.75], hspace=0.09, wspace=0.05,
        left=0.035, right=0.99, top=0.975, bottom=0.03,
    )  # fmt: skip
    for row, scene in enumerate(scenes):
        draw_cameras(figure.add_subplot(grid[row, :]), scene, row == 0)
    fog, occlusion = scenes[2:]
    draw_map(figure.add_subplot(grid[4, 0]), fog, legend=True, label_below=8)
    draw_map(figure.add_subplot(grid[4, 1]), occlusion, legend=False, label_below=3)
    figure.canvas.draw()
    sheet = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "docs" / "driving.png"
    parser.add_argument("--out", type=Path, default=default)
    given = parser.parse_args()
    picture(given.out)
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

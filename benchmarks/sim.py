"""Speed of the simulator: its camera, its steps, and those of gym-aloha beside them.

    python benchmarks/sim.py [--rounds 3] [--only camera tasks workers others]

``camera``: what a picture costs beside its own calls of MuJoCo's ray caster, which it cannot
be faster than. ``tasks``: control steps per second, bare, with the expert, with pictures.
``workers``: threads against processes. ``others``: a driving step with all sensors, and
gym-aloha where it is installed, bare, with two ray pictures and, where MUJOCO_GL names an
OpenGL that works, with its own pictures. What recording adds: benchmarks/recording.py.

Every figure is the best of a few rounds, taken in turn, because other work on the machine
only ever slows things down; seconds are of processor time, but for ``workers``. Figures depend
on the machine; ratios hardly do.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import mujoco
import numpy as np

from teamvla.config import Project
from teamvla.sim import RobotEnv, make_env
from teamvla.sim.cameras import RayRenderer
from teamvla.sim.tasks import TaskConfig

STEPS = 80  # about an episode of the lift expert
TASKS = ("lift", "handoff", "drawer", "sort", "recall")
SIZES = (64, 96, 224)
ALOHA = "gym_aloha/AlohaTransferCube-v0"

#: name, measurement, the row that its ratio is taken to
Row = tuple[str, Callable[[], float], str]


def rate(step: Callable[[], object], steps: int = STEPS) -> float:
    """Calls per second of processor time, after a few to warm up."""
    for _ in range(5):
        step()
    start = time.process_time()
    for _ in range(steps):
        step()
    return steps / (time.process_time() - start)


def started(name: str, *settings: str) -> RobotEnv:
    project = Project.load(name, ["task.max_steps=1000000", *settings])
    env = make_env(project.section("task", TaskConfig))
    env.reset(seed=0)
    return env


@contextmanager
def casting_timed() -> Iterator[list[float]]:
    """Seconds of each call of the ray caster, while this lasts."""
    cast, seconds = mujoco.mj_multiRay, []

    def timed(*arguments: object) -> None:
        start = time.thread_time()
        cast(*arguments)
        seconds.append(time.thread_time() - start)

    mujoco.mj_multiRay = timed
    try:
        yield seconds
    finally:
        mujoco.mj_multiRay = cast


def camera(size: int, shadows: bool, pictures: int) -> tuple[float, float]:
    """Seconds of a picture, and of its calls of the ray caster: the fastest of a few."""
    env: Any = started("lift")
    renderer = RayRenderer(env.world, size, size, shadows)
    taken = []
    with casting_timed() as seconds:
        for _ in range(pictures):
            seconds.clear()
            start = time.thread_time()
            renderer.render("rgb_a")
            taken.append((time.thread_time() - start, sum(seconds)))
    return min(taken)


def show_cameras(rounds: int) -> None:
    print(f"{'ray camera':<42}{'ms':>8}   times its calls of mj_multiRay alone")
    for size in SIZES:
        for shadows in (False, True):
            whole, cast = camera(size, shadows, rounds * 20 * 64 // size)
            name = f"{size} x {size}{', shadows' * shadows}"
            print(f"{name:<42}{1e3 * whole:>8.2f}{whole / cast:>6.2f}x")
    print()


def physics(task: str) -> float:
    env: Any = started(task)
    return rate(env.world.advance, 5 * STEPS)


def planned(task: str) -> float:
    """Physics and the expert's inverse kinematics, no pictures."""
    env: Any = started(task)
    expert = env.expert()

    def step() -> None:
        for arm, command in zip("ab", expert.act({}), strict=True):
            env.world.set_command(arm, command.astype(np.float64))
        env.world.advance()

    return rate(step)


def whole(name: str, *settings: str) -> float:
    """Steps of the environment under its expert, everything that it observes included."""
    env = started(name, *settings)
    expert = env.expert()
    seen: list[Any] = [env.reset(seed=0)[0]]
    expert.reset()

    def step() -> None:
        seen[0] = env.step(np.concatenate([np.atleast_1d(part) for part in expert.act(seen[0])]))[0]

    speed = rate(step)
    env.close()
    return speed


def task_rows() -> list[Row]:
    rows: list[Row] = []
    for task in TASKS:
        bare, pictures = f"{task}: physics", f"{task}: expert, 2 pictures of 64 x 64"
        rows += [
            (bare, partial(physics, task), bare),
            (f"{task}: physics and expert", partial(planned, task), bare),
            (pictures, partial(whole, task, "task.camera.shadows=false"), bare),
            (f"{task}: the same with shadows", partial(whole, task), pictures),
        ]
    sensors = [f"task.camera.{key}=true" for key in ("wrist", "top", "depth", "segmentation")]
    every = ("lift: 5 cameras, depth, segmentation", partial(whole, "lift", *sensors))
    return [*rows, (*every, "lift: the same with shadows")]


def episodes(seeds: list[int]) -> int:
    """Steps of the expert's episodes from these seeds, pictures included."""
    env, steps = make_env(), 0
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        expert, over = env.expert(), False
        while not over:
            obs, _, success, late, _ = env.step(np.concatenate(expert.act(obs)))
            over, steps = success or late, steps + 1
    return steps


def shared(pool: Executor, workers: int) -> float:
    """Steps per second of ``workers`` workers with three episodes each."""
    list(pool.map(episodes, [[]] * workers))
    start = time.perf_counter()
    jobs = [[3 * worker + k for k in range(3)] for worker in range(workers)]
    steps = sum(pool.map(episodes, jobs))
    return steps / (time.perf_counter() - start)


def threads(workers: int) -> float:
    with ThreadPoolExecutor(workers) as pool:
        return shared(pool, workers)


def processes(workers: int) -> float:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return shared(pool, workers)


def worker_rows() -> list[Row]:
    one = "lift episodes, 1 thread"
    return [
        (one, partial(threads, 1), one),
        ("lift episodes, 2 threads", partial(threads, 2), one),
        ("lift episodes, 2 processes", partial(processes, 2), one),
    ]


def aloha(env: gymnasium.Env[Any, Any], steps: int = STEPS) -> float:
    """Steps of gym-aloha's own interface."""
    env.reset(seed=0)
    still = np.zeros(14, np.float32)
    return rate(lambda: env.step(still), steps)


def aloha_bare() -> float:
    import gym_aloha  # noqa: F401 - registers the ids

    from teamvla.sim.adapters.aloha import AlohaWithoutGl

    return aloha(AlohaWithoutGl(gymnasium.make(ALOHA, disable_env_checker=True)))


def aloha_gl() -> float:
    import gym_aloha  # noqa: F401 - registers the ids

    return aloha(gymnasium.make(ALOHA, disable_env_checker=True), STEPS // 8)


def other_rows() -> list[Row]:
    drive = "driving: expert, all sensors"
    rows: list[Row] = [(drive, partial(whole, "driving"), drive)]
    if importlib.util.find_spec("gym_aloha") is None:
        return rows
    bare = "gym-aloha: its step, no pictures"
    rows += [
        (bare, aloha_bare, bare),
        ("gym-aloha: expert, 2 ray pictures", partial(whole, "aloha_transfer"), bare),
    ]
    if os.environ.get("MUJOCO_GL"):
        rows.append(("gym-aloha: its step, its own pictures", aloha_gl, bare))
    return rows


def show(rows: list[Row], rounds: int) -> None:
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, measure, _ in rows:
            best[name] = max(best.get(name, 0.0), measure())
    print(f"{'control steps per second':<42}{'rate':>8}   ratio to")
    for name, _, base in rows:
        print(f"{name:<42}{best[name]:>8.0f}{best[name] / best[base]:>6.2f}x  {base}")
    print()


PARTS = {"tasks": task_rows, "workers": worker_rows, "others": other_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parts = ("camera", *PARTS)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    given = parser.parse_args()
    if "camera" in given.only:
        show_cameras(given.rounds)
    for part in (part for part in PARTS if part in given.only):
        show(PARTS[part](), given.rounds)


if __name__ == "__main__":
    main()

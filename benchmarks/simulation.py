"""Speed of the simulator: control steps per second, bare, with expert, with pictures.

    python benchmarks/simulation.py [--steps 300]

Every ratio compares two figures of one run; the figures alone depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.tasks import TaskConfig


def rate(step: Callable[[], object], steps: int) -> float:
    """Calls per second, after a few to warm up."""
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - start)


def started(shadows: bool = False) -> TwoArmEnv:
    camera = {"shadows": shadows}
    env = make_env(TaskConfig.model_validate({"camera": camera, "max_steps": 10**6}))
    env.reset(seed=0)
    return env


def physics(steps: int) -> float:
    return rate(started().world.advance, steps)


def planned(steps: int) -> float:
    """Physics and the expert's inverse kinematics, no pictures."""
    env = started()
    expert = env.expert()

    def step() -> None:
        for arm, command in zip("ab", expert.act({}), strict=True):
            env.world.set_command(arm, command.astype(np.float64))
        env.world.advance()

    return rate(step, min(steps, 80))


def pictured(steps: int, shadows: bool = False) -> float:
    """Whole environment steps under the expert, two 64x64 pictures each."""
    env = started(shadows)
    expert = env.expert()
    return rate(lambda: env.step(np.concatenate(expert.act({}))), min(steps, 80))


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


def processes(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def report(name: str, value: float, base: float) -> None:
    print(f"{name:<42}{value:>10.0f}{value / base:>9.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    print(f"{'control steps per second':<42}{'rate':>10}{'ratio':>10}")
    bare = physics(steps)
    report("physics only", bare, bare)
    report("+ expert with inverse kinematics", planned(steps), bare)
    plain = pictured(steps)
    report("+ two 64x64 pictures, success, reward", plain, bare)
    report("the same with shadows (ratio to without)", pictured(steps, True), plain)
    with ThreadPoolExecutor(1) as pool:
        single = shared(pool, 1)
    report("expert's episodes, 1 worker", single, single)
    with ThreadPoolExecutor(2) as pool:
        report("expert's episodes, 2 threads", shared(pool, 2), single)
    with processes(2) as pool:
        report("expert's episodes, 2 processes", shared(pool, 2), single)


if __name__ == "__main__":
    main()

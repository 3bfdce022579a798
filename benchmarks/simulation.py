"""Speed of the simulator: control steps per second, bare, with expert, with pictures.

    python benchmarks/simulation.py [--rounds 3]

Every figure is the best of a few rounds, taken in turn, because other work on the machine
only ever slows things down. Figures depend on the machine; ratios hardly do.
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
from teamvla.sim.tasks import TwoArmTaskConfig

STEPS = 80  # about an episode of the expert


def rate(step: Callable[[], object], steps: int = STEPS) -> float:
    """Calls per second, after a few to warm up."""
    for _ in range(5):
        step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - start)


def started(shadows: bool = False) -> TwoArmEnv:
    camera = {"shadows": shadows}
    env = make_env(TwoArmTaskConfig.model_validate({"camera": camera, "max_steps": 10**6}))
    env.reset(seed=0)
    return env


def physics() -> float:
    return rate(started().world.advance, 10 * STEPS)


def planned() -> float:
    """Physics and the expert's inverse kinematics, no pictures."""
    env = started()
    expert = env.expert()

    def step() -> None:
        for arm, command in zip("ab", expert.act({}), strict=True):
            env.world.set_command(arm, command.astype(np.float64))
        env.world.advance()

    return rate(step)


def pictured(shadows: bool = False) -> float:
    """Whole environment steps under the expert, two 64x64 pictures each."""
    env = started(shadows)
    expert = env.expert()
    return rate(lambda: env.step(np.concatenate(expert.act({}))))


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


#: name, measurement, the row that its ratio is taken to
ROWS: list[tuple[str, Callable[[], float], str]] = [
    ("physics only", physics, "physics only"),
    ("with expert's inverse kinematics", planned, "physics only"),
    ("with expert and two 64x64 pictures", pictured, "physics only"),
    ("the same, with shadows", lambda: pictured(True), "with expert and two 64x64 pictures"),
    ("expert's episodes, 1 thread", lambda: threads(1), "expert's episodes, 1 thread"),
    ("expert's episodes, 2 threads", lambda: threads(2), "expert's episodes, 1 thread"),
    ("expert's episodes, 2 processes", lambda: processes(2), "expert's episodes, 1 thread"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    best: dict[str, float] = {}
    for _ in range(parser.parse_args().rounds):
        for name, measure, _ in ROWS:
            best[name] = max(best.get(name, 0.0), measure())
    print(f"{'control steps per second':<38}{'rate':>8}   ratio to")
    for name, _, base in ROWS:
        print(f"{name:<38}{best[name]:>8.0f}{best[name] / best[base]:>6.2f}x  {base}")


if __name__ == "__main__":
    main()

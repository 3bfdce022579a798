"""What recording costs beside a bare loop with the same expert, noise and pictures.

    python benchmarks/recording.py --episodes 12

``one worker``: both sides interleaved, episode by episode, in one process. ``two workers``:
``record`` with two processes, and with two threads, against two bare processes that run at the
same time; start-up is part of all three. Ratios are of steps per second within one run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from teamvla import seeds
from teamvla.config import Project
from teamvla.record import ActionNoise, RecordConfig, Recorder, record
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig

Side = Callable[[int], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--config", default="lift")
    parser.add_argument("--only", choices=("one", "two"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "two":
            one_worker(recorder_of(given.config, Path(folder) / "one"), given.episodes)
        if given.only != "one":
            two_workers(recorder_of(given.config, Path(folder) / "two"), given.episodes)


def recorder_of(name: str, out: Path) -> Recorder:
    project = Project.load(name, ["record.keep_failures=true"])
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    return Recorder(task, config, out, seed=0)


def one_worker(recorder: Recorder, episodes: int) -> None:
    run, bare = recorder(), bare_loop(recorder)
    sides: tuple[Side, Side] = (lambda index: run(index).outcome.steps, bare)
    sides[0](10_000), sides[1](10_001)  # warm-up
    seconds, steps = np.zeros(2), np.zeros(2)
    for index in range(episodes):
        for side in (0, 1) if index % 2 else (1, 0):
            began = time.perf_counter()
            steps[side] += sides[side](index)
            seconds[side] += time.perf_counter() - began
    rate = steps / seconds
    print(f"one worker: bare loop {rate[1]:6.1f} steps/s, record {rate[0]:6.1f}, "
          f"ratio {rate[0] / rate[1]:.3f} (target: at least 0.85)")  # fmt: skip


def two_workers(recorder: Recorder, episodes: int) -> None:
    """Three ways in turns, twice each: load from outside meets all of them."""
    ways = {"bare processes": two_bare, "processes": in_processes, "threads": in_threads}
    seconds, steps = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for turn in range(2):
        for name, way in ways.items():
            fresh = replace(recorder, out=recorder.out / f"{name} {turn}")
            began = time.perf_counter()
            steps[name] += way(fresh, range(episodes))
            seconds[name] += time.perf_counter() - began
    rates = {name: steps[name] / seconds[name] for name in ways}
    for name, rate in rates.items():
        ratio = rate / rates["bare processes"]
        print(f"two workers: {name:14s} {rate:6.1f} steps/s, ratio {ratio:.3f}")
    print("(target: the better of processes and threads at least 0.9)")


def two_bare(recorder: Recorder, indices: range) -> int:
    context = multiprocessing.get_context("spawn")
    halves = [(recorder, indices[::2]), (recorder, indices[1::2])]
    with context.Pool(2) as pool:
        return sum(pool.starmap(bare_share, halves, chunksize=1))


def bare_share(recorder: Recorder, indices: range) -> int:
    return sum(map(bare_loop(recorder), indices))


def in_processes(recorder: Recorder, indices: range) -> int:
    return record(recorder, len(indices), workers=2).steps


def in_threads(recorder: Recorder, indices: range) -> int:
    """In an interpreter of its own, so that it pays for the same imports."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return int(pool.apply(share_in_threads, (recorder, indices)))


def share_in_threads(recorder: Recorder, indices: range) -> int:
    def share(half: range) -> int:
        run = recorder()
        return sum(run(index).outcome.steps for index in half)

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(share, (indices[::2], indices[1::2])))


def bare_loop(recorder: Recorder) -> Side:
    """The loop that anyone would write, with nothing around it."""
    env = make_env(recorder.task)
    expert = env.expert()

    def run(index: int) -> int:
        observation, info = env.reset(seed=seeds.reset_seed(0, seeds.Domain.RECORD, index))
        expert.reset()
        rng = seeds.generator(0, seeds.Domain.NOISE, index)
        noise = ActionNoise(recorder.config.noise, rng, env.contract)
        steps, over = 0, False
        while not over:
            command = np.concatenate(expert.act({**observation, **info}))
            observation, _, ended, truncated, info = env.step(noise(command))
            over = ended or truncated
            steps += 1
        return steps

    return run


if __name__ == "__main__":
    main()

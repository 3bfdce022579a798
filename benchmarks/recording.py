"""Steps/s of recording against a bare loop: same expert, noise and pictures, nothing written.

    python benchmarks/recording.py --episodes 12

Both sides run interleaved, episode by episode, in one process; the ratio is of the totals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from teamvla import seeds
from teamvla.config import Project
from teamvla.record import ActionNoise, RecordConfig, Recorder
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=12)
    episodes = parser.parse_args().episodes
    project = Project.load("lift")
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    with tempfile.TemporaryDirectory() as folder:
        run = Recorder(task, config.model_copy(update={"keep_failures": True}), Path(folder), 0)()
        bare = bare_loop(task, config)
        run(10_000), bare(10_001)  # warm-up
        seconds, steps = np.zeros(2), np.zeros(2)
        for index in range(episodes):
            order = (0, 1) if index % 2 else (1, 0)
            for side in order:
                began = time.perf_counter()
                count = bare(index) if side else run(index).outcome.steps
                seconds[side] += time.perf_counter() - began
                steps[side] += count
    rate = steps / seconds
    print(f"record     {rate[0]:7.1f} steps/s ({steps[0]:.0f} steps)")
    print(f"bare loop  {rate[1]:7.1f} steps/s ({steps[1]:.0f} steps)")
    print(f"ratio      {rate[0] / rate[1]:7.3f} (target: at least 0.85)")


def bare_loop(task: TaskConfig, config: RecordConfig):
    """The loop that anyone would write, with nothing around it."""
    env = make_env(task)
    expert = env.expert()
    joints = np.ones(env.contract.action_dim, bool)
    joints[env.contract.grippers] = False

    def run(index: int) -> int:
        observation, info = env.reset(seed=seeds.reset_seed(0, seeds.Domain.RECORD, index))
        expert.reset()
        noise = ActionNoise(config.noise, seeds.generator(0, seeds.Domain.NOISE, index), joints)
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

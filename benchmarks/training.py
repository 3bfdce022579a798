"""Steps/s of the trainer against a bare PyTorch loop over the same model and batches.

    python benchmarks/training.py --data ROOT

The trainer runs as configured by default: weight averaging, schedule, metrics. Both sides
alternate in short rounds; the ratio is of the medians of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from teamvla.config import Project
from teamvla.train.runs import Run, open_run
from teamvla.train.trainer import train_one_epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    project = Project.load("train_bc", ["trainer.rollout_every=0"])
    project = project.replace("dataset", roots=[arguments.data])
    project = project.replace("trainer", threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = [open_run(project, Path(folder) / side) for side in ("trainer", "bare")]
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(arguments.rounds + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                took = (bare if side else trainer)(runs[side], arguments.steps)
                if number:  # the first round warms up
                    seconds[side].append(took)
    rate = [arguments.steps / statistics.median(took) for took in seconds]
    print(f"trainer    {rate[0]:6.2f} steps/s")
    print(f"bare loop  {rate[1]:6.2f} steps/s")
    print(f"ratio      {rate[0] / rate[1]:6.3f} (target: at least 0.95)")


def endless(run: Run):
    while True:
        yield from run.train_loader


def trainer(run: Run, steps: int) -> float:
    batches = itertools.islice(endless(run), steps)
    began = time.perf_counter()
    train_one_epoch(run.learner, batches, on_step=lambda: None)
    return time.perf_counter() - began


def bare(run: Run, steps: int) -> float:
    learner = run.learner
    policy, optimizer = learner.policy, learner.optimizer
    batches = itertools.islice(endless(run), steps)
    policy.train()
    began = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=learner.autocast):
            loss = policy.loss(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), learner.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""Success of a checkpoint beside its controls, on unseen initial states.

    python benchmarks/policy.py CKPT --data ROOT --episodes 200 --workers 2

The controls say whether the task can be done without looking: the same policy with black
pictures, the demonstration of median length replayed, doing nothing, random actions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from teamvla.evaluation.baselines import (
    DoNothing,
    RandomActions,
    Replay,
    expert,
    median_demonstration,
)
from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.evaluation.suites import Suite, evaluate
from teamvla.sim.tasks import TaskConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--controls", type=int, default=100, help="states per control")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    policy = PolicyFromCheckpoint(given.checkpoint)
    suite = Suite(policy.project().section("task", TaskConfig), given.seed)
    tape = Replay(median_demonstration(given.data))
    rows = (
        ("policy", policy, given.episodes, "at least 95 %"),
        ("expert", expert, given.controls, ""),
        ("black pictures", PolicyFromCheckpoint(given.checkpoint, blind=True), given.controls,
         "at most 30 %"),
        ("median demonstration", tape, given.controls, "at most 30 %"),
        ("doing nothing", DoNothing, given.controls, "0 %"),
        ("random actions", RandomActions, given.controls, "0 %"),
    )  # fmt: skip
    for name, actor, episodes, target in rows:
        score = evaluate(suite, actor, episodes, workers=given.workers)
        print(f"{name:22}{score}{f' (target: {target})' if target else ''}", flush=True)


if __name__ == "__main__":
    main()

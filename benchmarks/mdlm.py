"""Masked diffusion in grid worlds: success, way and time of a decision, as docs/mdlm.md tells it.

    python benchmarks/mdlm.py runs/empty/checkpoints/best.ckpt
    python benchmarks/mdlm.py runs/*/checkpoints/best.ckpt --samplers confidence ancestral \
        --steps 1 2 4 8 16

Each row plays the same initial states, which nobody has trained on: those of ``teamvla eval``.
The way is the moves of the episodes that succeeded over those of the expert on the same states. The
time is processor time of one predicted chunk on one thread, the median.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from teamvla.evaluation.policies import NamedActor, PolicyFromCheckpoint
from teamvla.evaluation.suites import OpenActor, Score, Suite, evaluate
from teamvla.models.base import Policy
from teamvla.models.device import one_thread
from teamvla.models.loading import load_policy
from teamvla.sim.tasks import TaskConfig

BASELINES = ("expert", "random", "nothing")
_TIMED = 40
_HEAD = "| policy | success | way / expert's | ms a decision |\n| --- | --- | --- | --- |"


def way(score: Score, expert: Score) -> float | None:
    """Moves over the expert's, of the episodes that both succeeded in."""
    pairs = zip(score.trials, expert.trials, strict=True)
    both = [(one.steps, other.steps) for one, other in pairs if one.success and other.success]
    if not both:
        return None
    return sum(one for one, _ in both) / sum(other for _, other in both)


def decision_ms(policy: Policy, suite: Suite) -> float:
    """Processor time of a predicted chunk, ms, on observations of a reset."""
    env = suite.open()
    spent = []
    try:
        for index in range(_TIMED):
            observation, info = env.reset(seed=suite.reset_seed(index))
            seen = {**observation, "instruction": info["instruction"]}
            with one_thread():
                started = time.process_time()
                policy.predict_action_chunk(seen)
                spent.append(time.process_time() - started)
    finally:
        env.close()
    return 1000 * median(spent)


def row(name: str, score: Score, expert: Score, ms: float | None = None) -> str:
    """A line of the table."""
    ratio = way(score, expert)
    cells = (
        name, f"{score}", "-" if ratio is None else f"{ratio:.3f}",
        "-" if ms is None else f"{ms:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def variants(policy: Any, samplers: Sequence[str], steps: Sequence[int]) -> list[tuple[str, ...]]:
    """Overrides of the head's sampling; none where it does not unmask."""
    if "sampler" not in type(policy.config.head).ADJUSTABLE or not (samplers or steps):
        return [()]
    own = policy.config.head
    return [
        (f"model.head.sampler={sampler}", f"model.head.num_inference_steps={count}")
        for sampler in samplers or (own.sampler,)
        for count in steps or (own.num_inference_steps,)
    ]


def table(path: Path, episodes: int, samplers: Sequence[str], steps: Sequence[int]) -> None:
    """Print how a checkpoint does in its own task beside who needs none."""
    task = PolicyFromCheckpoint(path).project().section("task", TaskConfig)
    suite = Suite(task)

    def play(actor: OpenActor, name: str) -> Score:
        return evaluate(suite, actor, episodes, name=name)

    print(f"\n{path} on {task.task_name}, {episodes} initial states\n\n{_HEAD}", flush=True)
    expert = play(NamedActor("expert"), "expert")
    for name in BASELINES:
        print(row(name, play(NamedActor(name), name), expert), flush=True)
    policy, _ = load_policy(path, "cpu")
    for overrides in variants(policy, samplers, steps):
        actor = PolicyFromCheckpoint(path, overrides=overrides)
        policy.adjust(actor.project().section("model", type(policy).Config))
        name = ", ".join(item.rpartition(".")[2] for item in overrides) or "as trained"
        ms = decision_ms(policy, suite)
        print(row(name, play(actor, name), expert, ms), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, help="Each makes a table.")
    parser.add_argument(
        "--episodes", type=int, default=200, help="Initial states of a row (default: 200)."
    )
    parser.add_argument(
        "--samplers", nargs="*", default=(), help="A row for each (default: the checkpoint's)."
    )
    parser.add_argument(
        "--steps", nargs="*", type=int, default=(), help="A row for each (default: the same)."
    )
    given = parser.parse_args()
    for path in given.checkpoints:
        table(path, given.episodes, given.samplers, given.steps)


if __name__ == "__main__":
    main()

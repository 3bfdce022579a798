"""How often each task is seen in an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from teamvla.errors import InputError
from teamvla.registry import did_you_mean
from teamvla.seeds import Domain, generator

#: keys of the tasks' permutations lie above those of the epochs
_TASK_STREAMS = 1 << 32


class TaskMixture:
    """Samples of tasks in fixed shares, drawn as a function of (seed, epoch) alone.

    An epoch is as long as without weights. Of each task it has the same number of samples
    in every epoch: its share of the epoch, rounded by largest remainder. They are taken
    from an endless row of permutations of the task, each epoch going on where the one
    before ended, so that no sample comes again before all others of its task have come.

    Args:
        samples: sample numbers of each task, int64.
        weights: of each task, >= 0; only their ratios matter.
    """

    def __init__(self, samples: Sequence[np.ndarray], weights: Sequence[float]) -> None:
        self._samples = tuple(samples)
        self.counts = shares(weights, sum(map(len, samples)))

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The sample numbers of an epoch, int64 [samples of all tasks]."""
        tasks = range(len(self._samples))
        drawn = np.concatenate([self._draw(task, seed, epoch) for task in tasks])
        shuffled: np.ndarray = generator(seed, Domain.ORDER, epoch).permutation(drawn)
        return shuffled

    def _draw(self, task: int, seed: int, epoch: int) -> np.ndarray:
        samples, count = self._samples[task], self.counts[task]
        if not count:
            return samples[:0]
        first_cycle, skipped = divmod(epoch * count, len(samples))
        cycles = range(first_cycle, first_cycle + -(-(skipped + count) // len(samples)))
        streams = [(task + 1) * _TASK_STREAMS + cycle for cycle in cycles]
        orders = [generator(seed, Domain.ORDER, s).permutation(len(samples)) for s in streams]
        drawn: np.ndarray = samples[np.concatenate(orders)[skipped : skipped + count]]
        return drawn


def shares(weights: Sequence[float], total: int) -> list[int]:
    """``total`` split in the ratio of ``weights``, by largest remainder; ties to the first."""
    ratio = np.asarray(weights, np.float64)
    exact = ratio / ratio.max()
    exact *= total / exact.sum()
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def check_weights(weights: Mapping[str, float], known: Sequence[str], read: Sequence[str]) -> None:
    """InputError unless ``weights`` name every task that is read, and only tasks of the data."""
    for task in weights:
        if task not in known:
            raise InputError(
                f"dataset.weights: {task!r}", "a task of the data", "none",
                did_you_mean(task, [*known]),
            )  # fmt: skip
    missing = [task for task in read if task not in weights]
    if missing:
        raise InputError(
            "dataset.weights", "a weight for every task that is read",
            f"none for {', '.join(missing)}", "Give it one; 0 leaves it out.",
        )  # fmt: skip
    empty = [task for task, weight in weights.items() if weight and task not in read]
    if empty:
        raise InputError(
            f"dataset.weights: {empty[0]!r}", "a task with episodes in this split", "none",
            "Take it out of dataset.weights, or change dataset.tasks or dataset.split.",
        )  # fmt: skip

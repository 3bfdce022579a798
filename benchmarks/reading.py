"""Reading batches: the packed cache against copying from RAM and against reading sample by sample.

    python benchmarks/reading.py                 # makes 60 episodes of noise
    python benchmarks/reading.py --data ROOT     # uses recorded episodes

Every round times each way once, in turn, so that a busy machine slows all of them alike;
medians are shown. Targets: the gather at >= 0.5x of the plain copy of the same bytes from
RAM, and at >= 7x of per-sample reads stacked by torch's default_collate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from teamvla.data import EpisodeWriter, MultiTaskDataset, RandomShift, make_dataloader
from teamvla.data.samplers import EpochBatchSampler

EPISODES, STEPS, PIXELS, JOINTS = 60, 85, 64, 6


def synthesise(root: Path) -> None:
    """Episodes with pictures of noise, the hardest to compress and to predict."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(root, compression="stored") as writer:
        for _ in range(EPISODES):
            writer.start_episode({"task": "lift"})
            for _ in range(STEPS):
                writer.add_step(noise_step(rng))
            writer.end_episode(success=True)


def noise_step(rng: np.random.Generator) -> dict[str, Any]:
    """One step of random numbers."""
    step: dict[str, Any] = {"instruction": "lift the tray", "task": "lift", "success": True}
    for arm in "ab":
        step[f"rgb_{arm}"] = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        step[f"q_{arm}"] = rng.random(JOINTS, dtype=np.float32)
        step[f"action_{arm}"] = rng.random(JOINTS, dtype=np.float32)
        step[f"grip_{arm}"] = rng.random(dtype=np.float32)
    return step


class RamRows:
    """A plain copy from RAM of rows as long as a sample, with one fancy index."""

    def __init__(self, dataset: MultiTaskDataset) -> None:
        self.row_bytes = sum(array.nbytes for array in arrays(dataset.__getitems__([0])))
        shape = (len(dataset), self.row_bytes)
        self.rows = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def __call__(self, rows: list[int]) -> np.ndarray:
        return self.rows[np.asarray(rows)]


def arrays(batch: Any) -> list[np.ndarray]:
    """All arrays of a batch."""
    if isinstance(batch, dict):
        return [array for value in batch.values() for array in arrays(value)]
    return [batch] if isinstance(batch, np.ndarray) else []


def timed(read: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def measure(root: Path, batch_size: int, rounds: int) -> dict[str, float]:
    """Median seconds a batch, for each way of reading."""
    settings = {"roots": [str(root)], "split": "all", "batch_size": batch_size, "drop_last": True}
    dataset, ram = MultiTaskDataset(settings), RamRows(MultiTaskDataset(settings))
    shifted = MultiTaskDataset(settings, [RandomShift(4)])
    loader = make_dataloader(settings)
    sampler = EpochBatchSampler(len(dataset), batch_size, drop_last=True)
    batches = list(sampler)
    ways: dict[str, Callable[[], object]] = {
        "copy of the same bytes from RAM": lambda: [len(ram(rows)) for rows in batches],
        "gather from the cache": lambda: [len(dataset.__getitems__(rows)) for rows in batches],
        "gather, through the DataLoader": lambda: [len(batch) for batch in loader],
        "gather and random shift": lambda: [len(shifted.__getitems__(rows)) for rows in batches],
        "sample by sample, default_collate": lambda: [
            len(default_collate([dataset[row] for row in rows])) for rows in batches[:8]
        ],
    }
    counts = {name: len(batches) for name in ways} | {"sample by sample, default_collate": 8}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, read in ways.items():
            seconds[name].append(timed(read) / counts[name])
    return {name: median(taken[1:]) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading batches.")
    parser.add_argument("--data", type=Path, help="folder of episodes; otherwise made up")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.data or Path(scratch)
        if options.data is None:
            synthesise(root)
        print(MultiTaskDataset({"roots": [str(root)], "split": "all"}))
        seconds = measure(root, options.batch_size, options.rounds)
    ram, gather, loader, _, single = seconds.values()
    for name, taken in seconds.items():
        print(
            f"{name:36s} {taken * 1e6:9.0f} us a batch {options.batch_size / taken:10.0f} steps/s"
        )
    print(f"gather / copy from RAM      {ram / gather:6.2f}x  (target >= 0.5)")
    print(f"gather / sample by sample   {single / gather:6.1f}x  (target >= 7)")
    print(f"the DataLoader adds         {(loader - gather) * 1e6:6.0f} us a batch")


if __name__ == "__main__":
    main()

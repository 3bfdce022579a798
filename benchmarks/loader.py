"""Reading batches: the loader against copying memory, and against video files.

    python benchmarks/loader.py            # about two minutes
    python benchmarks/loader.py --rounds 5

Datasets are made up in a temporary folder, of 64 and of 224 pixels: smooth moving pictures with
sensor noise, at 224 without it too, as both JPEG and video depend on it. Every round runs each way
once, in turn, so that a busy machine slows all alike; CPU time of the
process, median over the rounds and their spread (half the distance of the quartiles).
The ratios and their bounds:

    64 px gather / np.take of the same rows of an array in RAM      >= 0.6
    64 px DataLoader with chunks / contiguous copy of the bytes     >= 0.25
    224 px gather / contiguous copy                                 >= 0.6
    64 px gather / PyAV mp4 random access                           >= 100
    224 px gather from a JPEG cache / PyAV mp4 random access        >= 4

The videos have a key frame every two frames and are kept open: AV1 (SVT-AV1, CRF 30) as LeRobot
writes them by default, and H.264 (x264's defaults), each with PyAV's default threads. At the end:
batches whose rows had to come from the disk, with and without reading ahead.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from teamvla.data import EpisodeWriter, IndexConfig, MultiTaskDataset, build_index, make_dataloader
from teamvla.data.samplers import EpochBatchSampler, EpochRows

STEPS, JOINTS, BATCH, CHUNK = 80, 6, 64, 16
#: pixels, episodes, noise: 196 MB and 289 MB of pictures, far more than a core's caches
CASES = ((64, 100, 2.0), (224, 12, 2.0), (224, 12, 0.0))
#: name -> PyAV's encoder and its options
VIDEOS = {"AV1": ("libsvtav1", {"g": "2", "crf": "30"}), "H.264": ("libx264", {"g": "2"})}
Way = Callable[[], int]  # does its work and tells how many samples it read


def picture(
    rng: np.random.Generator, size: int, time_s: float, phase: float, noise: float
) -> np.ndarray:
    """A smooth moving scene with sensor noise of that deviation (of 255), uint8[size,size,3]."""
    rise, run = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(6 * run + 3 * c + time_s + phase) * np.cos(4 * rise - c) for c in range(3)]
    spot = np.exp(-60 * ((run - 0.5 - 0.3 * np.sin(time_s)) ** 2 + (rise - 0.6) ** 2))
    clean = 120 + 60 * np.stack(waves, axis=-1) + 60 * spot[..., None]
    noisy = clean + rng.normal(0, noise, clean.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def synthesise(root: Path, size: int, episodes: int, noise: float) -> None:
    """Episodes of two cameras; those of one size share their pictures' shapes in time."""
    rng = np.random.default_rng(0)
    times = [t / 10 for t in range(STEPS)]
    scenes = [[picture(rng, size, t, phase, noise) for phase in (0.0, 2.0)] for t in times]
    with EpisodeWriter(root, compression="stored") as writer:
        for episode in range(episodes):
            writer.start_episode({"task": "lift"})
            for step in range(STEPS):
                writer.add_step(made_step(rng, scenes[(step + 7 * episode) % STEPS]))
            writer.end_episode(success=True)


def made_step(rng: np.random.Generator, pictures: list[np.ndarray]) -> dict[str, Any]:
    """One step with fresh numbers, and pictures rolled so that no two steps are the same."""
    step: dict[str, Any] = {"instruction": "lift the tray", "task": "lift", "success": True}
    for arm, shown in zip("ab", pictures, strict=True):
        step[f"rgb_{arm}"] = np.roll(shown, int(rng.integers(len(shown))), axis=1)
        step[f"q_{arm}"] = rng.random(JOINTS, dtype=np.float32)
        step[f"action_{arm}"] = rng.random(JOINTS, dtype=np.float32)
        step[f"grip_{arm}"] = rng.random(dtype=np.float32)
    return step


def settings(root: Path, index: Path | None = None) -> dict[str, Any]:
    """The dataset section of a benchmark."""
    place = None if index is None else str(index)
    base = {"roots": [str(root)], "index": place, "split": "all", "drop_last": True}
    return {**base, "batch_size": BATCH, "chunk_size": CHUNK}


class Reading:
    """The ways of reading one dataset, each over the same rows in the same order."""

    def __init__(self, root: Path) -> None:
        self.dataset = MultiTaskDataset(settings(root))
        self.loader = make_dataloader(settings(root))
        self.batches: list[EpochRows] = list(
            EpochBatchSampler(len(self.dataset), BATCH, drop_last=True)
        )
        images = self.dataset.field("image")[:]
        self.ram = np.ascontiguousarray(np.moveaxis(images, -3, -1))
        self.copied = np.empty((BATCH, *self.ram.shape[1:]), np.uint8)
        self.samples = BATCH * len(self.batches)

    def gather(self) -> int:
        """Batches straight from the dataset."""
        for rows in self.batches:
            self.dataset.__getitems__(rows)
        return self.samples

    def load(self) -> int:
        """Batches of tensors from the DataLoader, in this process."""
        return sum(len(batch["actions"]) for batch in self.loader)

    def take(self) -> int:
        """The same rows of pictures from an array in RAM."""
        for rows in self.batches:
            np.take(self.ram, rows, axis=0)
        return self.samples

    def copy(self) -> int:
        """As many bytes of pictures, one after another, into one buffer."""
        for start in range(0, self.samples, BATCH):
            np.copyto(self.copied, self.ram[start : start + BATCH])
        return self.samples


class Videos:
    """One mp4 a camera and episode, kept open; a frame is sought and decoded."""

    def __init__(self, folder: Path, frames: np.ndarray, rows: np.ndarray, name: str) -> None:
        import av

        self.rows = rows
        self.codec, self.options = VIDEOS[name]
        episodes = len(frames) // STEPS
        self._open = [
            [
                av.open(str(self._write(folder / f"{number}-{camera}.mp4", part[:, camera])))
                for camera in range(frames.shape[1])
            ]
            for number, part in enumerate(np.split(frames, episodes))
        ]

    def _write(self, path: Path, frames: np.ndarray) -> Path:
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream(self.codec, rate=20, options=self.options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    def __call__(self) -> int:
        for row in self.rows.tolist():
            number, step = divmod(row, STEPS)
            for container in self._open[number]:
                self._frame(container, step)
        return len(self.rows)

    def _frame(self, container: Any, step: int) -> np.ndarray:
        stream = container.streams.video[0]
        stamp = round(step / 20 / stream.time_base)
        container.seek(stamp, stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= stamp:
                shown: np.ndarray = frame.to_ndarray(format="rgb24")
                return shown
        raise AssertionError(f"no frame {step}")


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Samples a CPU second of each way, in each round but the first."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, read in ways.items():
            start = time.process_time()
            count = read()
            rates[name].append(count / (time.process_time() - start))
    return {name: taken[1:] for name, taken in rates.items()}


def show(case: str, rates: dict[str, list[float]]) -> None:
    """A line for each way."""
    for name, taken in rates.items():
        low, middle, high = quantiles(taken, n=4)
        spread = 50 * (high - low) / middle
        print(f"{case:14s}  {name:34s} {middle:10.0f} steps/s  +-{spread:3.0f} %")


def judge(case: str, rates: dict[str, list[float]], name: str, other: str, bound: float) -> None:
    """The median over the rounds of one rate over another, against its bound."""
    ratio = median(a / b for a, b in zip(rates[name], rates[other], strict=True))
    verdict = "ok" if ratio >= bound else "BELOW"
    print(f"{case:14s}  {name + ' / ' + other:40s} {ratio:8.2f}x  (bound {bound:g}) {verdict}")


def measure_case(scratch: Path, case: str, root: Path, rounds: int) -> None:
    """Run all ways over a dataset and show the ratios."""
    reading = Reading(root)
    large = reading.ram.shape[2] > 64
    print(reading.dataset)
    ways: dict[str, Way] = {
        "copy of the bytes": reading.copy, "take from RAM": reading.take,
        "gather": reading.gather, "DataLoader": reading.load,
    }  # fmt: skip
    shown = np.random.default_rng(1).permutation(4 * STEPS)[:32]
    for name in VIDEOS:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        ways[f"mp4 ({name})"] = Videos(folder, reading.ram[: 4 * STEPS], shown, name)
    if large:
        ways["JPEG cache"] = compressed(root, reading)
    rates = measure(ways, rounds)
    show(case, rates)
    if large:
        judge(case, rates, "gather", "copy of the bytes", 0.6)
    else:
        judge(case, rates, "gather", "take from RAM", 0.6)
        judge(case, rates, "DataLoader", "copy of the bytes", 0.25)
    for name in VIDEOS:
        against = ("JPEG cache", 4) if large else ("gather", 100)
        judge(case, rates, against[0], f"mp4 ({name})", against[1])


def compressed(root: Path, reading: Reading) -> Way:
    """Two batches of the same rows from a JPEG cache."""
    index = root.with_name(f"{root.name}-jpeg")
    built = build_index(root, index, IndexConfig(codec="jpeg"))
    print(f"JPEG: {reading.ram.nbytes / built.cache.nbytes:.1f}x smaller than raw")
    dataset = MultiTaskDataset(settings(root, index))
    return lambda: sum(len(dataset.__getitems__(rows)["index"]) for rows in reading.batches[:2])


def read_cold(root: Path, ahead: bool) -> tuple[float, float]:
    """Wall seconds and MB read for 40 batches whose pictures the system was told to forget."""
    for path in (root / ".index").rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = MultiTaskDataset(settings(root))
    if not ahead:
        dataset.index.cache.prefetch = lambda rows: None  # type: ignore[method-assign]
    batches = list(EpochBatchSampler(len(dataset), BATCH, drop_last=True))[:40]
    start, before = time.perf_counter(), getrusage(RUSAGE_SELF).ru_inblock
    for rows in batches:
        dataset.__getitems__(rows)
    blocks = getrusage(RUSAGE_SELF).ru_inblock - before
    return time.perf_counter() - start, blocks * 512 / 1e6


def show_cold(root: Path, rounds: int) -> None:
    """Reading ahead against not, in turn."""
    gc.collect()  # what is still mapped is not forgotten
    taken = [(read_cold(root, True), read_cold(root, False)) for _ in range(rounds)]
    for name, runs in zip(("reading ahead", "not"), zip(*taken, strict=True), strict=True):
        wall, read = (median(values) for values in zip(*runs, strict=True))
        print(f"cold 64 px, 40 batches of {BATCH}, {name:14s} {1e3 * wall:5.0f} ms {read:5.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading batches.")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for pixels, episodes, noise in CASES:
            root = scratch / f"{pixels}-{noise:g}"
            synthesise(root, pixels, episodes, noise)
            case = f"{pixels} px {'noisy' if noise else 'clean'}"
            measure_case(scratch, case, root, options.rounds)
        show_cold(scratch / "64-2", options.rounds)


if __name__ == "__main__":
    main()

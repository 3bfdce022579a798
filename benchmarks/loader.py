"""Reading batches: the loader against copying memory, and against video files.

    python benchmarks/loader.py            # about two minutes
    python benchmarks/loader.py --rounds 5

Two datasets are made up in a temporary folder, of 64 and of 224 pixels: smooth moving pictures with
sensor noise, whose compressibility is shown. Every round runs each way once, in turn, so
that a busy machine slows all alike; CPU time of the process, median over the rounds and
their spread (half the distance of the quartiles). The ratios and their bounds:

    64 px gather / np.take of the same rows of an array in RAM      >= 0.6
    64 px DataLoader with chunks / contiguous copy of the bytes     >= 0.25
    224 px gather / contiguous copy                                 >= 0.6
    64 px gather / PyAV mp4 random access                           >= 100
    224 px gather from a JPEG cache / PyAV mp4 random access        >= 4

The videos have a key frame every two frames, as LeRobot's, and are kept open. At the end:
wall time of batches whose rows had to come from the disk, with and without reading ahead.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from teamvla.data import EpisodeWriter, IndexConfig, MultiTaskDataset, build_index, make_dataloader
from teamvla.data.samplers import EpochBatchSampler, EpochRows

STEPS, JOINTS, BATCH, CHUNK = 80, 6, 64, 16
#: pixels -> episodes: 196 MB and 289 MB of pictures, far more than a core's caches
SIZES = {64: 100, 224: 12}
Way = Callable[[], int]  # does its work and tells how many samples it read


def picture(rng: np.random.Generator, size: int, time_s: float, phase: float) -> np.ndarray:
    """A smooth moving scene with sensor noise (deviation 2 of 255), uint8[size,size,3]."""
    rise, run = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(6 * run + 3 * c + time_s + phase) * np.cos(4 * rise - c) for c in range(3)]
    spot = np.exp(-60 * ((run - 0.5 - 0.3 * np.sin(time_s)) ** 2 + (rise - 0.6) ** 2))
    clean = 120 + 60 * np.stack(waves, axis=-1) + 60 * spot[..., None]
    noisy = clean + rng.normal(0, 2, clean.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def synthesise(root: Path, size: int, episodes: int) -> None:
    """Episodes of two cameras; those of one size share their pictures' shapes in time."""
    rng = np.random.default_rng(0)
    scenes = [[picture(rng, size, t / 10, v) for v in (0.0, 2.0)] for t in range(STEPS)]
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

    def __init__(self, folder: Path, frames: np.ndarray, rows: np.ndarray) -> None:
        import av

        self.rows = rows
        self.codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
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
            stream = container.add_stream(self.codec, rate=20)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 2
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


def show(pixels: int, rates: dict[str, list[float]]) -> None:
    """A line for each way."""
    for name, taken in rates.items():
        low, middle, high = quantiles(taken, n=4)
        spread = 50 * (high - low) / middle
        print(f"{pixels:4d} px  {name:34s} {middle:10.0f} steps/s  +-{spread:3.0f} %")


def judge(
    rates: dict[str, list[float]], name: str, against: str, bound: float
) -> tuple[str, float, float]:
    """Label, median over the rounds of one rate over another, and its bound."""
    pairs = zip(rates[name], rates[against], strict=True)
    return f"{name} / {against}", median(one / other for one, other in pairs), bound


def measure_size(scratch: Path, pixels: int, rounds: int) -> Iterator[tuple[str, float, float]]:
    """Make a dataset, run all ways over it, and give the ratios."""
    root = scratch / f"episodes-{pixels}"
    synthesise(root, pixels, SIZES[pixels])
    reading = Reading(root)
    some = reading.ram[:: len(reading.ram) // 20].tobytes()
    smaller = len(some) / len(zlib.compress(some))
    print(f"{reading.dataset}\npictures: zlib-6 makes them {smaller:.1f}x smaller")
    ways: dict[str, Way] = {
        "copy of the bytes": reading.copy, "take from RAM": reading.take,
        "gather": reading.gather, "DataLoader": reading.load,
    }  # fmt: skip
    try:
        shown = np.random.default_rng(1).permutation(min(len(reading.ram), 4 * STEPS))[:32]
        folder = Path(tempfile.mkdtemp(dir=scratch))
        videos = Videos(folder, reading.ram[: 4 * STEPS], shown)
        ways[f"mp4 ({videos.codec})"] = videos
    except ImportError:
        print("no rows for mp4: PyAV is missing; install teamvla[lerobot]")
        videos = None
    if pixels == 224:
        compressed = scratch / "jpeg"
        build_index(root, compressed, IndexConfig(codec="jpeg"))
        jpeg = MultiTaskDataset(settings(root, compressed))
        ways["JPEG cache"] = lambda: sum(
            len(jpeg.__getitems__(rows)["index"]) for rows in reading.batches[:2]
        )
    rates = measure(ways, rounds)
    show(pixels, rates)
    yield from ratios(pixels, rates, None if videos is None else f"mp4 ({videos.codec})")


def ratios(
    pixels: int, rates: dict[str, list[float]], video: str | None
) -> Iterator[tuple[str, float, float]]:
    """The ratios that have a bound."""
    if pixels == 64:
        yield judge(rates, "gather", "take from RAM", 0.6)
        yield judge(rates, "DataLoader", "copy of the bytes", 0.25)
    else:
        yield judge(rates, "gather", "copy of the bytes", 0.6)
    if video:
        yield judge(
            rates, "gather" if pixels == 64 else "JPEG cache", video, 100 if pixels == 64 else 4
        )


def read_cold(root: Path, ahead: bool) -> float:
    """Wall seconds of 12 batches whose pictures the system was told to forget."""
    files = [path for path in (root / ".index").rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    dataset = MultiTaskDataset(settings(root))
    batches = list(EpochBatchSampler(len(dataset), BATCH, drop_last=True))[:12]
    start = time.perf_counter()
    for rows in batches:
        dataset.__getitems__(rows if ahead else list(rows))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading batches.")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for pixels in SIZES:
            for label, ratio, bound in [*measure_size(scratch, pixels, options.rounds)]:
                verdict = "ok" if ratio >= bound else "BELOW"
                print(f"{pixels:4d} px  {label:40s} {ratio:8.2f}x  (bound {bound:g}) {verdict}")
        root = scratch / "episodes-64"
        cold = [(read_cold(root, True), read_cold(root, False)) for _ in range(3)]
        with_, without = (median(taken) for taken in zip(*cold, strict=True))
        took = f"{1e3 * with_:.0f} ms reading ahead, {1e3 * without:.0f} ms not"
        print(f"cold 64 px, 12 batches of {BATCH}: {took}")


if __name__ == "__main__":
    main()

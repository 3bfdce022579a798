"""The index at scale: opening a large manifest, adding to many episodes, building.

    python benchmarks/index.py               # 10,000 small episodes, ten added; a made-up million
    python benchmarks/index.py --episodes 2000

Opening is timed in fresh processes beside one that only imports; building beside reading,
inflating and checking the same files for finite numbers (`read_episode` alone, as many threads),
and beside writing as many bytes as the cache has, which a build must do as well.
Targets: a million episodes open in 5 ms and 10 MB, within 1.5x of ten thousand; adding ten to
ten thousand costs at most 2 % of building them; building is at least 0.8x as fast as reading.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from teamvla.data import EpisodeWriter, Index, build_index, read_episode
from teamvla.data.index_read import THREADS
from teamvla.data.manifest import COLUMNS
from teamvla.files import write_json

OPENING = """
import json, resource, sys, time
from teamvla.data.index import Index
def resident():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")) / 1e3
before, start = resident(), time.perf_counter()
index = Index.open(sys.argv[1])
print(json.dumps([1e3 * (time.perf_counter() - start), resident() - before, len(index.episodes)]))
"""


def write(root: Path, first: int, count: int, steps: int, pixels: int, noise: bool) -> None:
    """Episodes with pictures of noise, or of large areas of one colour."""
    rng = np.random.default_rng(first)
    with EpisodeWriter(root) as writer:
        for number in range(first, first + count):
            writer.start_episode({"task": "lift", "episode_id": f"e{number:07d}"})
            for _ in range(steps):
                step = {"instruction": "lift", "task": "lift", "success": True}
                for arm in "ab":
                    picture = rng.integers(0, 256, (pixels, pixels, 3), np.uint8)
                    if not noise:
                        picture = np.repeat(np.repeat(picture[::8, ::8], 8, 0), 8, 1)
                    step |= {f"rgb_{arm}": picture, f"grip_{arm}": rng.random(dtype=np.float32)}
                    step[f"q_{arm}"] = rng.random(6, dtype=np.float32)
                    step[f"action_{arm}"] = rng.random(6, dtype=np.float32)
                writer.add_step(step)
            writer.end_episode(success=True)


def magnified(index: Index, target: Path, episodes: int) -> Path:
    """An index whose table has so many rows; the steps stay those of ``index``."""
    shutil.copytree(index.folder, target)
    manifest = target / index.summary["build"] / "manifest"
    rows = np.arange(episodes) % len(index.episodes)
    for name in COLUMNS:
        np.save(manifest / f"{name}.npy", index.episodes[name][rows])
    counts = {**index.summary["episodes"], "total": episodes, "used": episodes}
    write_json(target / "summary.json", {**index.summary, "episodes": counts})
    return target


def opening(folder: Path, repeats: int = 7) -> list[float]:
    """Median milliseconds and megabytes of opening in a fresh process."""
    command = [sys.executable, "-c", OPENING, str(folder)]
    runs = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
    return [median(column) for column in zip(*runs, strict=True)]


def timed(work: object) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def read_all(root: Path) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(read_and_check, sorted(root.glob("*/*.npz"))):
            pass


def read_and_check(path: Path) -> None:
    for array in read_episode(path).fields.values():
        assert array.dtype.kind != "f" or np.isfinite(array).all()


def write_bytes(path: Path, size: int) -> None:
    """Plain writes of so many bytes, and waiting for the disk."""
    block = bytes(128 << 10)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()


def building(place: Path, noise: bool, episodes: int) -> None:
    root = place / f"pictures-{noise}"
    write(root, 0, episodes, 60, 64, noise)
    rounds = []
    for _ in range(3):
        shutil.rmtree(root / ".index", ignore_errors=True)
        rounds.append((timed(lambda: read_all(root)), timed(lambda: build_index(root))))
    size = Index.open(root / ".index").cache.nbytes
    written = timed(lambda: write_bytes(place / "blob", size))
    wall = median(read[0] / built[0] for read, built in rounds)
    cpu = median(read[1] / built[1] for read, built in rounds)
    kind = "noise" if noise else "plain areas"
    rate = episodes * 60 / median(built[0] for _, built in rounds)
    print(f"building, 64 px {kind}: {rate:,.0f} steps/s; of reading alone: "
          f"{wall:.2f}x wall, {cpu:.2f}x CPU (target 0.8x); reading took {rounds[-1][0][0]:.2f} s, "
          f"writing {size / 1e9:.2f} GB alone {written[0]:.2f} s", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1000, help="episodes of 64 px")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=32)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        building(place, noise=False, episodes=given.large)
        building(place, noise=True, episodes=given.large)
        root = place / "many"
        write(root, 0, given.episodes, given.steps, given.pixels, noise=False)
        whole = timed(lambda: build_index(root))
        write(root, given.episodes, 10, given.steps, given.pixels, noise=False)
        added = timed(lambda: build_index(root))
        shares = f"{added[0] / whole[0]:.2%} wall, {added[1] / whole[1]:.2%} CPU (target 2 %)"
        print(f"{given.episodes} episodes built in {whole[0]:.2f} s", end=", ")
        print(f"ten added in {added[0]:.3f} s: {shares}")
        index = Index.open(root / ".index")
        few = opening(magnified(index, place / "few", 10_000))
        most = opening(magnified(index, place / "most", 1_000_000))
        for figures in (few, most):
            print(f"opening {figures[2]:>9,} episodes: {figures[0]:.2f} ms, {figures[1]:.1f} MB")
        print(f"ratio {most[0] / few[0]:.2f} (targets 5 ms, 10 MB, 1.5x)")


if __name__ == "__main__":
    main()

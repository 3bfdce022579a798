"""What the command line costs before it does anything, in CPU time.

    python benchmarks/startup.py [--rounds 15] [--largest-mb 1000]

Compares ``teamvla --help`` with importing typer and rich (at most 2x), ``ckpt-inspect``
with ``--version`` (at most 1.5x), and ``ckpt-inspect`` of checkpoints from 1 MB up to
1 GB with each other (flat). Rounds of all cases alternate, and the least time of each
counts, so that a busy machine slows both sides alike. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from teamvla.checkpoint import write_checkpoint

BASE = "import typer, rich"
HELP, VERSION = "teamvla --help", "teamvla --version"


def cpu_ms(command: list[str]) -> float:
    """User and system time of one run, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def write_sized(folder: Path, megabytes: int) -> Path:
    """A checkpoint of about ``megabytes``, with a header like a real one's."""
    names = [f"model.block.{i}.weight" for i in range(200)]
    values = np.zeros(megabytes * 250_000 // len(names), np.float32)
    meta = {"kind": "policy", "config": {"model": {"type": "vla"}}, "state": {"epoch": 3}}
    return write_checkpoint(folder / f"{megabytes}mb.ckpt", meta, dict.fromkeys(names, values))


def cases(folder: Path, largest_mb: int) -> dict[str, list[str]]:
    teamvla = [sys.executable, "-m", "teamvla"]
    sizes = [size for size in (1, 30, 1000) if size <= largest_mb]
    paths = {size: write_sized(folder, size) for size in sizes}
    return {
        BASE: [sys.executable, "-c", BASE],
        HELP: [*teamvla, "--help"],
        VERSION: [*teamvla, "--version"],
        **{f"ckpt-inspect {s} MB": [*teamvla, "ckpt-inspect", str(p)] for s, p in paths.items()},
    }


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    least = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, command in commands.items():
            least[name] = min(least[name], cpu_ms(command))
    return least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--largest-mb", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        took = measure(cases(Path(folder), arguments.largest_mb), arguments.rounds)
    for name, milliseconds in took.items():
        print(f"{name:<24} {milliseconds:7.1f} ms")
    inspect = [name for name in took if name.startswith("ckpt-inspect")]
    targets = [(HELP, BASE, 2.0), (inspect[0], VERSION, 1.5), (inspect[-1], inspect[0], 1.2)]
    missed = 0
    for name, other, target in targets:
        ratio = took[name] / took[other]
        missed += ratio > target
        print(f"{name} / {other}: {ratio:.2f}x (target <= {target}x)")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Validating against what it cannot do without: inflating, checksums and a look for NaN.

    python benchmarks/validation.py --data ROOT      # episodes that were recorded

Every round times each way once, in turn, in CPU seconds of one thread; medians are shown.
Targets: the full validation at >= 0.7x of the bare pass (inflate, CRC-32, finiteness; nothing
is checked of what the file claims); `--quick` at <= 0.1 ms an episode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from isal import isal_zlib

from teamvla.data import find_episodes
from teamvla.data.validation import validate_roots
from teamvla.data.zipcontainer import MAX_BYTES, Member, read_directory

LOCAL_HEADER, NPY_HEADER = 30, 128


def bare(paths: list[Path]) -> None:
    """Inflate, checksum and look for NaN, believing every word of the files."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            members = read_directory(file, str(path), MAX_BYTES)
            file.seek(0)
            content = file.read()
        for member in members.values():
            check(content, member)


def check(file: bytes, member: Member) -> None:
    """One member; its header is taken to be NumPy's of 128 bytes."""
    start = member.offset + LOCAL_HEADER + len(member.name)
    packed = memoryview(file)[start : start + member.packed]
    content = isal_zlib.decompress(packed, -15, member.size) if member.deflated else packed
    if isal_zlib.crc32(content) != member.crc:
        raise ValueError(member.name)
    floats = {b"'<f4'": np.float32, b"'<f8'": np.float64}
    dtype = next((t for text, t in floats.items() if text in bytes(content[:NPY_HEADER])), None)
    if dtype is not None and not np.isfinite(np.frombuffer(content[NPY_HEADER:], dtype)).all():
        raise ValueError(member.name)


def cpu_ms(call: Callable[[], object], episodes: int) -> float:
    """CPU milliseconds an episode that one call takes."""
    start = time.process_time()
    call()
    return (time.process_time() - start) / episodes * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Validating episodes.")
    parser.add_argument("--data", type=Path, required=True, help="folder of episodes")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    paths = find_episodes(options.data)
    ways: dict[str, Callable[[], object]] = {
        "inflate, CRC-32, finiteness": lambda: bare(paths),
        "validate, one worker": lambda: validate_roots([options.data], workers=1),
        "validate --quick": lambda: validate_roots([options.data], quick=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds + 1):
        for name, call in ways.items():
            taken[name].append(cpu_ms(call, len(paths)))
    least, full, quick = (median(of[1:]) for of in taken.values())
    for name, milliseconds in zip(ways, (least, full, quick), strict=True):
        print(f"{name:30s} {milliseconds:8.3f} ms an episode")
    print(f"full / bare                    {least / full:8.2f}x (target >= 0.7)")
    print(f"quick                          {quick:8.3f} ms (target <= 0.1)")


if __name__ == "__main__":
    main()

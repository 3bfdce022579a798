"""Small made-up episodes: quick to write, and every number in them tells where it stood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Arm, Camera, Contract, Link
from teamvla.data.writer import EpisodeWriter

JOINTS, HEIGHT, WIDTH = 6, 8, 10


def make_contract(control_hz: float = 20.0) -> Contract:
    """Two arms of six joints and two little cameras."""
    link = Link(joint="hinge", offset=(0, 0, 0.1), axis=(0, 0, 1), limits=(-3, 3), radius=0.05)
    arms = tuple(
        Arm(name=name, base=(0, side, 0), links=(link,) * JOINTS, tool=(0, 0, 0.1))
        for name, side in (("a", 0.3), ("b", -0.3))
    )
    cameras = tuple(Camera(field=f"rgb_{name}", height=HEIGHT, width=WIDTH) for name in "ab")
    return Contract(control_hz=control_hz, arms=arms, cameras=cameras)


def make_steps(num_steps: int, seed: int, *, measured: bool = True) -> list[dict[str, Any]]:
    """Steps with random pictures and numbers that occur nowhere else."""
    rng = np.random.default_rng(seed)
    return [_step(rng, index == num_steps - 1, measured) for index in range(num_steps)]


def _step(rng: np.random.Generator, success: bool, measured: bool) -> dict[str, Any]:
    step: dict[str, Any] = {"instruction": "lift the tray", "task": "lift", "success": success}
    for arm in "ab":
        step[f"rgb_{arm}"] = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        step[f"q_{arm}"] = rng.normal(size=JOINTS).astype(np.float32)
        step[f"action_{arm}"] = rng.normal(size=JOINTS).astype(np.float32)
        step[f"grip_{arm}"] = np.float32(rng.random())
        if measured:
            step[f"grip_q_{arm}"] = np.float32(rng.random())
    return step


def write_episode(
    root: Path,
    episode_id: str,
    num_steps: int = 5,
    *,
    task: str = "lift",
    success: bool = True,
    seed: int = 0,
    measured: bool = True,
    contract: Contract | None = None,
    instruction: str = "lift the tray",
) -> Path:
    """One episode file below ``root``."""
    contract = contract or make_contract()
    meta = {
        "task": task,
        "episode_id": episode_id,
        "contract": contract.to_dict(),
        "contract_digest": contract.digest,
    }
    with EpisodeWriter(root) as writer:
        writer.start_episode(meta)
        for step in make_steps(num_steps, seed, measured=measured):
            success_here = bool(step["success"] and success)
            changed = {"task": task, "instruction": instruction, "success": success_here}
            writer.add_step({**step, **changed})
        return writer.end_episode(success=success)


def write_episodes(root: Path, count: int, *, task: str = "lift", first: int = 0) -> list[Path]:
    """Episodes of 3 to 9 steps, named and filled by their number."""
    return [
        write_episode(root, f"e{number:04d}", 3 + number * 5 % 7, task=task, seed=number)
        for number in range(first, first + count)
    ]

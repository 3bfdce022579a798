"""What is remembered of an episode when its file is closed: about a kilobyte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from teamvla.contract import Contract
from teamvla.data.fields import arms_of
from teamvla.data.validation.record import Record

Entry = tuple[str, int, int]
"""Name, CRC-32 and size of a member: equal entries, equal columns."""


@dataclass(frozen=True, eq=False)
class Summary:
    """One episode among others.

    Attributes:
        content: hash of all columns; equal for two files of the same episode.
        motion: hash of positions and commands alone.
        start: joint positions of the first step and their means, by arm.
        grips: gripper command of the first step, by arm.
        views: thumbnail of the first picture, by camera.
        contract: its digest.
        meaning: the contract itself.
        reset_seed: that its simulator was reset with.
    """

    path: Path
    task: str
    episode_id: str
    content: int
    motion: int | None
    instruction: str | None = None
    success: bool | None = None
    steps: int = 0
    contract: str | None = None
    meaning: Contract | None = None
    reset_seed: int | None = None
    start: Mapping[str, np.ndarray] = field(default_factory=dict)
    grips: Mapping[str, float] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)


def summarise(path: Path, entries: list[Entry], record: Record) -> Summary:
    """The summary of an episode that was read."""
    meta, small = record.meta, record.small
    start: dict[str, np.ndarray] = {}
    if (joints := record.joints) is not None:
        mean = joints.q.mean(axis=0)
        start = {a: np.stack([joints.q[0, c], mean[c]]) for a, c in joints.slices.items()}
    grips = {
        arm: float(small[f"grip_{arm}"][0])
        for arm in arms_of(record.specs)
        if f"grip_{arm}" in small
    }
    return Summary(
        path, str(meta["task"]), str(meta["episode_id"]), *digests(entries),
        instruction=str(meta["instruction"]), success=bool(meta["success"]), steps=record.steps,
        contract=record.contract_digest, meaning=record.contract,
        reset_seed=meta.get("reset_seed"),
        start=start, grips=grips, views={k: v.first for k, v in record.pictures.items()},
    )  # fmt: skip


def digests(entries: list[Entry]) -> tuple[int, int | None]:
    """Hashes of all columns, and of positions and commands (``None`` if there are none)."""
    columns = frozenset(entry for entry in entries if entry[0] != "meta")
    motion = frozenset(entry for entry in columns if entry[0].startswith(("q_", "action_")))
    return hash(columns), hash(motion) if motion else None

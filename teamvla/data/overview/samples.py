"""A few episodes of a group, read whole: what pictures and traces are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from teamvla.data.npz import EpisodeFile
from teamvla.data.overview.survey import Group, Take, damage
from teamvla.data.validation import Finding
from teamvla.errors import InputError, SchemaError


@dataclass(frozen=True)
class Sample:
    """One episode to look at.

    Attributes:
        frames: camera -> its first, middle and last picture, uint8[H, W, 3].
        columns: field -> float values [T, ...], those of the arms.
        phases: name and number of steps, one after another; empty if none were recorded.
    """

    take: Take
    episode_id: str
    instruction: str
    frames: dict[str, list[np.ndarray]]
    columns: dict[str, np.ndarray]
    phases: list[tuple[str, int]]


def choose(takes: Sequence[Take], count: int) -> list[Take]:
    """Up to ``count`` episodes from the shortest to the longest, at most half of them failures.

    Few failures leave their places to successes, and the other way round.
    """
    ordered = sorted(takes, key=lambda take: (take.steps, take.path))
    failures = [take for take in ordered if not take.success]
    successes = [take for take in ordered if take.success]
    failed = min(len(failures), max(count // 2, count - len(successes)))
    return _spread(failures, failed) + _spread(successes, count - failed)


def _spread(takes: list[Take], count: int) -> list[Take]:
    places = np.linspace(0, len(takes) - 1, min(count, len(takes))).round().astype(int)
    return [takes[place] for place in places]


def read_samples(group: Group, count: int) -> tuple[list[Sample], list[Finding]]:
    """Samples of a group, and what was wrong with those that could not be read."""
    samples, damaged = [], []
    for take in choose(group.takes, count):
        try:
            with EpisodeFile(take.path) as file:
                samples.append(_sample(file, group, take))
        except (SchemaError, InputError) as error:
            damaged.append(damage(take.path, error))
    return samples, damaged


def _sample(file: EpisodeFile, group: Group, take: Take) -> Sample:
    wanted = {f"{kind}_{arm}" for arm in group.arms for kind in ("q", "action", "grip", "grip_q")}
    frames, columns = {}, {}
    for name, (dtype, shape) in file.columns(file.fields).items():
        if dtype == np.uint8 and len(shape) == 4 and shape[-1] == 3 and min(shape):
            frames[name] = _frames(file.read(name))
        elif name in wanted and dtype.kind == "f" and len(shape) <= 2:
            columns[name] = file.read(name)
    phases = _phases(file.read("phase")) if "phase" in file.fields else []
    meta = file.meta
    names = str(meta["episode_id"]), str(meta["instruction"])
    return Sample(take, *names, frames, columns, phases)


def _frames(pictures: np.ndarray) -> list[np.ndarray]:
    last = len(pictures) - 1
    return [pictures[place].copy() for place in (0, last // 2, last)]


def _phases(texts: np.ndarray) -> list[tuple[str, int]]:
    if texts.ndim != 1:
        return []
    return [(str(name), len(list(run))) for name, run in groupby(texts.tolist())]

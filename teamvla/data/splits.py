"""Which episodes train and which only validate or test: decided by each episode's name.

An episode's place is the hash of ``task/episode_id`` as a number in [0, 1): below
``test_fraction`` it is test, in the next ``val_fraction`` validation, else train.
No other episode is asked, so adding data never moves one.

One rule must look at the others: a task with data always has a train episode, and
a task with at least :data:`ENOUGH` has a validation one. Where no hash falls there (at
10 % validation that happens to a third of the sets of ten, to one in 37,000 sets of a hundred), the
nearest hash stands in. When data is added later, a stand-in may return to train; no
episode goes the other way, from train to validation, once its task has
:data:`ENOUGH` episodes and one of them trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

ENOUGH = 10
SPLITS = ("train", "val", "test")


def position(task: str, episode_id: str) -> float:
    """An episode's place in [0, 1), uniform over names."""
    digest = hashlib.sha256(f"{task}/{episode_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2.0**48


def assign_splits(
    names: Sequence[tuple[str, str]], val_fraction: float, test_fraction: float
) -> list[str]:
    """The split of each (task, episode_id)."""
    places = [position(*name) for name in names]
    held_out = test_fraction + val_fraction
    splits = [_split(place, test_fraction, held_out) for place in places]
    for task in sorted({task for task, _ in names}):
        members = [i for i, name in enumerate(names) if name[0] == task]
        members.sort(key=lambda i: (places[i], names[i]))
        _fill_gaps(splits, members, val_fraction > 0)
    return splits


def _split(place: float, test_fraction: float, held_out: float) -> str:
    if place < test_fraction:
        return "test"
    return "val" if place < held_out else "train"


def _fill_gaps(splits: list[str], members: list[int], wants_val: bool) -> None:
    """Let the nearest hash stand in for an empty train or validation part of one task."""
    present = {splits[i] for i in members}
    if "train" not in present:
        splits[members[-1]] = "train"
    if wants_val and "val" not in present and len(members) >= ENOUGH:
        nearest = next(i for i in members if splits[i] == "train")
        splits[nearest] = "val"

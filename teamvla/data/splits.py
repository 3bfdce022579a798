"""Which episodes train and which only validate or test: decided by each episode's name alone.

An episode has a place in [0, 1): below ``test_fraction`` it is test, in the next
``val_fraction`` validation, else train. No other episode is asked. So adding data never
moves an episode, and it does not matter in which order or how often an index was built.

The place of a numbered episode (``s0-000012``, ``episode_7``, ``12``) is 1/2 plus the number
times the golden ratio, less its whole part. Such places fill [0, 1) evenly: of the
numbers 0, 1, 2, ... every tenth or so validates at ``val_fraction=0.1``, the first of them
number 9, and among any 13 in a row there is one; random places leave a third of the
sets of ten without any. The place of every other name is a hash of ``task/episode_id``.
What ``teamvla repair`` made of a journal, ``ID-partial``, has the place of ``ID``: if that
episode is recorded again, both tell of the same moments.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

SPLITS = ("train", "val", "test")
#: a number by itself: not the last digits of a hexadecimal name
_NUMBERED = re.compile(r"(?:[a-z_-]*|.*[_-])(\d+)", re.ASCII)
_PARTIAL = re.compile(r"-partial(-\d+)?\Z", re.ASCII)
#: 2**64 divided by the golden ratio
_STEP = 0x9E3779B97F4A7C15


def position(task: str, episode_id: str) -> float:
    """An episode's place in [0, 1)."""
    episode_id = _PARTIAL.sub("", episode_id)
    if numbered := _NUMBERED.fullmatch(episode_id):
        return ((int(numbered[1]) * _STEP + (1 << 63)) % (1 << 64) >> 11) / 2.0**53
    digest = hashlib.sha256(f"{task}/{episode_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2.0**48


def assign_splits(
    names: Iterable[tuple[str, str]], val_fraction: float, test_fraction: float
) -> list[str]:
    """The split of each (task, episode_id)."""
    held_out = test_fraction + val_fraction
    places = (position(*name) for name in names)
    return [
        "test" if place < test_fraction else "val" if place < held_out else "train"
        for place in places
    ]

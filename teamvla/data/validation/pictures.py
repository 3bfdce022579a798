"""Cameras summed up without looking at every pixel twice, and what the sums show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from teamvla.data.validation.findings import Fault
from teamvla.data.validation.thresholds import (
    BRIGHT,
    DARK,
    FROZEN_MOTION,
    FROZEN_S,
    FROZEN_STEPS,
    REPEAT_COUNT,
    REPEAT_MOTION,
    REPEAT_SHARE,
)

if TYPE_CHECKING:
    from teamvla.data.validation.record import Record

_SAMPLES = 128  # words of a picture that are compared before all of them are
_SPARSE = 7  # of their bytes one is looked at for light; no multiple of a pixel's
_GRID = 8  # rows and columns of a thumbnail
_LEVEL = 128.0  # its mean brightness


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is kept of one camera's column.

    Attributes:
        same: bool[T-1], whether the next picture is the same to the bit.
        dark: bool[T], whether hardly a pixel is lighter than a covered lens.
        first: float32[8, 8, 3], thumbnail of the first picture.
        crc: checksum of all pictures: equal for two cameras that show the same.
    """

    same: np.ndarray
    dark: np.ndarray
    first: np.ndarray
    crc: int

    def __len__(self) -> int:
        return len(self.dark)


def sum_up(column: np.ndarray, crc: int) -> Pictures:
    """Sum up uint8[T, H, W, 3]."""
    flat = np.ascontiguousarray(column).reshape(len(column), -1)
    # Whole words cost no more to fetch than bytes and see eight times as much.
    words = flat if flat.shape[1] % 8 else flat.view(np.uint64)
    sample = np.ascontiguousarray(words[:, :: max(1, words.shape[1] // _SAMPLES)])
    same = (sample[1:] == sample[:-1]).all(axis=1)
    for step in np.flatnonzero(same).tolist():
        same[step] = flat[step].tobytes() == flat[step + 1].tobytes()
    dark = sample.view(np.uint8)[:, ::_SPARSE].mean(axis=1, dtype=np.float32) <= DARK
    for step in np.flatnonzero(dark).tolist():
        dark[step] = np.count_nonzero(flat[step] > DARK) <= BRIGHT * flat.shape[1]
    return Pictures(same, dark, thumbnail(column[0]), crc)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """float32[8, 8, 3]: means of the picture's tiles, scaled to the same mean brightness.

    What does not fill a tile is left out; pictures smaller than the grid are stretched.
    """
    for axis in (0, 1):
        if picture.shape[axis] < _GRID:
            picture = picture.repeat(-(-_GRID // picture.shape[axis]), axis=axis)
    tall, wide = (size // _GRID for size in picture.shape[:2])
    cut = picture[: _GRID * tall, : _GRID * wide]
    rows = cut.reshape(_GRID, tall, -1).sum(axis=1, dtype=np.uint32)
    tiles = rows.reshape(_GRID, _GRID, wide, -1).sum(axis=2).astype(np.float32)
    return np.asarray(tiles * (_LEVEL / max(1.0, float(tiles.mean()))), np.float32)


def dark(record: Record) -> Iterator[Fault]:
    """Pictures in which nothing is to be seen."""
    for name, pictures in record.pictures.items():
        if count := int(pictures.dark.sum()):
            got = f"hardly any above {DARK} ({count} of {len(pictures.dark)} steps)"
            yield Fault("W405", int(pictures.dark.argmax()), name, f"expected light, got {got}")


def frozen(record: Record) -> Iterator[Fault]:
    """The same picture for long while the arm that it shows moves."""
    least = max(FROZEN_STEPS, round(FROZEN_S / record.tick))
    for name, pictures in record.pictures.items():
        if not pictures.same.any():
            continue
        reach = record.reach(_arm_of(name, record))
        for start, end in _runs(pictures.same):
            moved = float(reach[start:end].sum())
            if end - start >= least and moved > FROZEN_MOTION:
                got = f"the same for {end - start + 1} steps while a joint moves {moved:.2g} rad"
                yield Fault("W406", start, name, f"expected pictures that change, got {got}")
                break


def repeated(record: Record) -> Iterator[Fault]:
    """Single pictures that come twice (I446); many of them: a camera slower than the rate."""
    for name, pictures in record.pictures.items():
        if not pictures.same.any():
            continue
        moving = record.reach(_arm_of(name, record)) > REPEAT_MOTION
        same = pictures.same[: len(moving)]
        # Longer runs are a frozen camera's: here every second, third or fourth is new.
        single = moving & same & _short(same)
        count, of = int(single.sum()), int(moving.sum())
        if count == 0:
            continue
        many = count >= REPEAT_COUNT and count > REPEAT_SHARE * of
        got = f"the one before ({count} of {of} steps of quick motion)"
        message = f"expected a new picture, got {got}"
        yield Fault("W407" if many else "I446", int(single.argmax()) + 1, name, message)


def twins(record: Record) -> Iterator[Fault]:
    """Two cameras that show the same all the time."""
    for (name, one), (other, two) in combinations(record.pictures.items(), 2):
        if one.crc == two.crc and len(one) == len(two) and not one.dark.all():
            yield Fault("W408", None, other, f"expected another view than {name}, got the same")


def _arm_of(name: str, record: Record) -> str | None:
    """The arm that a camera is named after: another arm's motion need not show in it."""
    arm = name.rpartition("_")[2]
    return arm if arm in record.arms else None


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and one behind last of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False]))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _short(mask: np.ndarray) -> np.ndarray:
    """The True entries that stand in stretches of at most three."""
    kept = np.zeros(len(mask), bool)
    for start, end in _runs(mask):
        kept[start:end] = end - start <= 3
    return kept


CHECKS = {"W405": dark, "W406": frozen, "W407": repeated, "W408": twins}

"""One episode as the cache stores it: pictures side by side, state and actions joined.

Fields that the contract does not name are not in the cache, but for the reward: they stay in
the episode's file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teamvla.contract import Signal
from teamvla.data.cache_codecs import Pictures, encode_jpeg
from teamvla.data.cache_shards import Stored, pictures_crc
from teamvla.data.cache_signals import SignalShape, Values
from teamvla.data.layout import REWARD, Layout
from teamvla.data.manifest import unusable
from teamvla.data.npz import Episode
from teamvla.data.ragged import Ragged
from teamvla.errors import EpisodeError

#: statistics of pictures are of every so many steps, and there of every so many lines
EVERY = {"steps": 4, "lines": 8}


class Buffers:
    """Memory that is used again: clearing new pages costs the system as much as filling them."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []  # append and pop are safe among threads

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of bytes with any content."""
        size = math.prod(shape)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        if buffer.size < size:
            buffer = np.empty(size + size // 4, np.uint8)
        return buffer[:size].reshape(shape)

    def give(self, array: np.ndarray) -> None:
        """Take back what :meth:`take` gave, once nobody looks at it."""
        if isinstance(array.base, np.ndarray):
            self._free.append(array.base)


@dataclass(frozen=True)
class Packed:
    """An episode of T steps in the cache's form."""

    images: np.ndarray  # uint8 [T,V,H,W,C]
    state: np.ndarray  # float32 [T,S]
    actions: np.ndarray  # float32 [T,A], without padding
    instructions: list[str]  # T of them
    signals: tuple[Values, ...] = ()  # those of the layout's arrays


def store(packed: Packed, digest: str, jpeg_quality: int | None) -> Stored:
    """The form in which a shard takes an episode; JPEG if a quality is given."""
    images = packed.images
    pictures = Pictures(images)
    if jpeg_quality is not None and images.shape[1]:
        pictures = encode_jpeg(images, jpeg_quality)
    return Stored(
        digest,
        pictures,
        pictures_crc(pictures),
        packed.state,
        packed.actions,
        packed.instructions,
        _pixel_sums(images[:: EVERY["steps"], :, :: EVERY["lines"]]),
        packed.signals,
    )


def _pixel_sums(images: np.ndarray) -> np.ndarray:
    """Number, sum and sum of squares of uint8 [T,V,h,w,C]: float64 [V,3,C], exact."""
    cameras, colours = images.shape[1], images.shape[-1]
    if not cameras:
        return np.zeros((0, 3, colours))
    values = images.swapaxes(0, 1).reshape(cameras, -1, colours).astype(np.float64)
    ones = np.ones(values.shape[1])  # products with it are faster than sums over a middle axis
    count = np.full((cameras, colours), float(len(ones)))
    return np.stack([count, ones @ values, ones @ (values * values)], axis=1)


def pack(episode: Episode, layout: Layout, buffers: Buffers | None = None) -> Packed:
    """Join an episode's fields; EpisodeError if one is missing, misshapen or not finite.

    Args:
        buffers: where room for the pictures is taken from.
    """
    pictures = [_field(episode, camera, "uint8", layout.picture) for camera in layout.cameras]
    measured, actions = [], []
    for arm, joints in zip(layout.arms, layout.joints, strict=True):
        grip = _field(episode, f"grip_{arm}", "float32", ())
        measured.append(_field(episode, f"q_{arm}", "float32", (joints,)))
        measured.append(_opening(episode, arm, grip, layout)[:, None])
        actions += [_field(episode, f"action_{arm}", "float32", (joints,)), grip[:, None]]
    measured += [_numbers(episode, signal) for signal in layout.state_signals]
    actions += [_numbers(episode, signal) for signal in layout.action_signals]
    return Packed(
        _side_by_side(pictures, episode.num_steps, layout, buffers or Buffers()),
        np.concatenate([np.empty((episode.num_steps, 0), np.float32), *measured], axis=1),
        np.concatenate(actions, axis=1),
        [str(text) for text in episode.fields["instruction"]],
        tuple(_values(episode, shape) for shape in layout.arrays),
    )


def _side_by_side(
    pictures: Sequence[np.ndarray], steps: int, layout: Layout, buffers: Buffers
) -> np.ndarray:
    images = buffers.take((steps, len(pictures), *layout.picture))
    for camera, picture in enumerate(pictures):
        images[:, camera] = picture
    return images


def _numbers(episode: Episode, signal: Signal) -> np.ndarray:
    """A signal's part of a joined vector, float32 [T, size]: whole numbers as they are."""
    values = _field(episode, signal.field, signal.dtype, signal.shape)
    numbers = values.reshape(len(values), -1).astype(np.float32)
    wrong = np.flatnonzero((numbers != values.reshape(numbers.shape)).any(axis=1))
    if len(wrong):
        expected = f"{signal.field}: whole numbers that float32 has"
        raise unusable(episode.path, expected, f"others at step {wrong[0]}", "E506")
    return numbers


def _values(episode: Episode, shape: SignalShape) -> Values:
    """What is an array of its own, in the dtype on the disk."""
    if shape == REWARD and "reward" not in episode.fields:
        raise unusable(episode.path, "reward, as in the other episodes", "none", "E503")
    if not shape.varies:
        fixed = _field(episode, shape.field, shape.dtype, shape.shape)
        return fixed.astype(shape.stored, copy=False)
    return _rows(episode, shape)


def _rows(episode: Episode, shape: SignalShape) -> Ragged:
    found = episode.fields.get(shape.field)
    sizes = "".join(f",{n}" for n in ("P", *shape.row))
    expected = f"{shape.field}: {shape.dtype}[T{sizes}]"
    if found is None:
        raise unusable(episode.path, expected, "no such field", "E504")
    right = (episode.num_steps, *shape.shape)
    if not isinstance(found, Ragged) or found.dtype != shape.dtype or found.shape != right:
        raise unusable(episode.path, expected, f"{found.dtype}{[*found.shape]}", "E505")
    if shape.dtype == "float32" and (row := _first_wrong(found.values)) is not None:
        step = int(np.searchsorted(found.offsets, row, side="right")) - 1
        raise _not_finite(episode, shape.field, step)
    return Ragged(found.values.astype(shape.stored, copy=False), found.offsets)


def _opening(episode: Episode, arm: str, grip: np.ndarray, layout: Layout) -> np.ndarray:
    """The gripper of the state: measured, or the command of the tick before (0, open, at first)."""
    field = f"grip_q_{arm}"
    if layout.measured_grip != (field in episode.fields):
        there = (f"{field}, as in the other episodes", "none")
        not_there = (f"no {field}, as in the other episodes", "one")
        raise unusable(episode.path, *(there if layout.measured_grip else not_there), "E503")
    if layout.measured_grip:
        return _field(episode, field, "float32", ())
    return np.concatenate([np.zeros(1, np.float32), grip[:-1]])


def _field(episode: Episode, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = f"{name}: {dtype}[T{''.join(f',{n}' for n in shape)}]"
    array = episode.fields.get(name)
    if array is None:
        raise unusable(episode.path, expected, "no such field", "E504")
    if not isinstance(array, np.ndarray):
        raise unusable(episode.path, expected, "steps of different lengths", "E505")
    if array.dtype != dtype or array.shape != (episode.num_steps, *shape):
        raise unusable(episode.path, expected, f"{array.dtype}{[*array.shape]}", "E505")
    if array.dtype.kind == "f" and (row := _first_wrong(array)) is not None:
        raise _not_finite(episode, name, row)
    return array


def _first_wrong(rows: np.ndarray) -> int | None:
    """The first row with a number that is not finite."""
    finite = np.isfinite(rows)
    if finite.all():
        return None
    return int(np.flatnonzero(~finite.reshape(len(rows), -1).all(axis=1))[0])


def _not_finite(episode: Episode, name: str, step: int) -> EpisodeError:
    return unusable(episode.path, f"{name}: finite numbers", f"others at step {step}", "E506")

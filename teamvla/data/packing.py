"""One episode as the cache stores it: pictures side by side, state and actions joined.

Fields that neither the cameras nor the arms of the contract name, and those whose length
varies from step to step, are not in the cache: they stay in the episode's file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.cache_codecs import Pictures, encode_jpeg
from teamvla.data.cache_shards import RowShape, Stored, pictures_crc
from teamvla.data.manifest import unusable
from teamvla.data.npz import Episode

#: statistics of pictures are of every so many steps, and there of every so many lines
EVERY = {"steps": 4, "lines": 8}


@dataclass(frozen=True)
class Layout:
    """Which fields make up the cache's rows; equal in all episodes of an index."""

    cameras: tuple[str, ...]
    picture: tuple[int, ...]  # height, width, channels
    arms: tuple[str, ...]
    joints: tuple[int, ...]  # of each arm, without the gripper
    measured_grip: bool  # whether grip_q_* is recorded; else state has the previous command

    @classmethod
    def of(cls, episode: Episode, contract: Contract | None) -> Layout:
        """What the contract promises; without one, what a two-arm episode shows."""
        shapes = {name: field.shape[1:] for name, field in episode.fields.items()}
        if contract is None:
            cameras: tuple[str, ...] = ("rgb_a", "rgb_b")
            arms: tuple[str, ...] = ("a", "b")
            pictures = {shapes.get(camera, ()) for camera in cameras}
            joints = tuple(sum(shapes.get(f"q_{arm}", ())) for arm in arms)
        else:
            cameras = tuple(camera.field for camera in contract.cameras)
            arms = tuple(arm.name for arm in contract.arms)
            pictures = {(camera.height, camera.width, 3) for camera in contract.cameras}
            joints = tuple(arm.num_joints for arm in contract.arms)
        if len(pictures) != 1:
            got = ", ".join(map(str, sorted(pictures))) or "no camera"
            raise unusable(episode.path, "cameras of one size", got, "E502")
        measured = all(f"grip_q_{arm}" in shapes for arm in arms)
        return cls(cameras, pictures.pop(), arms, joints, measured)

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Layout:
        """The layout that :meth:`to_dict` wrote."""
        fixed: dict[str, Any] = {k: tuple(v) for k, v in data.items() if k != "measured_grip"}
        return cls(**fixed, measured_grip=bool(data["measured_grip"]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def action_dim(self) -> int:
        """Length of the joined vectors: each arm's joints and its gripper."""
        return sum(count + 1 for count in self.joints)

    def columns(self, joint: str, gripper: str) -> list[str]:
        """What stands where in a joined vector, as in ``q_a[0]``, of fields of these names."""
        names: list[str] = []
        for arm, joints in zip(self.arms, self.joints, strict=True):
            names += [f"{joint}_{arm}[{number}]" for number in range(joints)]
            names.append(f"{gripper}_{arm}")
        return names

    def rows(self, max_chunk: int, codec: str) -> RowShape:
        """The rows of a cache of this layout."""
        dim = self.action_dim
        return RowShape(len(self.cameras), self.picture, dim, dim, max_chunk, codec)


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


def store(packed: Packed, digest: str, jpeg_quality: int | None) -> Stored:
    """The form in which a shard takes an episode; JPEG if a quality is given."""
    images = packed.images
    pictures = Pictures(images) if jpeg_quality is None else encode_jpeg(images, jpeg_quality)
    return Stored(
        digest,
        pictures,
        pictures_crc(pictures),
        packed.state,
        packed.actions,
        packed.instructions,
        _pixel_sums(images[:: EVERY["steps"], :, :: EVERY["lines"]]),
    )


def _pixel_sums(images: np.ndarray) -> np.ndarray:
    """Number, sum and sum of squares of uint8 [T,V,h,w,C]: float64 [V,3,C], exact."""
    cameras, colours = images.shape[1], images.shape[-1]
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
    return Packed(
        _side_by_side(pictures, buffers or Buffers()),
        np.concatenate(measured, axis=1),
        np.concatenate(actions, axis=1),
        [str(text) for text in episode.fields["instruction"]],
    )


def _side_by_side(pictures: list[np.ndarray], buffers: Buffers) -> np.ndarray:
    images = buffers.take((len(pictures[0]), len(pictures), *pictures[0].shape[1:]))
    for camera, picture in enumerate(pictures):
        images[:, camera] = picture
    return images


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
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        step = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise unusable(episode.path, f"{name}: finite numbers", f"others at step {step}", "E506")
    return array

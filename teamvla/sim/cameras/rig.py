"""The cameras of an observation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.cameras.opengl import GlRenderer
from teamvla.sim.cameras.rays import Capture, Picture, RayRenderer, Simulated
from teamvla.sim.cameras.segments import Segments
from teamvla.sim.scene import CAMERA_FIELDS, TOP_FIELD, WRIST_FIELDS
from teamvla.sim.tasks.base import CameraConfig


class Renderer(Protocol):
    """Makes pictures of a world's present state."""

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""

    def capture(self, camera: str) -> Capture:
        """Picture, depth and geoms."""

    def close(self) -> None:
        """Give back what the renderer holds."""


def make_renderer(
    world: Simulated, kind: str, height: int, width: int, shadows: bool, samples: int = 1
) -> Renderer:
    """The renderer called ``kind``: ``ray`` or ``gl``.

    Raises:
        MissingDependencyError: there is no OpenGL here, and it is asked for.
    """
    if kind == "gl":
        return GlRenderer(world, height, width, shadows)
    return RayRenderer(world, height, width, shadows, samples)


class CameraRig:
    """The cameras of an observation.

    A camera's picture is its field, ``rgb_X``; its depth and what its pixels show, where the
    settings ask for them, are ``depth_X``, float32[H, W] m along the optical axis with inf
    where nothing answers, and ``seg_X``, uint8[H, W], the number of a segment.

    Attributes:
        colour: fields of the pictures in colour, in the contract's order.
        segments: names of the numbers in ``seg_X``.
    """

    def __init__(self, world: Simulated, config: CameraConfig) -> None:
        self._world, self._config = world, config
        self._renderer = make_renderer(
            world, config.renderer, config.height, config.width, config.shadows
        )
        self.colour = camera_fields(config)
        self.segments = Segments(world.model)

    def spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """What :meth:`observe` gives, by field."""
        shape = (self._config.height, self._config.width)
        spaces: dict[str, gymnasium.Space[Any]] = {
            field: gymnasium.spaces.Box(0, 255, (*shape, 3), np.uint8) for field in self.colour
        }
        for field in self.colour if self._config.depth else ():
            spaces[_beside("depth", field)] = gymnasium.spaces.Box(0.0, np.inf, shape, np.float32)
        for field in self.colour if self._config.segmentation else ():
            spaces[_beside("seg", field)] = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        return spaces

    def observe(self) -> dict[str, NDArray[Any]]:
        """The pictures of the world's present state, by field."""
        if not (self._config.depth or self._config.segmentation):
            return {field: self._renderer.render(field) for field in self.colour}
        return dict(entry for field in self.colour for entry in self._captured(field))

    def close(self) -> None:
        """Give back what the renderer holds."""
        self._renderer.close()

    def _captured(self, field: str) -> Iterator[tuple[str, NDArray[Any]]]:
        capture = self._renderer.capture(field)
        yield field, capture.rgb
        if self._config.depth:
            yield _beside("depth", field), capture.depth
        if self._config.segmentation:
            yield _beside("seg", field), self.segments.of(self._world.model, capture.geoms)


def camera_fields(config: CameraConfig) -> Sequence[str]:
    """The fields of the pictures in colour, in the contract's order."""
    wrists = WRIST_FIELDS if config.wrist else ()
    return (*CAMERA_FIELDS, *wrists, *((TOP_FIELD,) if config.top else ()))


def _beside(kind: str, field: str) -> str:
    return f"{kind}_{field.removeprefix('rgb_')}"

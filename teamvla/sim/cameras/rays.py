"""A camera made of rays: no graphics library, the same picture to the bit everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.cameras.shading import (
    WHITE,
    Floats,
    Lamp,
    backdrop,
    dot,
    lamps,
    palette,
    see_through,
)

Picture = NDArray[np.uint8]
FloatArray = NDArray[np.float64]
_VISIBLE = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # geom groups, as MuJoCo's viewer has it
_HIDDEN_GROUP = 3
_SHADE = 0.35  # of the direct light that is left in a shadow
_SKIN_M = 2e-3  # a lamp's ray that ends this close to a surface has reached it
_REACH_M = 10.0


class Simulated(Protocol):
    """What a camera looks at. Both may be replaced between two pictures."""

    model: Any
    data: Any


@dataclass(frozen=True)
class Capture:
    """What one cast of rays tells.

    Attributes:
        rgb: the picture, uint8[H, W, 3].
        depth: along the optical axis, as MuJoCo's and ROS's depth pictures have it, m,
            float32[H, W]; inf where nothing answers.
        geoms: ids of the geoms in the model, int32[H, W]; -1 where nothing answers.
    """

    rgb: Picture
    depth: Floats
    geoms: NDArray[np.int32]


@dataclass(frozen=True)
class _Aim:
    """The rays of a camera that is turned in one way."""

    key: tuple[float, bytes]
    rays: FloatArray  # [N, 3], unit length, world frame
    columns: Floats  # the same, [3, N]
    backdrop: Floats  # [3, N]


class RayRenderer:
    """One ray per pixel, Lambert shading, hard shadows by second rays from the lights.

    Pictures are the same to the bit in every process: apart from MuJoCo's ray caster only
    element-by-element arithmetic is used. Geoms of the groups 0 to 2 are seen, meshes
    included; textures are not. A geom is opaque or, with an alpha below 0.5, not there at all:
    it casts no shadow either.

    Args:
        world: the scene to look at.
        height: rows of a picture.
        width: columns of a picture.
        shadows: cast shadows; nearly doubles the cost.
        samples: rays along each side of a pixel, averaged; the cost grows with its square.
        reach: how far a ray goes, m.
    """

    def __init__(
        self,
        world: Simulated,
        height: int,
        width: int,
        shadows: bool = False,
        samples: int = 1,
        *,
        reach: float = _REACH_M,
    ) -> None:
        self._world, self._reach = world, reach
        self._shape = (height, width, samples)
        self._shadows = shadows
        count = height * width * samples**2
        self._geoms = np.empty(count, np.int32)
        self._distances = np.empty(count)
        self._normals = np.empty((count, 3))
        self._blockers = np.empty(count, np.int32)
        self._blocked_at = np.empty(count)
        self._far, self._lengths = np.empty(count, np.float32), np.empty(count, np.float32)
        self._light = np.empty(count, np.float32)
        # Three rows each: arithmetic along rows of N is several times that along rows of 3.
        self._facing, self._beams, self._spare, self._colours = (
            np.empty((3, count), np.float32) for _ in range(4)
        )
        self._shadow_rays = np.empty((count, 3))
        self._aims: dict[str, _Aim] = {}

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""
        return self._develop(self._look(camera))

    def capture(self, camera: str) -> Capture:
        """Picture, depth and geoms from the same rays.

        With several rays a pixel, depth and geoms are those of one ray near its middle.
        """
        picture = self.render(camera)
        ahead = self._ahead(camera) * self._distances
        ahead[self._geoms < 0] = np.inf
        return Capture(picture, self._middle(ahead).astype(np.float32), self._middle(self._geoms))

    def close(self) -> None:
        """Nothing is held."""

    def _look(self, camera: str) -> Floats:
        """Colours 0..255 of all rays, float32[3, N]."""
        self._model, self._data = self._world.model, self._world.data
        view = self._data.camera(camera)
        origin, matrix = view.xpos.copy(), view.xmat.reshape(3, 3)
        fovy = math.radians(float(self._model.camera(camera).fovy[0]))
        aim = self._aim(camera, fovy, matrix)
        with self._hidden(see_through(self._model)):
            with self._hidden(self._beside(origin, matrix, fovy)):
                self._cast(origin, aim.rays, self._geoms, self._distances, self._normals)
            np.copyto(self._far, self._distances, casting="same_kind")
            self._illuminate(origin, aim)
        return self._colour(aim)

    def _aim(self, camera: str, fovy: float, matrix: FloatArray) -> _Aim:
        """The camera's rays; those of a camera that stands still are kept."""
        key = (fovy, matrix.tobytes())
        known = self._aims.get(camera)
        if known is None or known.key != key:
            rays = _turned(self._grid(fovy), matrix)
            columns = rays.astype(np.float32)
            known = _Aim(key, np.ascontiguousarray(rays.T), columns, backdrop(columns[2]))
            self._aims[camera] = known
        return known

    def _grid(self, fovy: float) -> tuple[FloatArray, FloatArray]:
        """How far right and up the rays go per metre ahead, float64[W] and float64[H]."""
        height, width, samples = self._shape
        rows, columns = height * samples, width * samples
        focal = 0.5 * rows / math.tan(fovy / 2)
        right = (np.arange(columns) + 0.5 - columns / 2) / focal
        up = -(np.arange(rows) + 0.5 - rows / 2) / focal
        return np.asarray(right, np.float64), np.asarray(up, np.float64)

    def _ahead(self, camera: str) -> FloatArray:
        """Share of a ray's length that goes along the optical axis, float64[N]."""
        right, up = self._grid(self._aims[camera].key[0])
        return np.asarray(1.0 / _lengths(right, up)).reshape(-1)

    def _beside(self, origin: FloatArray, matrix: FloatArray, fovy: float) -> NDArray[np.bool_]:
        """Geoms whose bounding spheres lie beside the picture. Without them it stays the same,
        and casting it takes a quarter less time."""
        height, width, _ = self._shape
        centres = (self._data.geom_xpos - origin) @ matrix
        reach = self._model.geom_rbound
        edge = math.tan(fovy / 2)
        halves = np.arctan((width / height * edge, edge))
        off_edges = np.abs(centres[:, :2]) * np.cos(halves) + centres[:, 2:] * np.sin(halves)
        return np.asarray((off_edges.max(axis=1) > reach) & (reach > 0))

    @contextmanager
    def _hidden(self, geoms: NDArray[np.bool_]) -> Iterator[None]:
        """Let no ray meet these geoms while this lasts."""
        groups = self._model.geom_group
        before = groups.copy()
        groups[geoms] = _HIDDEN_GROUP
        try:
            yield
        finally:
            groups[:] = before

    def _cast(
        self,
        origin: FloatArray,
        rays: FloatArray,
        geoms: NDArray[np.int32],
        distances: FloatArray,
        normals: FloatArray | None = None,
        reach: float | None = None,
    ) -> None:
        flat = None if normals is None else normals.reshape(-1)
        mujoco.mj_multiRay(
            self._model,
            self._data,
            origin,
            rays.reshape(-1),
            _VISIBLE,
            True,
            -1,
            geoms,
            distances,
            flat,
            len(rays),
            self._reach if reach is None else reach,
        )

    def _illuminate(self, origin: FloatArray, aim: _Aim) -> None:
        """Brightness at every hit: ambient, from the camera, from the lamps."""
        headlight = self._model.vis.headlight
        np.copyto(self._facing, self._normals.T, casting="same_kind")
        facing = dot(self._facing, aim.columns, self._spare)
        np.minimum(facing, 0.0, out=facing)
        np.multiply(facing, -headlight.diffuse[0], out=self._light)
        self._light += headlight.ambient[0]
        for lamp in lamps(self._model, self._data):
            self._shine(lamp, origin.astype(np.float32), aim)

    def _shine(self, lamp: Lamp, origin: Floats, aim: _Aim) -> None:
        """Add the light of one lamp."""
        beams, lengths = self._beams, self._lengths
        np.multiply(aim.columns, self._far, out=beams)
        np.subtract((lamp.position - origin)[:, None], beams, out=beams)
        np.sqrt(dot(beams, beams, self._spare), out=lengths)
        direct = dot(self._facing, beams, self._spare)
        direct /= lengths
        np.maximum(direct, 0.0, out=direct)
        direct *= np.float32(lamp.strength)
        if self._shadows and lamp.casts_shadow:
            direct[self._hidden_from(lamp)] *= np.float32(_SHADE)
        self._light += direct

    def _hidden_from(self, lamp: Lamp) -> NDArray[np.bool_]:
        """Which hits the lamp's light does not reach."""
        np.divide(self._beams, -self._lengths, out=self._shadow_rays.T)
        position, reach = lamp.position.astype(np.float64), 1.0 + float(self._lengths.max())
        blockers, blocked_at = self._blockers, self._blocked_at
        self._cast(position, self._shadow_rays, blockers, blocked_at, reach=reach)
        hidden = blocked_at < self._lengths - np.float32(_SKIN_M)
        hidden &= blockers >= 0
        return np.asarray(hidden)

    def _colour(self, aim: _Aim) -> Floats:
        """Paint, light and the backdrop."""
        colours, chosen = self._colours, self._geoms.astype(np.intp)
        for channel, shades in enumerate(palette(self._model)):
            np.take(shades, chosen, out=colours[channel], mode="wrap")  # -1: the last one
        colours *= self._light
        missed = self._geoms < 0
        if missed.any():
            np.copyto(colours, aim.backdrop, where=missed)
        return colours

    def _middle(self, values: NDArray[Any]) -> NDArray[Any]:
        """One value of every pixel, [H, W]."""
        height, width, samples = self._shape
        middle = samples // 2
        return values.reshape(height, samples, width, samples)[:, middle, :, middle].copy()

    def _develop(self, colours: Floats) -> Picture:
        height, width, samples = self._shape
        np.minimum(colours, WHITE, out=colours)
        if samples > 1:
            tiles = colours.reshape(3, height, samples, width, samples)
            colours = tiles.mean(axis=(2, 4)).reshape(3, -1)
        colours += np.float32(0.5)
        picture = np.empty((height * width, 3), np.uint8)
        for channel, levels in enumerate(colours.astype(np.uint8)):  # three times as fast as .T
            picture[:, channel] = levels
        return picture.reshape(height, width, 3)


def _lengths(right: FloatArray, up: FloatArray) -> FloatArray:
    """Of the rays that go 1 m ahead, float64[H, W]."""
    return np.asarray(np.sqrt(1.0 + right**2 + (up**2)[:, None]))


def _turned(grid: tuple[FloatArray, FloatArray], turn: FloatArray) -> FloatArray:
    """Unit rays in the world's frame, float64[3, N].

    The camera looks along its -z axis; x is right and y is up. Each ray is the sum of a
    part of its column and one of its row. Spelled out, because BLAS may round differently
    by the number of threads.
    """
    right, up = grid
    by_column = turn[:, 0, None] * right
    by_row = turn[:, 1, None] * up - turn[:, 2, None]
    rays = by_column[:, None, :] + by_row[:, :, None]
    rays /= _lengths(right, up)
    return rays.reshape(3, -1)

"""Cameras: a ray caster that needs no graphics library, and OpenGL as an option."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError
from teamvla.sim.scene import CAMERA_FIELDS, GROUND, SKY
from teamvla.sim.tasks.base import CameraConfig
from teamvla.sim.world import FloatArray, World

Picture = NDArray[np.uint8]
_FARTHEST_M = 10.0
_VISIBLE = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # geom groups, as MuJoCo's viewer has it
_HIDDEN_GROUP = 3
_SHADE = 0.35  # of the direct light that is left in a shadow


class Renderer(Protocol):
    """Makes pictures of a world's present state."""

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""

    def close(self) -> None:
        """Give back what the renderer holds."""


def make_renderer(
    world: World, kind: str, height: int, width: int, shadows: bool, samples: int = 1
) -> Renderer:
    """The renderer called ``kind``: ``ray`` or ``gl``."""
    if kind == "gl":
        return GlRenderer(world, height, width, shadows)
    return RayRenderer(world, height, width, shadows, samples)


class CameraRig:
    """The cameras of an observation.

    Attributes:
        colour: fields of the pictures in colour, in the contract's order.
    """

    def __init__(self, world: World, config: CameraConfig) -> None:
        self._config = config
        self._renderer = make_renderer(
            world, config.renderer, config.height, config.width, config.shadows
        )
        self.colour = CAMERA_FIELDS

    def spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """What :meth:`observe` gives, by field."""
        shape = (self._config.height, self._config.width, 3)
        return {field: gymnasium.spaces.Box(0, 255, shape, np.uint8) for field in self.colour}

    def observe(self) -> dict[str, NDArray[Any]]:
        """The pictures of the world's present state, by field."""
        return {field: self._renderer.render(field) for field in self.colour}

    def close(self) -> None:
        """Give back what the renderer holds."""
        self._renderer.close()


class RayRenderer:
    """One ray per pixel, Lambert shading, hard shadows by a second ray from the light.

    Pictures are the same to the bit in every process: apart from MuJoCo's ray caster only
    element-by-element arithmetic is used.

    Args:
        world: the scene to look at.
        height: rows of a picture.
        width: columns of a picture.
        shadows: cast shadows; nearly doubles the cost.
        samples: rays along each side of a pixel, averaged; the cost grows with its square.
    """

    def __init__(
        self, world: World, height: int, width: int, shadows: bool = False, samples: int = 1
    ) -> None:
        self._world = world
        self._shape = (height, width, samples)
        self._shadows = shadows
        self._count = height * width * samples**2
        self._geoms = np.empty(self._count, np.int32)
        self._distances = np.empty(self._count)
        self._normals = np.empty((self._count, 3))
        self._blockers = np.empty(self._count, np.int32)
        self._blocked_at = np.empty(self._count)
        self._pinholes: dict[float, FloatArray] = {}

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""
        self._model, self._data = self._world.model, self._world.data
        view = self._data.camera(camera)
        origin, matrix = view.xpos.copy(), view.xmat.reshape(3, 3)
        fovy = math.radians(float(self._model.camera(camera).fovy[0]))
        rays = _turn(self._pinhole(fovy), matrix)
        with self._only_in_sight(origin, matrix, fovy):
            self._cast(origin, rays, self._geoms, self._distances, self._normals)
        colours = self._model.geom_rgba[self._geoms, :3]
        colours *= self._light(origin, rays)[:, None]
        missed = self._geoms < 0
        colours[missed] = _backdrop(rays[missed])
        return self._develop(colours)

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def _only_in_sight(self, origin: FloatArray, matrix: FloatArray, fovy: float) -> Iterator[None]:
        """Leave out geoms whose bounding spheres lie beside the picture: it stays the same,
        and casting it takes a quarter less time."""
        height, width, _ = self._shape
        centres = (self._data.geom_xpos - origin) @ matrix
        reach, groups = self._model.geom_rbound, self._model.geom_group
        beside = np.zeros(len(groups), bool)
        for axis, slope in ((0, width / height), (1, 1.0)):
            half = math.atan(slope * math.tan(fovy / 2))
            behind_edge = centres[:, 2] * math.sin(half)
            beside |= np.abs(centres[:, axis]) * math.cos(half) + behind_edge > reach
        before = groups.copy()
        groups[beside & (reach > 0)] = _HIDDEN_GROUP
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
        normals: FloatArray | None,
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
            _FARTHEST_M,
        )

    def _light(self, origin: FloatArray, rays: FloatArray) -> FloatArray:
        """Brightness at every hit: ambient, from the camera, from the sun."""
        headlight = self._model.vis.headlight
        sun = self._data.light_xpos[0]
        beams = sun - (origin + rays * self._distances[:, None])
        lengths = np.sqrt(_dot(beams, beams))
        direct = np.maximum(_dot(self._normals, beams) / lengths, 0.0)
        if self._shadows:
            self._shade(direct, sun.copy(), beams, lengths)
        facing = np.maximum(-_dot(self._normals, rays), 0.0)
        strength = float(self._model.light_diffuse[0, 0])
        ambient, front = float(headlight.ambient[0]), float(headlight.diffuse[0])
        return ambient + strength * direct + front * facing

    def _shade(
        self, direct: FloatArray, sun: FloatArray, beams: FloatArray, lengths: FloatArray
    ) -> None:
        self._cast(sun, -beams / lengths[:, None], self._blockers, self._blocked_at, None)
        hidden = (self._blockers >= 0) & (self._blocked_at < lengths - 2e-3)
        direct[hidden] *= _SHADE

    def _pinhole(self, fovy: float) -> FloatArray:
        """Directions of all rays in the camera's frame (x right, y up, -z forward)."""
        if fovy not in self._pinholes:
            height, width, samples = self._shape
            rows, columns = height * samples, width * samples
            focal = 0.5 * rows / math.tan(fovy / 2)
            right = (np.arange(columns) + 0.5 - columns / 2) / focal
            up = -(np.arange(rows) + 0.5 - rows / 2) / focal
            grid = np.stack([*np.meshgrid(right, up), -np.ones((rows, columns))], axis=-1)
            rays = grid.reshape(-1, 3)
            self._pinholes[fovy] = rays / np.sqrt(_dot(rays, rays))[:, None]
        return self._pinholes[fovy]

    def _develop(self, colours: FloatArray) -> Picture:
        height, width, samples = self._shape
        if samples > 1:
            tiles = colours.reshape(height, samples, width, samples, 3)
            colours = tiles.mean(axis=(1, 3))
        levels = np.minimum(colours, 1.0) * 255.0 + 0.5
        return levels.astype(np.uint8).reshape(height, width, 3)


class GlRenderer:
    """MuJoCo's OpenGL renderer.

    Raises:
        SimulationError: there is no OpenGL here to render with.
    """

    def __init__(self, world: World, height: int, width: int, shadows: bool = False) -> None:
        self._world, self._size, self._shadows = world, (height, width), shadows
        self._open()

    def _open(self) -> None:
        self._model = self._world.model
        self._renderer: Any = _gl_renderer(self._model, *self._size)
        flags = self._renderer.scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""
        if self._model is not self._world.model:  # a new episode has a new scene
            self.close()
            self._open()
        self._renderer.update_scene(self._world.data, camera)
        return np.asarray(self._renderer.render(), np.uint8).copy()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def _gl_renderer(model: Any, height: int, width: int) -> Any:
    try:
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # each GL backend fails in a way of its own
        raise SimulationError(
            "renderer 'gl'",
            "a working OpenGL",
            f"{type(error).__name__} with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}",
            "Install EGL (libegl1) or OSMesa and set MUJOCO_GL=egl or osmesa, "
            "or use task.camera.renderer=ray, which needs neither",
        ) from error


def _turn(rays: FloatArray, turn: FloatArray) -> FloatArray:
    """Rays in the world's frame. Spelled out, because BLAS may round differently by threads."""
    turned = rays[:, 0:1] * turn[:, 0] + rays[:, 1:2] * turn[:, 1] + rays[:, 2:3] * turn[:, 2]
    return np.ascontiguousarray(turned)


def _dot(left: FloatArray, right: FloatArray) -> FloatArray:
    product = left * right
    return product[:, 0] + product[:, 1] + product[:, 2]


def _backdrop(rays: FloatArray) -> FloatArray:
    """Colours of rays that hit nothing: ground below, sky above, a soft horizon between."""
    share = np.clip(0.7 + 1.1 * rays[:, 2:3], 0.0, 1.0)
    ground, sky = np.array(GROUND), np.array(SKY)
    return np.asarray(ground + share * (sky - ground))

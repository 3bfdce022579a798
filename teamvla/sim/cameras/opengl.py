"""OpenGL as an option: MuJoCo's own rasteriser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import MissingDependencyError
from teamvla.sim.cameras.rays import Capture, Picture, Simulated
from teamvla.sim.cameras.shading import Floats
from teamvla.sim.graphics import OPENGL, without_a_display

_SHADOW_MAP = 1024  # pixels along a side; MuJoCo's own 4096 take a second on a processor
_MOST_GEOMS = 10_000
_GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
_FONT = mujoco.mjtFontScale.mjFONTSCALE_50.value  # needed by no picture; the smallest
#: What OpenGL holds of a model; a scene with the same can be drawn with the same context.
_HELD = (
    "tex_data",
    "tex_type",
    "mesh_vert",
    "mesh_normal",
    "mesh_face",
    "hfield_data",
    "skin_vert",
)


class GlRenderer:
    """MuJoCo's OpenGL renderer.

    Making its context takes longer than many pictures. So it is kept from one scene to the
    next, as long as meshes and textures are the same.

    Args:
        world: the scene to look at.
        height: rows of a picture.
        width: columns of a picture.
        shadows: draw shadows; on a processor that costs several times the picture.

    Raises:
        MissingDependencyError: there is no OpenGL here to render with.
    """

    def __init__(self, world: Simulated, height: int, width: int, shadows: bool = False) -> None:
        self._world, self._shape, self._shadows = world, (height, width), shadows
        self._frame = mujoco.MjrRect(0, 0, width, height)
        self._model: Any = None
        self._held: list[NDArray[Any]] = []
        self._context: Any = None
        self._gl: Any = _gl_context(width, height)
        try:
            with without_a_display():
                self._follow()
        except Exception as error:  # each GL backend fails in a way of its own
            self._gl.free()
            raise _unusable(error) from error

    def render(self, camera: str) -> Picture:
        """What the named camera sees, uint8[height, width, 3]."""
        picture = np.empty((*self._shape, 3), np.uint8)
        self._draw(camera, picture, None)
        return np.ascontiguousarray(picture[::-1])

    def capture(self, camera: str) -> Capture:
        """Picture, depth and geoms, as :meth:`RayRenderer.capture` gives them."""
        picture = self.render(camera)
        colours, nearness = np.empty((*self._shape, 3), np.uint8), np.empty(self._shape, np.float32)
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            self._draw(camera, colours, nearness)
        finally:
            flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        geoms = self._geoms(colours[::-1])
        depth = self._metres(nearness[::-1])
        depth[geoms < 0] = np.inf
        return Capture(picture, depth, geoms)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._context is not None:
            self._context.free()
            self._context = None
        self._gl.free()

    def _follow(self) -> None:
        """Take over the world's present scene."""
        model = self._world.model
        self._gl.make_current()
        held = [getattr(model, name).copy() for name in _HELD]
        if self._context is None or not all(map(np.array_equal, held, self._held)):
            self._context, self._held = self._new_context(model), held
        self._scene = mujoco.MjvScene(model, _MOST_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = self._shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._camera, self._options = mujoco.MjvCamera(), mujoco.MjvOption()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._model = model

    def _new_context(self, model: Any) -> Any:
        if self._context is not None:
            self._context.free()
        with _sizes(model.vis, *self._shape, _SHADOW_MAP if self._shadows else 0):
            context = mujoco.MjrContext(model, _FONT)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        return context

    def _draw(self, camera: str, colours: Picture, nearness: Floats | None) -> None:
        if self._model is not self._world.model:  # a new episode has a new scene
            self._follow()
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model,
            self._world.data,
            self._options,
            None,
            self._camera,
            everything,
            self._scene,
        )
        mujoco.mjr_render(self._frame, self._scene, self._context)
        mujoco.mjr_readPixels(colours, nearness, self._frame, self._context)

    def _geoms(self, colours: Picture) -> NDArray[np.int32]:
        """Ids of geoms from the colours that stand for parts of the scene."""
        parts = np.full(self._scene.ngeom + 1, -1, np.int32)
        for part in self._scene.geoms[: self._scene.ngeom]:
            if part.segid >= 0 and int(part.objtype) == _GEOM:
                parts[part.segid + 1] = part.objid
        levels = colours.astype(np.int32)
        return np.asarray(parts[levels[..., 0] + 256 * levels[..., 1] + 65536 * levels[..., 2]])

    def _metres(self, nearness: Floats) -> Floats:
        """Depth along the optical axis from a depth buffer that is 0 far away and 1 near."""
        reach = self._model.vis.map
        near, far = (float(end) * self._model.stat.extent for end in (reach.znear, reach.zfar))
        inverse = 1.0 / far + nearness.astype(np.float64) * (1.0 / near - 1.0 / far)
        return np.asarray(1.0 / inverse, np.float32)


@contextmanager
def _sizes(visual: Any, height: int, width: int, shadow_map: int) -> Iterator[None]:
    """Buffers no larger than they need be; the model may be somebody else's."""
    sizes, quality = visual.global_, visual.quality
    before = sizes.offheight, sizes.offwidth, quality.shadowsize
    sizes.offheight, sizes.offwidth, quality.shadowsize = height, width, shadow_map
    try:
        yield
    finally:
        sizes.offheight, sizes.offwidth, quality.shadowsize = before


def _gl_context(width: int, height: int) -> Any:
    try:
        with without_a_display():
            return mujoco.GLContext(width, height)
    except Exception as error:  # each GL backend fails in a way of its own
        raise _unusable(error) from error


def _unusable(error: Exception) -> MissingDependencyError:
    backend = os.environ.get("MUJOCO_GL", "")
    got = f"{type(error).__name__} with MUJOCO_GL={backend!r}"
    mend = f"{OPENGL}; or use task.camera.renderer=ray, which needs neither"
    return MissingDependencyError("task.camera.renderer=gl", "a working OpenGL", got, mend)

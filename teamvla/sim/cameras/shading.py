"""From what rays hit to colours: lamps, paint and the backdrop behind everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.scene import GROUND, SKY

Floats = NDArray[np.float32]
_DEFAULT_RGBA = 0.5  # a geom of this grey has the colour of its material, as in MuJoCo
_SEE_THROUGH = 0.5  # a geom that is less opaque is not seen
_DIRECTIONAL = int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
_FAR_AWAY = 10.0  # where a directional light is put, in extents of the scene


#: The brightest level of a picture.
WHITE = np.float32(255.0)


@dataclass(frozen=True)
class Lamp:
    """A light of the model: where it is, m, and its brightness."""

    position: Floats
    strength: float
    casts_shadow: bool


def lamps(model: Any, data: Any) -> list[Lamp]:
    """The model's lights that are on.

    Spots shine to all sides and nothing dims with distance; a directional light becomes a
    lamp far away.
    """
    lit = []
    for index in np.flatnonzero(model.light_active):
        position = data.light_xpos[index]
        if int(model.light_type[index]) == _DIRECTIONAL:
            away = _FAR_AWAY * model.stat.extent * data.light_xdir[index]
            position = model.stat.center - away
        strength = float(model.light_diffuse[index, 0])
        lit.append(Lamp(position.astype(np.float32), strength, bool(model.light_castshadow[index])))
    return lit


def palette(model: Any) -> Floats:
    """Colours of all geoms, 0..255, float32[3, G + 1]; the last one is for rays that miss."""
    rgba = _rgba(model)
    colours = np.zeros((3, len(rgba) + 1), np.float32)
    colours[:, :-1] = WHITE * rgba[:, :3].T
    return colours


def see_through(model: Any) -> NDArray[np.bool_]:
    """Which geoms are more transparent than not, bool[G]: light goes through them."""
    return np.asarray(_rgba(model)[:, 3] < _SEE_THROUGH)


def _rgba(model: Any) -> NDArray[Any]:
    """Colours and opacities of all geoms, 0..1, [G, 4].

    As MuJoCo has it, a geom's own colour goes before that of its material, unless it is the
    default grey. Textures are left out.
    """
    rgba: NDArray[Any] = model.geom_rgba
    if model.nmat:
        material = model.geom_matid
        plain = (material >= 0) & (rgba == _DEFAULT_RGBA)[:, :3].all(axis=1) & (rgba[:, 3] == 1)
        rgba = np.where(plain[:, None], model.mat_rgba[material], rgba)
    return rgba


def backdrop(rise: Floats) -> Floats:
    """Ground below, sky above, a soft horizon between, for rays that hit nothing.

    Colours 0..255, float32[3, N], for the rays' upward components, float32[N].
    """
    share = np.clip(np.float32(0.7) + np.float32(1.1) * rise, 0.0, 1.0)
    ground, sky = (WHITE * np.array(colour, np.float32)[:, None] for colour in (GROUND, SKY))
    return np.asarray(ground + share * (sky - ground))


def dot(left: Floats, right: Floats, spare: Floats) -> Floats:
    """Products of float32[3, N] columns, float32[N]; it lies in ``spare``, float32[3, N].

    Spelled out, because BLAS may round differently by the number of threads.
    """
    np.multiply(left, right, out=spare)
    result: Floats = spare[0]
    result += spare[1]
    result += spare[2]
    return result

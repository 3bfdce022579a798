"""Six cameras on the roof that together look all around.

One ray per pixel, like the two-arm scene's camera, with what a road needs besides: a reach of
hundreds of metres, painted ground, lamps, fog that thickens with distance, and darkness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import ground
from teamvla.sim.driving.noise import Stream, generator
from teamvla.sim.driving.rays import GROUND, NOTHING, Fan, Hits
from teamvla.sim.driving.roads import FloatArray
from teamvla.sim.driving.world import DrivingWorld

Picture = NDArray[np.uint8]
CAMERA_FIELDS = tuple(
    f"rgb_surround_{side}"
    for side in ("front", "front_left", "back_left", "back", "back_right", "front_right")
)
"""In the order of their directions, every 60 degrees to the left."""

REACH_M = 200.0
_VIEW_DEG = 60.0  # across a picture: the six meet without a gap
_SKY = np.array([[0.62, 0.76, 0.92], [0.86, 0.90, 0.94]])  # above, at the horizon
_NIGHT_SKY = np.array([0.012, 0.014, 0.022])
_FOG = np.array([0.72, 0.73, 0.74])
_BEAM_M, _BEAM_COSINE = 4.5, 0.90  # headlamps: reach of full light and half width
_GRAIN = 2.0 / 255.0  # of pictures in the dark
_DARK = 0.1  # ambient light below which it is night


class SurroundCameras:
    """Renders all six pictures from one fan of rays.

    Args:
        height: rows of a picture.
        width: columns of a picture.
        samples: rays along each side of a pixel, averaged.
    """

    def __init__(self, height: int, width: int, samples: int = 1) -> None:
        self._shape = (len(CAMERA_FIELDS), height, samples, width, samples)
        focal = 0.5 * width * samples / np.tan(np.deg2rad(_VIEW_DEG) / 2)
        left = (width * samples / 2 - np.arange(width * samples) - 0.5) / focal
        up = (height * samples / 2 - np.arange(height * samples) - 0.5) / focal
        sideways, upward = np.meshgrid(left, up)
        rays = np.stack([np.ones_like(sideways), sideways, upward], axis=-1).reshape(-1, 3)
        rays /= np.sqrt((rays**2).sum(axis=1))[:, None]
        turns = np.arange(len(CAMERA_FIELDS)) * (2 * np.pi / len(CAMERA_FIELDS))
        self._fan = Fan(np.concatenate([_turned(rays, turn) for turn in turns]))

    def observe(self, world: DrivingWorld, key: int, step: int) -> dict[str, Picture]:
        """What each camera sees, by field."""
        origin, heading = world.site("cameras"), float(world.vehicle.pose[2])
        model, data, but = world.model, world.data, world.ego_body
        colours = shade(world, self._fan.cast(model, data, origin, heading, REACH_M, but))
        pictures = np.empty_like(colours)
        pictures[self._fan.order] = colours
        pictures = pictures.reshape(*self._shape, 3)
        if self._shape[2] > 1:
            pictures = pictures.mean(axis=(2, 4), keepdims=True)
        if world.drawn["weather"][4] < _DARK:
            grain = generator(key, step, Stream.CAMERAS).standard_normal(pictures.shape, np.float32)
            pictures = pictures + _GRAIN * grain
        levels = np.clip(pictures, 0.0, 1.0) * 255.0 + 0.5
        found = levels.astype(np.uint8).reshape(self._shape[0], self._shape[1], self._shape[3], 3)
        return dict(zip(CAMERA_FIELDS, found, strict=True))


def shade(world: DrivingWorld, hits: Hits) -> FloatArray:
    """Colours of hits, float[N, 3] in 0..1: sun, sky light, headlamps, lamps of others, fog."""
    sun, strength, ambient = np.split(world.drawn["weather"][:5], [3, 4])
    missed = hits.geoms == NOTHING
    colours = _paint(world, hits)
    normals = hits.normals
    straight = normals[:, 0] * sun[0] + normals[:, 1] * sun[1] + normals[:, 2] * sun[2]
    light = np.maximum(straight, 0.0) * strength
    light += ambient * (0.8 + 0.2 * np.abs(normals[:, 2]))
    night = bool(ambient < _DARK)
    if night:
        light += _headlamps(world, hits)
    colours *= light[:, None]
    _add_lamps(world, hits, colours, night)
    colours[missed] = _NIGHT_SKY if night else _sky(hits.rays[missed, 2])
    if world.extinction:
        clear = np.exp(-world.extinction * np.minimum(hits.distances, REACH_M))[:, None]
        colours = colours * clear + _FOG * (1.0 - clear)
    return np.asarray(colours)


def _turned(rays: FloatArray, turn: float) -> FloatArray:
    cosine, sine = np.cos(turn), np.sin(turn)
    ahead, left = rays[:, 0], rays[:, 1]
    turned = [ahead * cosine - left * sine, ahead * sine + left * cosine, rays[:, 2]]
    return np.stack(turned, axis=-1)


def _sky(up: FloatArray) -> FloatArray:
    part = np.minimum(1.0, np.maximum(up, 0.0) * 2.0)[:, None]
    return np.asarray(_SKY[0] * part + _SKY[1] * (1.0 - part))


def _paint(world: DrivingWorld, hits: Hits) -> FloatArray:
    """Colours of what was hit, in white light."""
    low = np.flatnonzero(hits.geoms == GROUND)
    points = hits.origin[:2] + hits.rays[low, :2] * hits.distances[low, None]
    kinds = hits.geoms.copy()  # of paint: geoms, then surfaces of the ground
    kinds[low] = world.model.ngeom + ground.surfaces(points)
    palette = np.concatenate([world.model.geom_rgba[:, :3], ground.COLOURS])
    colours = np.take(palette.astype(np.float64), kinds, axis=0)
    _add_windows(world, hits, colours)
    return colours


def _add_windows(world: DrivingWorld, hits: Hits, colours: FloatArray) -> None:
    """Rows of windows on walls."""
    walls = np.flatnonzero(world.is_building[hits.geoms] & (hits.geoms >= 0)
                           & (np.abs(hits.normals[:, 2]) < 0.5))  # fmt: skip
    points = hits.origin + hits.rays[walls] * hits.distances[walls, None]
    facing_north = np.abs(hits.normals[walls, 1]) > 0.5
    along = np.where(facing_north, points[:, 0], points[:, 1])
    columns = np.abs(along / 2.6 % 1.0 - 0.5) < 0.28
    storeys = np.abs(points[:, 2] / 3.2 % 1.0 - 0.55) < 0.26
    panes = walls[columns & storeys]
    colours[panes] = 0.45 * colours[panes] + np.array([0.02, 0.05, 0.09])


def _add_lamps(world: DrivingWorld, hits: Hits, colours: FloatArray, night: bool) -> None:
    """Head and rear lamps of the traffic; at night they shine, but on a vehicle that broke down."""
    cars = np.flatnonzero(world.is_hull[hits.geoms] & (hits.geoms >= 0))
    geoms = hits.geoms[cars]
    points = hits.origin + hits.rays[cars] * hits.distances[cars, None]
    points -= world.data.geom_xpos[geoms]
    turn = world.data.geom_xmat[geoms]
    ahead = points[:, 0] * turn[:, 0] + points[:, 1] * turn[:, 3]
    left = np.abs(points[:, 0] * turn[:, 1] + points[:, 1] * turn[:, 4])
    half = world.model.geom_size[geoms, 0]
    lamp = (np.abs(ahead) > half - 0.02) & (left > 0.5) & (left < 0.85) & (points[:, 2] > -0.05)
    lit = world.lit[geoms]
    glow = np.where((ahead > 0)[:, None], (1.0, 0.97, 0.85), (0.85, 0.06, 0.05))
    if night:
        colours[cars[lamp & lit]] = glow[lamp & lit]
    else:
        colours[cars[lamp]] = 0.9 * glow[lamp]


def _headlamps(world: DrivingWorld, hits: Hits) -> Any:
    """Light of the ego's low beam at every hit: a cone ahead that fades with distance."""
    heading = float(world.vehicle.pose[2])
    flat = np.hypot(hits.rays[:, 0], hits.rays[:, 1])
    ahead = (hits.rays[:, 0] * np.cos(heading) + hits.rays[:, 1] * np.sin(heading)) / flat
    inside = np.clip((ahead - _BEAM_COSINE) / (1.0 - _BEAM_COSINE), 0.0, 1.0)
    low = np.clip(1.0 - 4.0 * hits.rays[:, 2], 0.0, 1.0)
    near = (_BEAM_M / np.maximum(hits.distances, _BEAM_M)) ** 2
    return 0.8 * inside * low * near * (0.3 + 0.7 * hits.cosines())

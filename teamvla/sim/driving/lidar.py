"""The LiDAR: one scan per step, from the roof."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving import ground
from teamvla.sim.driving.noise import Stream, generator
from teamvla.sim.driving.rays import GROUND, Fan, Hits
from teamvla.sim.driving.roads import FloatArray
from teamvla.sim.driving.task import LidarConfig
from teamvla.sim.driving.world import DrivingWorld

_LOWEST_DEG, _HIGHEST_DEG = -15.0, 5.0
_WEAKEST = 0.05  # reflectivity that is still seen at the end of the range in clear air


class Lidar:
    """Scans the surroundings.

    A return is as strong as ``reflectivity * cos(angle) * exp(-2 * extinction * range) / range^2``
    and is lost below what a surface of 5 % gives at the end of the range in clear air; so fog
    shortens the sight. Whatever the strength, a share of the returns is lost at random.
    """

    def __init__(self, config: LidarConfig) -> None:
        self._config = config
        azimuths = np.arange(config.columns) * (2 * np.pi / config.columns)
        elevations = np.deg2rad(np.linspace(_LOWEST_DEG, _HIGHEST_DEG, config.beams))
        azimuth, elevation = np.meshgrid(azimuths, elevations)
        flat = np.cos(elevation)
        rays = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
        self._fan = Fan(np.stack(rays, axis=-1).reshape(-1, 3))
        self.count = len(self._fan.rays)

    def observe(
        self, world: DrivingWorld, key: int, step: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Points float32[count, 4]: x y z (m, sensor frame), intensity 0..1; which are there.

        Valid rows stand first, in no order that means anything.
        """
        hits = self._fan.cast(
            world.model, world.data, world.site("lidar"), float(world.vehicle.pose[2]),
            self._config.range_m, world.ego_body,
        )  # fmt: skip
        rng = generator(key, step, Stream.LIDAR)
        strength = _reflectivity(world, hits) * hits.cosines()
        kept = self._kept(hits.distances, strength, world.extinction)
        kept &= rng.random(self.count) >= self._config.dropout
        ranges = hits.distances[kept]
        ranges = ranges + self._config.noise_m * rng.standard_normal(self.count)[kept]
        points, mask = np.zeros((self.count, 4), np.float32), np.zeros(self.count, bool)
        mask[: len(ranges)] = True
        points[: len(ranges), :3] = self._fan.rays[kept] * np.maximum(ranges, 0.0)[:, None]
        points[: len(ranges), 3] = strength[kept]
        return points, mask

    def _kept(
        self, distances: FloatArray, strength: FloatArray, extinction: float
    ) -> NDArray[np.bool_]:
        near = np.minimum(distances, self._config.range_m)
        received = strength * (self._config.range_m / near) ** 2
        if extinction:
            received = received * np.exp(-2 * extinction * near)
        return np.asarray(np.isfinite(distances) & (received >= _WEAKEST))


def _reflectivity(world: DrivingWorld, hits: Hits) -> FloatArray:
    """Of what was hit, 0..1: paint by its brightness, the ground by its surface."""
    brightness = world.model.geom_rgba[:, :3].mean(axis=1)
    # Both kinds of misses take the last geom's; the ground gets its own below.
    reflectivity = (0.15 + 0.7 * brightness)[hits.geoms]
    on_ground = np.flatnonzero(hits.geoms == GROUND)
    reach = hits.rays[on_ground, :2] * hits.distances[on_ground, None]
    surfaces = ground.surfaces(hits.origin[:2] + reach)
    reflectivity[on_ground] = ground.REFLECTIVITY[surfaces]
    return np.asarray(reflectivity)

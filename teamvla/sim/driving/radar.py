"""The radar: point targets ahead, from behind the front bumper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving.noise import Stream, generator
from teamvla.sim.driving.rays import Fan, Hits
from teamvla.sim.driving.roads import FloatArray
from teamvla.sim.driving.scene import RADAR_AT
from teamvla.sim.driving.task import RadarConfig
from teamvla.sim.driving.world import DrivingWorld

_HALF_VIEW_DEG, _ELEVATIONS_DEG = 75, (-0.5, 0.5, 2.0)
_CELL_SR = np.deg2rad(1.0) * np.deg2rad(1.25)  # solid angle that a ray stands for


class Radar:
    """Sees what its rays meet, one target per body.

    It stands 0.5 m above the road and so looks under a lorry's bed. Neither fog nor darkness
    dims it. It measures range, bearing and the velocity along the line of sight, nothing across
    it: ``vx, vy`` is that radial velocity as a vector, ``v_r * (cos, sin)`` of the bearing. It is
    relative to the sensor: what stands beside the road comes towards a driving ego.
    """

    def __init__(self, config: RadarConfig) -> None:
        self._config = config
        azimuths = np.deg2rad(np.arange(-_HALF_VIEW_DEG, _HALF_VIEW_DEG + 1.0))
        azimuth, elevation = np.meshgrid(azimuths, np.deg2rad(_ELEVATIONS_DEG))
        flat = np.cos(elevation)
        rays = [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]
        self._fan = Fan(np.stack(rays, axis=-1).reshape(-1, 3), ground=False)

    def observe(
        self, world: DrivingWorld, key: int, step: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Targets float32[targets, 5]: x y (m), vx vy (m/s), rcs (dBsm); which are there.

        Sensor frame (x ahead, y left); valid rows stand first, the nearest of all.
        """
        hits = self._fan.cast(
            world.model, world.data, world.site("radar"), float(world.vehicle.pose[2]),
            self._config.range_m, world.ego_body,
        )  # fmt: skip
        bodies, ranges, bearings, section = self._clusters(world, hits)
        closing = self._radial(world, bodies, bearings)
        rng = generator(key, step, Stream.RADAR)
        ranges = ranges + self._config.noise_m * rng.standard_normal(len(ranges))
        closing = closing + self._config.noise_speed * rng.standard_normal(len(ranges))
        nearest = np.argsort(ranges, kind="stable")[: self._config.targets]
        return self._rows(ranges[nearest], bearings[nearest], closing[nearest], section[nearest])

    def _clusters(
        self, world: DrivingWorld, hits: Hits
    ) -> tuple[NDArray[np.intp], FloatArray, FloatArray, FloatArray]:
        """Per body that was hit: its id, mean range (m) and bearing (rad), cross-section (dBsm)."""
        seen = hits.geoms >= 0
        owners = np.asarray(world.model.geom_bodyid)[hits.geoms[seen]]
        bodies, member = np.unique(owners, return_inverse=True)
        number = np.maximum(np.bincount(member, minlength=len(bodies)), 1)
        flat = self._fan.rays[seen, :2] * hits.distances[seen, None]
        x = np.bincount(member, flat[:, 0], len(bodies)) / number
        y = np.bincount(member, flat[:, 1], len(bodies)) / number
        area = hits.cosines()[seen] * hits.distances[seen] ** 2 * _CELL_SR
        section = 10 * np.log10(np.bincount(member, area, len(bodies)) + 1e-3)
        return bodies.astype(np.intp), np.hypot(x, y), np.arctan2(y, x), section

    def _radial(
        self, world: DrivingWorld, bodies: NDArray[np.intp], bearings: FloatArray
    ) -> FloatArray:
        """Velocity away from the sensor along the line of sight, m/s."""
        heading, turning = float(world.vehicle.pose[2]), world.vehicle.yaw_rate
        forward = np.array([np.cos(heading), np.sin(heading)])
        sideways = np.array([-forward[1], forward[0]])
        velocities = world.velocities()
        own = velocities[world.ego_body] + turning * RADAR_AT[0] * sideways
        relative = velocities[bodies] - own
        ahead = relative[:, 0] * forward[0] + relative[:, 1] * forward[1]
        left = relative[:, 0] * sideways[0] + relative[:, 1] * sideways[1]
        return np.asarray(ahead * np.cos(bearings) + left * np.sin(bearings))

    def _rows(
        self, ranges: FloatArray, bearings: FloatArray, closing: FloatArray, section: FloatArray
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        cosine, sine = np.cos(bearings), np.sin(bearings)
        columns = [ranges * cosine, ranges * sine, closing * cosine, closing * sine, section]
        rows, mask = (
            np.zeros((self._config.targets, 5), np.float32),
            np.zeros(self._config.targets, bool),
        )
        rows[: len(ranges)], mask[: len(ranges)] = np.stack(columns, axis=-1), True
        return rows, mask

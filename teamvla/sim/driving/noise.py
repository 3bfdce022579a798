"""Random numbers of the sensors: a function of the episode, the step and the sensor alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Which sensor they are for."""

    CAMERAS = 1
    LIDAR = 2
    RADAR = 3
    IMU = 4


def generator(key: int, step: int, stream: Stream) -> np.random.Generator:
    """No state needs saving: each step of each sensor has a stretch of numbers of its own."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, int(stream), step]))

"""The Intelligent Driver Model: how hard a driver accelerates behind another one.

Treiber, Hennecke and Helbing, "Congested traffic states in empirical observations and
microscopic simulations", Phys. Rev. E 62, 2000.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Manner:
    """How a driver drives: m, s, m/s^2."""

    headway_s: float = 1.2
    gap_m: float = 2.5  # bumper to bumper at rest
    acceleration: float = 2.0
    braking: float = 2.5  # that is comfortable
    hardest: float = 6.0  # the model asks for more where a leader appears all of a sudden


def acceleration(
    speed: FloatArray, desired: FloatArray, gap: FloatArray, leader: FloatArray, manner: Manner
) -> FloatArray:
    """m/s^2 of drivers behind leaders at ``gap`` m (infinite: none) that drive at ``leader``."""
    safe = np.maximum(gap, 0.1)
    closing = speed * (speed - leader) / (2 * (manner.acceleration * manner.braking) ** 0.5)
    wanted = manner.gap_m + np.maximum(0.0, speed * manner.headway_s + closing)
    free = (speed / np.maximum(desired, 0.1)) ** 4
    value = manner.acceleration * (1.0 - free - (wanted / safe) ** 2)
    return np.asarray(np.clip(value, -manner.hardest, manner.acceleration))


def acceleration_of(
    speed: float, desired: float, gap: float, leader: float, manner: Manner
) -> float:
    """:func:`acceleration` of one driver; plain floats are ten times as fast."""
    closing = speed * (speed - leader) / (2 * (manner.acceleration * manner.braking) ** 0.5)
    wanted = manner.gap_m + max(0.0, speed * manner.headway_s + closing)
    free = (speed / max(desired, 0.1)) ** 4
    value = manner.acceleration * (1.0 - free - (wanted / max(gap, 0.1)) ** 2)
    return float(min(manner.acceleration, max(-manner.hardest, value)))

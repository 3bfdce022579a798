"""Statistics of success."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success probability (Wilson, JASA 1927).

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage
    near 0 and 1, where robot success rates live. (0, 1) without episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"successes: expected 0..{episodes}, got {successes}")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


def show_rate(successes: int, episodes: int) -> str:
    """``98.0 % (196/200, 95 % interval 95.0-99.2)``."""
    low, high = wilson_interval(successes, episodes)
    rate = 100 * successes / episodes if episodes else 0.0
    interval = f"95 % interval {100 * low:.1f}-{100 * high:.1f}"
    return f"{rate:.1f} % ({successes}/{episodes}, {interval})"

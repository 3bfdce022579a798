"""The expert driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.driving.planner import decide

if TYPE_CHECKING:
    from teamvla.sim.driving.env import DrivingEnv


class DrivingExpert:
    """Knows where everybody is, and drives as ``planner.decide`` says.

    Args:
        env: the environment that it drives in.
        ignored: vehicles that it does not notice; what happens then shows what they decide.

    Attributes:
        phase: what it is doing in the latest action, ``""`` before the first.
    """

    def __init__(self, env: DrivingEnv, ignored: frozenset[int] = frozenset()) -> None:
        self._env, self._ignored = env, ignored
        self.phase = ""

    def reset(self) -> None:
        """Start over; nothing is remembered from one step to the next."""
        self.phase = ""

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """The command ``[controls]``; ``obs`` is ignored, the expert looks at the world itself."""
        world = self._env.world
        others = world.traffic.others().without(self._ignored)
        plan = decide(world.route, world.ego(), others)
        self.phase = plan.phase
        return [np.array([plan.acceleration, plan.steering], np.float32)]

"""Scripted expert for FetchPickAndPlace of gymnasium-robotics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from teamvla.sim.adapters.env import GymnasiumEnv

_FASTEST_M = 0.05  # what the environment does in a step at most
_OVER_M = 0.06  # above the block before the gripper goes down
_ALIGNED_M = 0.012
_AT_M = 0.01
_CLOSE_STEPS = 4
_DRIFT_M = 0.05  # a block further than this from the gripper is not held
_OPEN, _CLOSED = 0.0, 1.0


class PickExpert:
    """Over the block, down, close, to the goal; from the start again if it loses the block.

    It looks at the observation alone: ``q_a``, ``block``, ``goal``.

    Attributes:
        phase: ``approach``, ``descend``, ``close`` or ``carry``.
    """

    def __init__(self, env: GymnasiumEnv) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self.phase = ""
        self._closing = 0

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """The next command, float32[4]: how far to go (m), and the gripper."""
        tool, block, goal = (np.asarray(obs[k], np.float64) for k in ("q_a", "block", "goal"))
        offset = block - tool
        self.phase = self._next(offset)
        if self.phase == "approach":
            return _command(offset + np.array([0.0, 0.0, _OVER_M]), _OPEN)
        if self.phase == "descend":
            return _command(offset, _OPEN)
        if self.phase == "close":
            self._closing += 1
            return _command(offset * 0.5, _CLOSED)
        return _command(goal - block, _CLOSED)

    def _next(self, offset: NDArray[np.float64]) -> str:
        aside = float(np.hypot(offset[0], offset[1]))
        away = float(np.linalg.norm(offset))
        if self.phase in ("close", "carry") and away < _DRIFT_M:
            return "carry" if self._closing >= _CLOSE_STEPS else "close"
        self._closing = 0
        if away < _AT_M:
            return "close"
        return "descend" if aside < _ALIGNED_M else "approach"


def _command(way: NDArray[np.float64], grip: float) -> list[NDArray[np.float32]]:
    # The arm follows a mocap body through a soft weld and lags: twice the way is not too far.
    longest = float(np.abs(way).max())
    step = way * min(1.0, _FASTEST_M / max(longest, 1e-9))
    return [np.append(step, grip).astype(np.float32)]

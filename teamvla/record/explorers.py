"""Experts that also show what goes wrong: the data that a model of the world learns from.

Named to ``teamvla record --expert teamvla.record.explorers:NoisyExpert --keep-failures``. What
is recorded is the command that was executed, noise and all: a model of what commands lead to
must see those that were carried out. (``record.noise`` stores the clean ones, for imitation.)
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from teamvla import seeds
from teamvla.errors import SimulationError
from teamvla.sim.interface import RobotEnv

#: ticks for which a push lasts: from a jerk to a lean that a whole episode goes with
LASTING = (10.0, 300.0)
#: steps for which an expert that is easily distracted attends, and does something else
ATTENTION, DISTRACTION = (20, 80), (5, 30)
#: greatest standard deviation in an episode, as a share of half the range of a command
NOISY, WANDERING = 0.35, 1.0


class NoisyExpert:
    """The environment's expert under noise, from none to much, drawn anew per episode.

    Ornstein-Uhlenbeck noise, whose pushes are short in one episode and long in another, is
    added to each number of the command, and the sum is clipped to the action space.

    Args:
        env: the environment that it acts in.

    Attributes:
        phase: the expert's.

    Raises:
        SimulationError: its commands are no real numbers.
    """

    greatest = NOISY

    def __init__(self, env: RobotEnv) -> None:
        space = env.action_space
        if not isinstance(space, Box):
            raise SimulationError("an exploring expert", "commands of real numbers", f"{space}")
        self._contract, self._expert = env.contract, env.expert()
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._rng: np.random.Generator | None = None
        self.phase = ""

    def reset(self) -> None:
        """Begin an episode: other noise, of another strength."""
        self._expert.reset()
        self._rng = None

    def act(self, obs: Mapping[str, Any]) -> Sequence[NDArray[Any]]:
        """The next command; see :class:`teamvla.sim.interface.Expert`."""
        if self._rng is None:
            self._begin(obs)
        command = np.clip(self._intended(obs) + self._push(), self._low, self._high)
        return self._contract.split_command(command.astype(np.float32))

    def _intended(self, obs: Mapping[str, Any]) -> NDArray[np.float64]:
        parts = self._expert.act(obs)
        self.phase = self._expert.phase
        return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])

    def _begin(self, obs: Mapping[str, Any]) -> None:
        # Seeded by what the episode begins with: the same in any worker, in any order.
        fields = (value for _, value in sorted(obs.items()) if isinstance(value, np.ndarray))
        seen = zlib.crc32(b"".join(value.tobytes() for value in fields))
        self._rng = seeds.generator(0, seeds.Domain.NOISE, seen)
        self._scale = self._rng.uniform(0, self.greatest) * (self._high - self._low) / 2
        self._keep = 1 - 1 / np.exp(self._rng.uniform(*np.log(LASTING)))
        self._noise = self._rng.standard_normal(self._low.shape)

    def _push(self) -> NDArray[np.float64]:
        assert self._rng is not None
        fresh = self._rng.standard_normal(self._noise.shape)
        self._noise = self._keep * self._noise + np.sqrt(1 - self._keep**2) * fresh
        return self._noise * self._scale


class Distracted(NoisyExpert):
    """The environment's expert, who every now and then does something else for a while.

    What that is, a command more or less far from the middle of the action space, is drawn anew
    each time. So there are odd commands all along the way, and ways back; one who only wanders
    never gets far.
    """

    def _begin(self, obs: Mapping[str, Any]) -> None:
        super()._begin(obs)
        self._attends, self._left = False, 0

    def _intended(self, obs: Mapping[str, Any]) -> NDArray[np.float64]:
        assert self._rng is not None
        intended = super()._intended(obs)  # asked in any case: some go by the number of calls
        if self._left == 0:
            self._attends = not self._attends
            span = ATTENTION if self._attends else DISTRACTION
            self._left = int(self._rng.integers(*span))
            middle, half = (self._low + self._high) / 2, (self._high - self._low) / 2
            self._other = middle + self._rng.uniform() * self._rng.uniform(-half, half)
        self._left -= 1
        return intended if self._attends else self._other


class Wanderer(NoisyExpert):
    """Smooth random commands around the middle of the action space, without any aim."""

    greatest = WANDERING

    def _intended(self, obs: Mapping[str, Any]) -> NDArray[np.float64]:
        return (self._low + self._high) / 2

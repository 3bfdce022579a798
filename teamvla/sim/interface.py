"""What every environment here offers, whatever it simulates.

Recording, evaluation, replay and the test-suite in ``teamvla.sim.testing`` use nothing else,
so that an environment of your own that keeps to it works with all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Contract
from teamvla.errors import SimulationError

Observation = dict[str, NDArray[Any]]
Action = NDArray[np.float32]
#: All that decides how an episode goes on: arrays by name, which JSON can hold as lists.
State = dict[str, NDArray[Any]]


def finite_command(action: Action, entries: Sequence[str]) -> NDArray[np.float64]:
    """The joined command, float64[len(entries)].

    Args:
        entries: what messages call each of its numbers.

    Raises:
        SimulationError: it has another length, or holds no finite numbers.
    """
    values = np.asarray(action, np.float64)
    if values.shape != (len(entries),):
        raise SimulationError("action", f"{len(entries)} numbers", f"shape {values.shape}")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        mend = "Check the policy that gave it"
        raise SimulationError(entries[at], "a finite number", str(values[at]), mend)
    return values


class Expert(Protocol):
    """A policy that may look at the simulator itself.

    Attributes:
        phase: what it is doing in the latest action, ``""`` before the first.
    """

    phase: str

    def reset(self) -> None:
        """Start over; called after the environment's reset."""

    def act(self, obs: Mapping[str, Any]) -> Sequence[NDArray[Any]]:
        """The next command: one vector per arm, then one per action signal of the contract."""


class RobotEnv(gymnasium.Env[Observation, Action]):
    """A Gymnasium environment with a contract.

    ``reset`` decides all that is random from its seed alone: the same seed and actions give the
    same observations to the bit, in any process and after any other episode. ``info`` of
    ``reset`` and ``step`` holds ``success`` (bool), ``task`` and ``instruction`` (str).
    ``step`` takes the joined command, in the order and the units of the contract, and raises
    SimulationError where it cannot go on.

    Attributes:
        contract: what the numbers mean.
        max_steps: of an episode.
    """

    contract: Contract
    max_steps: int

    @abstractmethod
    def expert(self) -> Expert:
        """The scripted expert, bound to this environment; SimulationError if there is none."""

    @property
    @abstractmethod
    def instruction(self) -> str:
        """The words of this episode."""

    @abstractmethod
    def get_state(self) -> State:
        """All that decides how the episode goes on.

        Raises:
            SimulationError: this simulator cannot tell.
        """

    @abstractmethod
    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Go back to what :meth:`get_state` gave, to the bit; arrays or nested lists.

        Raises:
            SimulationError: it is none that was saved here; the environment stays as it is.
        """

"""What experts and environments do wrong, told as a SimulationError: it costs one episode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError, SimulationError, TeamVLAError
from teamvla.registry import import_user_object, told_in_a_line
from teamvla.sim.interface import Action, Expert, Observation, RobotEnv

_INFO = ("success", "task", "instruction")
#: whatever the code of others raises, but for Ctrl-C; sys.exit would end us without a word
_RAISED = (Exception, SystemExit)


class GuardedEnv:
    """The environment as a rollout sees it, whatever it raises."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        with told_of("the environment's reset"):
            observation, info = self._env.reset(seed=seed)
        if missing := [key for key in _INFO if key not in info]:
            expected, got = ", ".join(_INFO), f"no {', '.join(missing)}"
            raise ConfigError("info of the environment's reset", expected, got)
        return observation, info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        with told_of("the environment's step"):
            observation, reward, ended, truncated, info = self._env.step(action)
        return observation, float(reward), ended, truncated, info


class GuardedExpert:
    """The expert as a rollout sees it: it raises, or its command fits the contract.

    ``who`` it is, in messages.
    """

    def __init__(self, expert: Expert, contract: Contract, who: str = "expert") -> None:
        self._expert, self._contract, self._who = expert, contract, f"the {who}"

    @property
    def phase(self) -> str | None:
        """What it is doing; ``None`` if it never says so."""
        with told_of(f"{self._who}'s phase"):
            phase = getattr(self._expert, "phase", None)
            return None if phase is None else str(phase) or "-"

    def reset(self) -> None:
        with told_of(f"{self._who}'s reset"):
            self._expert.reset()

    def act(self, observation: Mapping[str, Any]) -> list[NDArray[Any]]:
        """The command's parts in the contract's types, which are what is stored and executed."""
        with told_of(self._who):
            parts = [np.asarray(part) for part in self._expert.act(observation)]
            joined = np.concatenate([part.ravel() for part in parts])
        self._check(parts, joined)
        try:
            return self._contract.split_command(joined)
        except ContractError as error:  # a whole number that its signal cannot hold
            what = f"{self._who}'s command, {error.where}"
            raise SimulationError(what, error.expected, error.got) from None

    def _check(self, parts: Sequence[NDArray[Any]], joined: NDArray[Any]) -> None:
        sizes, expected = [part.size for part in parts], [*self._contract.command_sizes]
        if sizes != expected:
            raise SimulationError(
                f"{self._who}'s command", f"parts of {expected} numbers", f"parts of {sizes}"
            )
        if joined.dtype.kind not in "fiub" or not np.isfinite(joined).all():
            raise SimulationError(f"{self._who}'s command", "finite numbers", "NaN or others")


@contextmanager
def told_of(who: str) -> Iterator[None]:
    """Let whatever is raised in the block be a SimulationError that names ``who``."""
    try:
        yield
    except (TeamVLAError, MemoryError):
        raise
    except _RAISED as error:
        raise SimulationError(who, "no exception", told_in_a_line(error)) from error


def open_expert(env: RobotEnv, target: str | None, who: str = "expert") -> GuardedExpert:
    """The environment's own expert, or the one at ``target``, ``module:Class``.

    ``who`` is the option that named it, and what messages call it.

    Raises:
        ConfigError: there is no such class, or it cannot be made.
        SimulationError: the environment has no expert of its own, or cannot make it.
    """
    if target is None:
        with told_of("the environment's expert"):
            return GuardedExpert(env.expert(), env.contract)
    make = import_user_object(target, who, _mend(who))
    try:
        expert = make(env)
    except _RAISED as error:
        raise _unusable(
            who, target, f"a class that takes the environment: {told_in_a_line(error)}"
        ) from error
    for method in ("reset", "act"):
        if not callable(getattr(expert, method, None)):
            raise _unusable(who, target, f"one without {method}")
    return GuardedExpert(expert, env.contract, who)


def _unusable(who: str, target: str, got: str) -> ConfigError:
    return ConfigError(f"{who} {target!r}", "a class that can be imported", got, _mend(who))


def _mend(who: str) -> str:
    return f"Give --{who} MODULE:CLASS: it is called with the environment, and has reset and act."

"""What experts and environments do wrong, told as a SimulationError: it costs one episode."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError, SimulationError, TeamVLAError
from teamvla.sim.interface import Action, Expert, Observation, RobotEnv

_MEND = "Give --expert MODULE:CLASS: it is called with the environment, and has reset and act."

_INFO = ("success", "task", "instruction")


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
    """The expert as a rollout sees it: it raises, or its command fits the contract."""

    def __init__(self, expert: Expert, contract: Contract) -> None:
        self._expert, self._contract = expert, contract

    @property
    def phase(self) -> str | None:
        """What it is doing; ``None`` if it never says so."""
        phase = getattr(self._expert, "phase", None)
        return None if phase is None else str(phase) or "-"

    def reset(self) -> None:
        with told_of("the expert's reset"):
            self._expert.reset()

    def act(self, observation: Mapping[str, Any]) -> list[NDArray[Any]]:
        """The command's parts in the contract's types, which are what is stored and executed."""
        with told_of("the expert"):
            parts = [np.asarray(part) for part in self._expert.act(observation)]
            joined = np.concatenate([part.ravel() for part in parts])
        self._check(parts, joined)
        try:
            return self._contract.split_command(joined)
        except ContractError as error:  # a whole number that its signal cannot hold
            what = f"the expert's command, {error.where}"
            raise SimulationError(what, error.expected, error.got) from None

    def _check(self, parts: Sequence[NDArray[Any]], joined: NDArray[Any]) -> None:
        sizes, expected = [part.size for part in parts], [*self._contract.command_sizes]
        if sizes != expected:
            raise SimulationError(
                "the expert's command", f"parts of {expected} numbers", f"parts of {sizes}"
            )
        if joined.dtype.kind not in "fiub" or not np.isfinite(joined).all():
            raise SimulationError("the expert's command", "finite numbers", "NaN or others")


@contextmanager
def told_of(who: str) -> Iterator[None]:
    """Let whatever is raised in the block be a SimulationError that names ``who``."""
    try:
        yield
    except (TeamVLAError, MemoryError):
        raise
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise SimulationError(who, "no exception", f"{type(error).__name__}: {said}") from error


def open_expert(env: RobotEnv, target: str | None) -> GuardedExpert:
    """The environment's own expert, or the one at ``target``, ``module:Class``.

    Raises:
        ConfigError: there is no such class, or it cannot be made.
        SimulationError: the environment has no expert of its own.
    """
    make = RobotEnv.expert if target is None else _imported(target)
    if target is None:
        return GuardedExpert(env.expert(), env.contract)
    try:
        expert = make(env)
    except Exception as error:
        raise _unusable(target, f"a class that takes the environment: {_said(error)}") from error
    for method in ("reset", "act"):
        if not callable(getattr(expert, method, None)):
            raise _unusable(target, f"one without {method}")
    return GuardedExpert(expert, env.contract)


def _imported(target: str) -> Callable[[RobotEnv], Expert]:
    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise _unusable(target, "no MODULE:CLASS")
    here = str(Path.cwd())
    if here not in sys.path:  # a script's folder is, but not that of an installed command
        sys.path.append(here)
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise _unusable(target, _said(error)) from error
    if not callable(found):
        raise _unusable(target, f"a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _unusable(target: str, got: str) -> ConfigError:
    return ConfigError(f"expert {target!r}", "a class that can be imported", got, _MEND)

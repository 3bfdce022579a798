"""Turns a joined command into the action of a foreign environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from teamvla.contract import Contract
from teamvla.errors import ConfigError, SimulationError
from teamvla.registry import did_you_mean
from teamvla.sim.adapters.mapping import ActionPart, Factor, split_key
from teamvla.sim.interface import Action, finite_command

Floats = NDArray[np.float64]


class Commander:
    """Order, scale, offset and clipping of every entry of the action.

    Args:
        parts: the action, front to back.
        contract: where the fields of a command stand in the joined one.
        space: of the environment's actions: Box, Discrete or MultiDiscrete.

    Raises:
        ConfigError: the parts do not make up an action of ``space``.
    """

    def __init__(
        self, parts: tuple[ActionPart, ...], contract: Contract, space: Space[Any]
    ) -> None:
        self._space = space
        self._entries = [f"action, {name}" for name in command_names(contract)]
        self._steps = [_Step(f"task.mapping.action[{n}]", p, contract) for n, p in enumerate(parts)]
        made = sum(len(step.places) for step in self._steps)
        if made != _length(space):
            given = f"{made} from {', '.join(part.command for part in parts)}"
            raise ConfigError("task.mapping.action", f"{_length(space)} entries for {space}", given)

    def __call__(self, joined: Action) -> Any:
        """The environment's action.

        Raises:
            SimulationError: not as many finite numbers as a command has, or no choice of
                the environment.
        """
        command = finite_command(joined, self._entries)
        values = np.concatenate([step(command) for step in self._steps])
        if isinstance(self._space, spaces.Box):
            return values.astype(self._space.dtype).reshape(self._space.shape)
        numbers = np.rint(values).astype(np.int64)
        action = numbers[0] if isinstance(self._space, spaces.Discrete) else numbers
        if not self._space.contains(action):
            raise SimulationError("action", f"a choice of {self._space}", str(action))
        return action


class _Step:
    """One part of the action."""

    def __init__(self, where: str, part: ActionPart, contract: Contract) -> None:
        self._where, self._values = where, np.array(part.values, np.int64)
        self.places = _chosen(where, part, command_names(contract))
        self._scale = _each(where, "scale", part.scale, len(self.places))
        self._offset = _each(where, "offset", part.offset, len(self.places))
        self._low, self._high = part.clip or (-np.inf, np.inf)

    def __call__(self, command: Floats) -> Floats:
        values = np.clip(command[self.places] * self._scale + self._offset, self._low, self._high)
        if not len(self._values):
            return values
        choices = np.rint(values).astype(np.int64)
        if choices.min() < 0 or choices.max() >= len(self._values):
            expected = f"a choice in 0..{len(self._values) - 1}"
            raise SimulationError(self._where, expected, str(choices.tolist()))
        return self._values[choices].astype(np.float64)


def command_names(contract: Contract) -> list[str]:
    """The field of each entry of a joined command."""
    names = []
    for arm in contract.arms:
        names += [f"action_{arm.name}"] * arm.num_joints + [f"grip_{arm.name}"]
    return names + [signal.field for signal in contract.action_signals for _ in range(signal.size)]


def _chosen(where: str, part: ActionPart, names: list[str]) -> NDArray[np.intp]:
    _, path, chosen = split_key(part.command)
    places = np.flatnonzero(np.array(names) == path[0])
    if not len(places):
        hint = did_you_mean(path[0], sorted(set(names)))
        raise ConfigError(where, "a field of the command", repr(path[0]), hint)
    if chosen is None:
        return places
    needed = chosen.stop if isinstance(chosen, slice) else chosen + 1
    if needed > len(places):
        raise ConfigError(where, f"entries of the {len(places)} of {path[0]}", repr(part.command))
    return np.atleast_1d(places[chosen])


def _each(where: str, name: str, factor: Factor, count: int) -> Floats:
    array = np.asarray(factor, np.float64)
    if array.ndim and len(array) != count:
        raise ConfigError(f"{where}.{name}", f"one number or {count}", f"{len(array)}")
    return array


def _length(space: Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.Box | spaces.MultiDiscrete):
        return int(np.prod(space.shape))
    raise ConfigError(
        "task.id",
        "actions in a Box, Discrete or MultiDiscrete",
        str(space),
        "Wrap the environment (task.wrap)",
    )

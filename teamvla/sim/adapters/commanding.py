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
from teamvla.sim.interface import Action


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
        self._contract, self._space = contract, space
        fields = _places(contract)
        chosen = [_chosen(number, part, fields) for number, part in enumerate(parts)]
        sizes = [len(places) for places in chosen]
        self._places = np.concatenate(chosen).astype(np.intp)
        self._scale = _each("scale", [part.scale for part in parts], sizes)
        self._offset = _each("offset", [part.offset for part in parts], sizes)
        ends = [part.clip or (-np.inf, np.inf) for part in parts]
        self._low = _each("clip", [low for low, _ in ends], sizes)
        self._high = _each("clip", [high for _, high in ends], sizes)
        self._values = [part.values for part, size in zip(parts, sizes, strict=True)] * 1
        self._check(sizes)

    def __call__(self, joined: Action) -> Any:
        """The environment's action.

        Raises:
            SimulationError: not as many finite numbers as a command has, or no choice.
        """
        command = self._checked(joined)[self._places] * self._scale + self._offset
        values = np.clip(command, self._low, self._high)
        if isinstance(self._space, spaces.Box):
            return values.astype(self._space.dtype).reshape(self._space.shape)
        numbers = [self._number(at, value) for at, value in enumerate(np.rint(values).tolist())]
        if isinstance(self._space, spaces.Discrete):
            return np.int64(numbers[0])
        return np.array(numbers, self._space.dtype)

    def _number(self, at: int, value: float) -> int:
        known = self._values[at]
        if not known:
            return int(value)
        if not 0 <= value < len(known):
            raise SimulationError(
                f"action[{at}]", f"a choice in 0..{len(known) - 1}", f"{value:g}"
            )
        return known[int(value)]

    def _checked(self, joined: Action) -> NDArray[np.float64]:
        command = np.asarray(joined, np.float64)
        count = self._contract.action_dim
        if command.shape != (count,):
            raise SimulationError("action", f"{count} numbers", f"shape {command.shape}")
        if not np.isfinite(command).all():
            at = int(np.flatnonzero(~np.isfinite(command))[0])
            names = [f"{f}[{i}]" for f, p in _places(self._contract).items() for i, _ in enumerate(p)]
            raise SimulationError(
                f"action, {names[at]}",
                "a finite number",
                str(command[at]),
                "Check the policy that gave it",
            )
        return command

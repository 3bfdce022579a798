"""Noise on the commands that are executed, a function of the episode's seed and commands alone.

What is stored is the expert's clean command, so that the data show how to come back from
where a learned policy will drift to (DART: Laskey et al., CoRL 2017). Because nothing else
decides the noise, a replay can lay the very same noise over the stored commands again.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.errors import ConfigError

_SMOOTHING = 0.7
_IN_RADIANS = ("absolute_joint_position", "delta_joint_position")


class NoiseConfig(Settings):
    """Ornstein-Uhlenbeck noise on executed commands.

    On joint targets it fades out where the arms hold still; on signals, such as pedals and
    steering, it is always the same.
    """

    sigma: float = Field(
        default=0.03, ge=0, le=3.2, description="Standard deviation, rad; 0: none."
    )
    correlation: float = Field(default=0.85, ge=0, lt=1, description="From one tick to the next.")
    full_speed: float = Field(
        default=0.02, gt=0, description="Step of a joint command, rad, at full noise."
    )
    signals: dict[str, tuple[float, ...]] = Field(
        default={},
        description="Of action signals by their fields: a standard deviation for each number, in "
        "its own unit; of a choice the chance that any other is made instead.",
    )


def joint_places(contract: Contract) -> list[slice]:
    """Where each arm's joint targets stand in the joined command.

    Empty where noise in rad has no meaning: without arms, and for commands in metres.
    """
    if contract.action not in _IN_RADIANS:
        return []
    sizes = [arm.num_joints for arm in contract.arms]
    starts = accumulate((size + 1 for size in sizes[:-1]), initial=0)
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def signal_deviations(config: NoiseConfig, contract: Contract) -> NDArray[np.float64]:
    """Standard deviations of the joined command's action signals, 0 for the arms.

    Raises:
        ConfigError: they are for another signal, or of another length.
    """
    sizes = {signal.field: signal.size for signal in contract.action_signals}
    for field, given in config.signals.items():
        if len(given) != sizes.get(field):
            known = ", ".join(f"{name} (numbers: {size})" for name, size in sizes.items())
            got = f"{field} (numbers: {len(given)})"
            raise ConfigError("record.noise.signals", known or "no action signals", got)
        _check_chance(field, given, contract)
    parts = [np.zeros(contract.action_dim - sum(sizes.values()))]
    parts += [np.array(config.signals.get(field, [0.0] * size)) for field, size in sizes.items()]
    return np.concatenate(parts)


def _check_chance(field: str, given: tuple[float, ...], contract: Contract) -> None:
    choices = {signal.field for signal in contract.action_signals if signal.count}
    if field in choices and not 0 <= given[0] <= 1:
        where = f"record.noise.signals.{field}"
        raise ConfigError(where, "a chance from 0 to 1, as it is a choice", f"{given[0]:g}")


def disturbs(config: NoiseConfig, contract: Contract) -> bool:
    """Whether this noise changes any command."""
    joints = bool(config.sigma and joint_places(contract))
    return joints or bool(signal_deviations(config, contract).any())


class ActionNoise:
    """The noise of one episode; called with each joined command in turn."""

    def __init__(self, config: NoiseConfig, rng: np.random.Generator, contract: Contract) -> None:
        self._config, self._rng = config, rng
        self._arms = joint_places(contract)
        self._is_delta = contract.action == "delta_joint_position"
        self._signals = signal_deviations(config, contract)
        self._choices = {place: count for place, count in contract.choices.items() if count > 1}
        self._chances = {p: self._signals[p] for p in self._choices if self._signals[p]}
        self._signals[list(contract.choices)] = 0.0
        self._noise = np.zeros(contract.action_dim)
        self._gains = np.zeros(len(self._arms))
        self._previous: NDArray[np.float64] | None = None

    def __call__(self, command: NDArray[np.float32]) -> NDArray[np.float32]:
        """The command to execute: joints and signals disturbed, grippers as they are."""
        keep = self._config.correlation
        fresh = self._rng.standard_normal(len(command))
        self._noise = keep * self._noise + np.sqrt(1 - keep**2) * fresh
        self._gains = _SMOOTHING * self._gains + (1 - _SMOOTHING) * self._speeds(command)
        noisy = np.array(command, np.float64)
        for joints, gain in zip(self._arms, self._gains, strict=True):
            noisy[joints] += self._config.sigma * gain * self._noise[joints]
        noisy += self._signals * self._noise
        for place, chance in self._chances.items():
            if self._rng.random() < chance:
                other = self._rng.integers(1, self._choices[place])
                noisy[place] = (noisy[place] + other) % self._choices[place]
        return noisy.astype(command.dtype)

    def _speeds(self, command: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of full speed at which each arm's fastest joint is told to move."""
        joints = np.array(command, np.float64)
        moved = joints if self._is_delta else joints - self._before(joints)
        steps = [np.abs(moved[arm]).max() for arm in self._arms]
        return np.minimum(1.0, np.array(steps) / self._config.full_speed)

    def _before(self, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        before = joints if self._previous is None else self._previous
        self._previous = joints
        return before

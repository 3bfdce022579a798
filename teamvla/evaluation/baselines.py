"""What a policy must be compared with: the expert, nothing, chance, a tape, and itself blind."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from teamvla import seeds
from teamvla.contract import Contract
from teamvla.data import Episode, find_episodes, read_episode, read_meta
from teamvla.rollout import Actor, Observation
from teamvla.sim import RobotEnv
from teamvla.sim.perturbations.signals import standing_still


def expert(env: RobotEnv) -> Actor:
    """The scripted expert, which sees the simulator's state."""
    return env.expert()


class DoNothing:
    """Holds the joints where the episode began, grippers open; other commands are 0."""

    def __init__(self, env: RobotEnv) -> None:
        self._contract = env.contract
        self._hold: list[np.ndarray] | None = None

    def reset(self) -> None:
        self._hold = None

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        if self._hold is None:
            still = standing_still(self._contract, observation)
            still[self._contract.grippers] = 0.0
            self._hold = self._contract.split_command(still)
        return self._hold


class RandomActions:
    """Uniform in the action space, drawn anew at every step."""

    def __init__(self, env: RobotEnv) -> None:
        space = env.action_space
        assert isinstance(space, Box)
        self._contract, self._low, self._high = env.contract, space.low, space.high
        self._rng: np.random.Generator | None = None

    def reset(self) -> None:
        self._rng = None

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        if self._rng is None:
            # Seeded by what the episode begins with: the same in any worker, in any order.
            fields = (value for _, value in sorted(observation.items()))
            seen = b"".join(value.tobytes() for value in fields if isinstance(value, np.ndarray))
            self._rng = seeds.generator(0, seeds.Domain.POLICY, zlib.crc32(seen))
        action = self._rng.uniform(self._low, self._high)
        return self._contract.split_command(action)


BASELINES = {"expert": expert, "nothing": DoNothing, "random": RandomActions}
"""Actors that need nothing but the environment, by name."""


def median_demonstration(root: Path) -> Path:
    """The episode of median length below ``root``, a fair one to replay."""
    episodes = sorted(find_episodes(root), key=lambda path: (read_meta(path)["num_steps"], path))
    return episodes[len(episodes) // 2]


@dataclass(frozen=True)
class Replay:
    """Plays an episode's recorded commands whatever it sees. ``Replay(path)`` opens actors."""

    path: Path

    def __call__(self, env: RobotEnv) -> Actor:
        return _Tape(read_episode(self.path), env.contract)


class _Tape:
    def __init__(self, episode: Episode, contract: Contract) -> None:
        self._episode, self._contract = episode, contract
        self._at = 0

    def reset(self) -> None:
        self._at = 0

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        row = min(self._at, self._episode.num_steps - 1)
        self._at += 1
        return self._contract.recorded_command(self._episode.fields, row)


class Blind:
    """An actor with black pictures: what is left is what it knows by heart."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def reset(self) -> None:
        self._actor.reset()

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        dark = {k: np.zeros_like(v) for k, v in observation.items() if k.startswith("rgb_")}
        return self._actor.act({**observation, **dark})


class Deaf:
    """An actor that is told nothing: the instruction is empty."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def reset(self) -> None:
        self._actor.reset()

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        return self._actor.act({**observation, "instruction": ""})

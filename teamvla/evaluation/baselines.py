"""What a policy must be compared with: the expert, nothing, chance, a tape, and itself blind."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from teamvla import seeds
from teamvla.data import find_episodes, read_episode, read_meta
from teamvla.rollout import Actor, Observation
from teamvla.sim import TwoArmEnv


def expert(env: TwoArmEnv) -> Actor:
    """The scripted expert, which sees the simulator's state."""
    return env.expert()


class DoNothing:
    """Holds the joints where the episode began, grippers open."""

    def __init__(self, env: TwoArmEnv) -> None:
        self._hold: list[np.ndarray] | None = None

    def reset(self) -> None:
        self._hold = None

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        if self._hold is None:
            arms = (observation["q_a"], observation["q_b"])
            self._hold = [np.append(q, np.float32(0)).astype(np.float32) for q in arms]
        return self._hold


class RandomActions:
    """Uniform in the action space, drawn anew at every step."""

    def __init__(self, env: TwoArmEnv) -> None:
        space = env.action_space
        assert isinstance(space, Box)
        self._low, self._high = space.low, space.high
        self._rng: np.random.Generator | None = None

    def reset(self) -> None:
        self._rng = None

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        if self._rng is None:
            # Seeded by what the episode begins with: the same in any worker, in any order.
            first = zlib.crc32(observation["rgb_a"].tobytes())
            self._rng = seeds.generator(0, seeds.Domain.POLICY, first)
        action = self._rng.uniform(self._low, self._high).astype(np.float32)
        return np.split(action, 2)


def median_demonstration(root: Path) -> Path:
    """The episode of median length below ``root``, a fair one to replay."""
    episodes = sorted(find_episodes(root), key=lambda path: (read_meta(path)["num_steps"], path))
    return episodes[len(episodes) // 2]


@dataclass(frozen=True)
class Replay:
    """Plays an episode's recorded commands whatever it sees. ``Replay(path)`` opens actors."""

    path: Path

    def __call__(self, env: TwoArmEnv) -> Actor:
        fields = read_episode(self.path).fields
        arms = [
            np.column_stack([fields[f"action_{arm}"], fields[f"grip_{arm}"]]).astype(np.float32)
            for arm in "ab"
        ]
        return _Tape(arms)


class _Tape:
    def __init__(self, arms: list[np.ndarray]) -> None:
        self._arms = arms
        self._at = 0

    def reset(self) -> None:
        self._at = 0

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        row = min(self._at, len(self._arms[0]) - 1)
        self._at += 1
        return [arm[row] for arm in self._arms]


class Blind:
    """An actor with black pictures: what is left is what it knows by heart."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def reset(self) -> None:
        self._actor.reset()

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        dark = {k: np.zeros_like(v) for k, v in observation.items() if k.startswith("rgb_")}
        return self._actor.act({**observation, **dark})

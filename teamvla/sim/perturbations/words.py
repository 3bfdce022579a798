"""Perturbations of the instruction."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from teamvla.sim.env import TwoArmEnv
from teamvla.sim.interface import RobotEnv
from teamvla.sim.perturbations.base import Perturbation


class _Words(Perturbation, ABC):
    """Tells the policy something else in this share of the episodes."""

    unit, default, limit = "share of the episodes", 1.0, 1.0

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        self._now = rng.random() < self.strength
        self._words = self.choose(env, rng)

    @abstractmethod
    def choose(self, env: Any, rng: np.random.Generator) -> str:
        """The words of an episode instead of its own."""

    def say(self, instruction: str) -> str:
        return self._words if self._now else instruction


class Paraphrase(_Words):
    """A phrasing of the same instruction that no demonstration had."""

    needs = "a task of the two-arm simulator that has paraphrases"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        inner: Any = env.unwrapped
        return isinstance(inner, TwoArmEnv) and bool(inner.task.paraphrases)

    def choose(self, env: Any, rng: np.random.Generator) -> str:
        options = env.unwrapped.task.paraphrases
        return str(env.unwrapped.say(options[int(rng.integers(len(options)))]))


class Swap(_Words):
    """The instruction of something else that could be done: a policy that listens fails."""

    needs = "a task of the two-arm simulator"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return isinstance(env.unwrapped, TwoArmEnv)

    def choose(self, env: Any, rng: np.random.Generator) -> str:
        others = env.unwrapped.other_instructions()
        return str(others[int(rng.integers(len(others)))])


class Gibberish(_Words):
    """Random letters, as many words of as many letters."""

    def choose(self, env: RobotEnv, rng: np.random.Generator) -> str:
        letters = np.array(list(string.ascii_lowercase))
        words = env.instruction.split()
        return " ".join("".join(rng.choice(letters, len(word))) for word in words)

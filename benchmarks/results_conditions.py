"""Under which conditions ``results.py`` plays a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.evaluation.suites import OpenActor
from teamvla.rollout import Actor, Observation
from teamvla.sim import RobotEnv


@dataclass(frozen=True)
class Mistold:
    """Opens a policy that hears of the other colour; picklable."""

    open_actor: OpenActor

    def __call__(self, env: RobotEnv) -> Actor:
        return _Mishearing(self.open_actor(env))


class _Mishearing:
    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.reset = actor.reset

    def act(self, observation: Observation) -> Any:
        swapped = {"red": "blue", "blue": "red"}
        words = [swapped.get(word, word) for word in observation["instruction"].split(" ")]
        return self._actor.act({**observation, "instruction": " ".join(words)})


CONDITIONS: dict[str, Callable[[Path], OpenActor]] = {
    "": PolicyFromCheckpoint,
    "black pictures": partial(PolicyFromCheckpoint, blind=True),
    "blanked instruction": partial(PolicyFromCheckpoint, deaf=True),
    "other instruction": lambda path: Mistold(PolicyFromCheckpoint(path)),
}

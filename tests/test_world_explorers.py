"""Experts that also show what goes wrong."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from teamvla.contract import Contract, Signal
from teamvla.errors import SimulationError
from teamvla.record.explorers import Distracted, NoisyExpert, Wanderer

STEPS = 400
CONTRACT = Contract(
    embodiment="driving",
    control_hz=20.0,
    cameras=(),
    signals=(
        Signal(field="ego", shape=(2,), unit="m"),
        Signal(field="pedal", role="action", shape=(2,), unit="-1..3"),
    ),
)
LOW, HIGH, AIM = np.array([-1.0, -1.0]), np.array([3.0, 1.0]), np.array([2.0, 0.5])


class Aiming:
    phase = "aim"

    def reset(self) -> None:
        self.calls = 0

    def act(self, obs: dict[str, Any]) -> list[np.ndarray]:
        self.calls += 1
        return [AIM.astype(np.float32)]


class Env:
    contract = CONTRACT

    def __init__(self, space: Any = None) -> None:
        box = gymnasium.spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32))
        self.action_space = space or box
        self.asked = Aiming()

    def expert(self) -> Aiming:
        return self.asked


def commands(kind: type[NoisyExpert], start: float = 0.0, env: Any = None) -> np.ndarray:
    """The commands of an episode that begins with this observation."""
    expert = kind(env or Env())
    expert.reset()
    first = {"ego": np.full(2, start, np.float32)}
    return np.stack([expert.act(first)[0] for _ in range(STEPS)])


KINDS = [NoisyExpert, Distracted, Wanderer]


@pytest.mark.parametrize("kind", KINDS)
def test_commands_stay_in_the_action_space(kind):
    for start in range(5):
        given = commands(kind, start)
        assert (given >= LOW - 1e-6).all()
        assert (given <= HIGH + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_observation_decides_the_noise(kind):
    assert np.array_equal(commands(kind, 1), commands(kind, 1))
    assert not np.array_equal(commands(kind, 1), commands(kind, 2))


def test_noise_is_of_another_strength_in_another_episode():
    spreads = [np.abs(commands(NoisyExpert, start) - AIM)[:, 1].mean() for start in range(20)]
    assert min(spreads) < 0.05
    assert max(spreads) > 0.2


def test_some_pushes_last_longer_than_others():
    def kept(given: np.ndarray) -> float:
        return float(np.corrcoef(given[:-20, 1], given[20:, 1])[0, 1])

    found = [kept(commands(NoisyExpert, start)) for start in range(20)]
    assert min(found) < 0.4
    assert max(found) > 0.75


def test_who_is_distracted_aims_most_of_the_time():
    off = np.stack([commands(Distracted, start) for start in range(10)]) - AIM
    far = np.abs(off[..., 1]) > 0.45  # beyond all but the strongest noise
    assert 0.1 < far.mean() < 0.5


def test_a_wanderer_has_no_aim():
    given = np.concatenate([commands(Wanderer, start) for start in range(30)])
    assert np.abs(given.mean(0) - (LOW + HIGH) / 2).max() < 0.2


def test_the_expert_is_asked_at_every_step():
    env = Env()
    commands(Distracted, env=env)
    assert env.asked.calls == STEPS


def test_whole_numbers_cannot_be_disturbed():
    with pytest.raises(SimulationError, match="commands of real numbers, got Discrete"):
        NoisyExpert(Env(gymnasium.spaces.Discrete(4)))

"""What heads that sample draw in an episode: the same every time, or afresh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from teamvla.contract import Contract, Signal
from teamvla.models import Policy, PolicyConfig, build_policy

SPEED = Signal(field="speed", shape=(3,))
MOVES = Signal(field="action", role="action", dtype="int64", choices=("left", "right", "forward"))
PEDALS = Signal(field="pedals", role="action", shape=(2,))
TICKS = 10
#: of a policy of moves, and of one of real numbers
KINDS = {
    "masked": (MOVES, {"hidden_dim": 16, "n_layers": 1, "num_heads": 2}),
    "diffusion": (PEDALS, {"hidden_dim": 16, "n_layers": 1}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str, **execution: Any) -> Policy:
    action, sizes = KINDS[kind]
    contract = Contract(embodiment="small", cameras=(), signals=(SPEED, action))
    plan = {"mode": "receding", "n_action_steps": 2, **execution}
    data = {"type": "single_brain", "chunk_size": 4, "vision": None, "language": None}
    data |= {"head": {"type": kind, **sizes}, "execution": plan}
    config = PolicyConfig.choose(data).model_validate(data)
    size = 2 if action is PEDALS else 1
    actions = {"min": [0.0] * size, "max": [1.0] * size}
    statistics = {"actions": actions, "state": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    return build_policy(config, contract, statistics, seed=0).eval()


def episode(policy: Policy) -> list[list[float]]:
    """What it does while it sees the same again and again; it plans at every second tick."""
    policy.reset()
    seen = {"speed": np.ones(3, np.float32), "instruction": "", "task": "small"}
    return [np.atleast_1d(policy.act(seen)[0]).tolist() for _ in range(TICKS)]


def plans(moves: list[list[float]]) -> set[tuple[float, ...]]:
    """The different plans in an episode."""
    return {tuple(moves[tick] + moves[tick + 1]) for tick in range(0, TICKS, 2)}


def test_by_default_what_is_seen_decides_what_is_done(kind):
    policy = make(kind)
    first = episode(policy)
    assert len(plans(first)) == 1
    assert episode(policy) == first


def test_with_fresh_noise_each_prediction_of_an_episode_is_drawn_anew(kind):
    moves = episode(make(kind, fresh_noise=True))
    assert len(plans(moves)) > (TICKS // 2 - 1 if kind == "diffusion" else 1)


def test_every_episode_draws_alike(kind):
    policy = make(kind, fresh_noise=True)
    first = episode(policy)
    assert episode(policy) == first
    assert episode(make(kind, fresh_noise=True)) == first


def test_it_may_be_changed_for_an_evaluation(kind):
    policy, drawn = make(kind), make(kind, fresh_noise=True)
    same = episode(policy)
    policy.set_execution(drawn.config.execution)
    assert episode(policy) == episode(drawn) != same

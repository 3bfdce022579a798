"""What of a checkpoint may be set otherwise for an evaluation: how it acts, not what it learned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from teamvla.checkpoint import write_checkpoint
from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError
from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.models import Policy, PolicyConfig, build_policy
from teamvla.models.loading import to_arrays

SPEED = Signal(field="speed", shape=(3,))
MOVES = Signal(field="action", role="action", dtype="int64", choices=("left", "right", "forward"))
PEDALS = Signal(field="pedals", role="action", shape=(2,))
HEADS = {
    "masked": (MOVES, {"hidden_dim": 16, "n_layers": 1, "num_heads": 2}),
    "diffusion": (PEDALS, {"hidden_dim": 16, "n_layers": 1}),
    "mlp": (PEDALS, {}),
}
STATE = {"mean": [0.0] * 3, "std": [1.0] * 3}


def contract_of(head: str) -> Contract:
    return Contract(embodiment="small", cameras=(), signals=(SPEED, HEADS[head][0]))


def make(head: str, **settings: Any) -> Policy:
    """The same weights whatever the settings of sampling."""
    data = {"type": "single_brain", "chunk_size": 8, "vision": None, "language": None}
    data |= {"head": {"type": head, **HEADS[head][1], **settings}}
    data |= {"execution": {"mode": "receding", "n_action_steps": 8}}
    config = PolicyConfig.choose(data).model_validate(data)
    size = HEADS[head][0].size
    statistics = {"actions": {"min": [0.0] * size, "max": [1.0] * size}, "state": STATE}
    return build_policy(config, contract_of(head), statistics, seed=0).eval()


def saved(policy: Policy, folder: Path) -> Path:
    size = policy.spaces.action_dim
    meta = {
        "kind": "policy",
        "config": {"model": policy.config.model_dump(mode="json")},
        "contract": policy.contract.to_dict(),
        "statistics": {"actions": {"min": [0.0] * size, "max": [1.0] * size}, "state": STATE},
    }
    return write_checkpoint(folder / "a.ckpt", meta, to_arrays("model", policy.state_dict()))


def episode(actor: Any) -> list[list[float]]:
    actor.reset()
    seen = {"speed": np.ones(3, np.float32), "instruction": "", "task": "small"}
    return [np.atleast_1d(actor.act(seen)[0]).tolist() for _ in range(8)]


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("masked", {"sampler": "ancestral", "num_inference_steps": 2}),
        ("masked", {"sampler": "remasking", "remasking": 0.5}),
        ("masked", {"temperature": 0.0}),
        ("diffusion", {"num_inference_steps": 2}),
    ],
)
def test_it_samples_as_it_is_told_to(head, settings, tmp_path):
    path = saved(make(head), tmp_path)
    overrides = tuple(f"model.head.{name}={value}" for name, value in settings.items())
    env: Any = SimpleNamespace(contract=contract_of(head))
    found = episode(PolicyFromCheckpoint(path, overrides=overrides)(env))
    assert found == episode(make(head, **settings))
    assert found != episode(PolicyFromCheckpoint(path)(env)) == episode(make(head))


SAMPLING = ("sampler", "num_inference_steps", "confidence_threshold", "temperature", "remasking")
MAY = {
    "masked": ", ".join(["model.execution", *(f"model.head.{name}" for name in SAMPLING)]),
    "diffusion": "model.execution, model.head.num_inference_steps",
    "mlp": "model.execution",
}


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("masked", "model.head.hidden_dim=32"),
        ("masked", "model.head.schedule=linear"),
        ("diffusion", "model.head.hidden_dim=32"),
        ("mlp", "model.head.hidden_dim=32"),
        ("mlp", "model.chunk_size=9"),
    ],
)
def test_what_was_trained_is_not_changed_and_what_may_be_is_named(head, change, tmp_path):
    policy = PolicyFromCheckpoint(saved(make(head), tmp_path), overrides=(change,))
    with pytest.raises(ConfigError) as caught:
        policy.project()
    said = str(caught.value)
    assert f"--set model: expected a change of {MAY[head]} at most, got another model" in said
    assert change.split("=")[0].rpartition(".")[2] in said
    assert "What was trained cannot be changed; how it acts can." in said

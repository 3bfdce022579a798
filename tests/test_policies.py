"""What every policy promises with every head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_policies import (
    CHUNK,
    COMPOSABLE,
    CONTRACT,
    DIM,
    HEADS,
    STATISTICS,
    assert_slopes,
    make,
    make_batch,
    rows_of,
    train,
)

from teamvla.models import MODELS, LossConfig, build_policy
from teamvla.models.loading import from_arrays, to_arrays

every_policy = pytest.mark.parametrize("name", COMPOSABLE)
every_head = pytest.mark.parametrize("head", HEADS)


def predicted(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    observations = batch["observations"]
    chunk: torch.Tensor = policy.predict_action_chunk(observations, batch["language"])
    return chunk


@every_head
@every_policy
def test_it_builds_from_its_defaults_and_predicts_chunks(name, head):
    kind = MODELS.get(name)
    config = kind.Config.model_validate({"type": name, "head": {"type": head}})
    policy = build_policy(config, CONTRACT, STATISTICS).eval()
    chunk = predicted(policy, make_batch(2))
    assert chunk.shape == (2, config.chunk_size, DIM)
    assert chunk.dtype == torch.float32
    assert chunk.isfinite().all()
    if head != "masked":  # to which all is alike at first
        assert not torch.equal(chunk[0], chunk[1])


@every_head
@every_policy
def test_a_finite_gradient_reaches_every_parameter(name, head):
    torch.manual_seed(0)
    policy, batch = make(name, head), make_batch()
    # Blocks that start as the identity pass nothing on at first, nor does an output of zeros.
    train(policy, batch, **({"steps": 3, "lr": 0.01} if head == "masked" else {}))
    assert_slopes(policy, batch)


def lost(policy: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # heads that draw noise draw the same
    losses: dict[str, torch.Tensor] = policy.loss(batch)
    return losses


def gradients(policy: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    policy.zero_grad()
    lost(policy, batch)["loss"].backward()
    return [p.grad.clone() for p in policy.parameters() if p.requires_grad]


@pytest.mark.parametrize("value", [50.0, float("nan"), float("inf")])
def test_padding_changes_no_gradient_of_sync_and_collision(value):
    config = make("single_brain").config
    policy = build_policy(config, CONTRACT, STATISTICS, LossConfig(geometry_stride=1)).train()
    batch = make_batch()
    assert {"sync", "collision"} <= lost(policy, batch).keys()
    before = gradients(policy, batch)
    batch["actions"][0, CHUNK // 2 :] = value
    after = gradients(policy, batch)
    assert all(slope.isfinite().all() for slope in after)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("value", [50.0, float("nan")])
@every_head
@every_policy
def test_padding_changes_nothing(name, head, value):
    policy, batch = make(name, head), make_batch()
    train(policy, batch).train()  # some heads hold all actions alike at first
    before, slopes = lost(policy, batch), gradients(policy, batch)
    batch["actions"][0, CHUNK // 2 :] = value
    after = lost(policy, batch)
    assert all(torch.equal(before[part], after[part]) for part in before)
    assert all(map(torch.equal, slopes, gradients(policy, batch)))
    batch["actions"][0, CHUNK // 2 - 1] += 0.3
    assert not torch.equal(lost(policy, batch)["loss"], before["loss"])


@every_head
@every_policy
def test_weights_that_were_saved_and_loaded_give_the_same_bits(name, head):
    torch.manual_seed(0)
    policy, batch = make(name, head), make_batch()
    train(policy, batch)
    arrays = to_arrays("model", policy.state_dict())
    other = build_policy(policy.config, CONTRACT, None, seed=9).eval()
    assert not torch.equal(predicted(other, batch), predicted(policy, batch))
    other.load_state_dict(from_arrays("model", arrays))
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


@every_head
@every_policy
def test_a_batch_gets_what_its_rows_get_alone(name, head):
    policy, batch = make(name, head).eval(), make_batch()
    alone = torch.cat([predicted(policy, rows_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(predicted(policy, batch), alone, rtol=0, atol=1e-5)


@every_head
@every_policy
def test_a_policy_is_a_function_of_what_it_sees(name, head):
    policy, batch = make(name, head).eval(), make_batch()
    first = predicted(policy, batch)
    torch.rand(3)
    assert torch.equal(predicted(policy, batch), first)


@every_policy
def test_bf16_autocast_stays_near_float32(name):
    policy, batch = make(name).eval(), make_batch()
    exact = lost(policy, batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        rough = lost(policy, batch)["loss"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact, rel=0.05)


@every_policy
def test_it_acts_in_an_environment(name):
    policy = make(name).eval()
    policy.reset()
    pictures = {f"rgb_{arm}": np.zeros((32, 32, 3), np.uint8) for arm in "ab"}
    joints = {f"q_{arm}": np.zeros(6, np.float32) for arm in "ab"}
    grips = {f"grip_q_{arm}": np.float32(0) for arm in "ab"}
    actions = policy.act({**pictures, **joints, **grips, "instruction": "lift the tray"})
    assert [(action.shape, action.dtype) for action in actions] == [((7,), np.float32)] * 2
    assert all(np.isfinite(action).all() for action in actions)


# Learning.

#: mean error where targets spread over -0.8 to 0.8
WELL = 0.08
#: steps that a policy with its own head needs, where they are more than 120
STEPS = {"act": 300}


def mistake(name: str, head: str | None, steps: int) -> float:
    """Mean error of the worst row after training on it."""
    torch.manual_seed(0)
    batch = make_batch()
    wrong = predicted(train(make(name, head), batch, steps, lr=3e-3), batch) - batch["actions"]
    kept = ~batch["action_is_pad"].unsqueeze(-1)
    return float(((wrong.abs() * kept).sum((1, 2)) / (kept.sum((1, 2)) * DIM)).max())


@every_policy
def test_it_learns_a_batch_with_its_own_head(name):
    assert mistake(name, None, STEPS.get(name, 120)) < WELL


@pytest.mark.slow
@every_head
@every_policy
def test_it_learns_a_batch_with_every_head(name, head):
    assert mistake(name, head, 400) < WELL


@every_policy
def test_sync_and_collision_are_left_out_where_they_cannot_be(name):
    """Heads that predict nothing while they are trained go without."""
    config = MODELS.get(name).Config.model_validate({"type": name, "chunk_size": CHUNK})
    losses = build_policy(config, CONTRACT, STATISTICS, LossConfig()).loss(make_batch())
    predicts = "action" in losses
    assert ("sync" in losses) == ("collision" in losses) == predicts

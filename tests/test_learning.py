"""Each policy can learn what it is shown."""

from __future__ import annotations

import pytest
import torch

from teamvla.models import MODELS, LossConfig, PolicyConfig, build_policy
from teamvla.sim.scene import two_arm_contract

CONTRACT = two_arm_contract(32, 32)
ROWS, STEPS = 4, 160
STATISTICS = {
    "actions": {"min": [-1.0] * 14, "max": [1.0] * 14},
    "state": {"mean": [0.0] * 14, "std": [1.0] * 14},
}


def batch_of_twins(chunk_size: int) -> dict:
    """Pairs of equal observations: within a pair only the instruction, or only the picture differs.

    Joint targets are smooth and differ in every row; grippers close at half of the chunk.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (ROWS, 2, 3, 32, 32), dtype=torch.uint8, generator=random)
    state = torch.randn(ROWS, 14, generator=random)
    images[1], state[1] = images[0], state[0]
    state[3] = state[2]
    ends = torch.rand(ROWS, 2, 14, generator=random) * 1.6 - 0.8
    ramp = torch.linspace(0, 1, chunk_size).view(1, -1, 1)
    actions = ends[:, :1] * (1 - ramp) + ends[:, 1:] * ramp
    actions[..., [6, 13]] = (ramp > 0.5).float()
    words = ["lift", "lower", *["hold"] * (ROWS - 2)]
    return {
        "observations": {"image": images, "state": state},
        "actions": actions,
        "action_is_pad": torch.zeros(ROWS, chunk_size, dtype=torch.bool),
        "language": words,
    }


@pytest.mark.parametrize("name", MODELS.names())
def test_policy_overfits_one_batch(name):
    config = PolicyConfig.choose({"type": name}).model_validate({"type": name})
    # Random targets cross the arms: the penalty would rightly refuse to imitate them.
    policy = build_policy(config, CONTRACT, STATISTICS, LossConfig(collision=0)).train()
    batch = batch_of_twins(config.chunk_size)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        policy.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        wrong = policy.eval()(batch)["predicted_actions"] - batch["actions"]
    assert wrong.abs().mean(dim=(1, 2)).max() < 0.02

"""Batches of the driving contract for the tests, by hand and from its environment.

Shapes: B batch, K chunk, P rows of a sensor.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from teamvla.contract import Contract
from teamvla.models import LossConfig, Policy, build_policy
from teamvla.models.base import PolicyConfig
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.task import DrivingConfig, DrivingTask

SIZE, CHUNK, CONTROLS = 32, 4, 2
SMALL_SENSORS = {
    "camera": {"height": SIZE, "width": SIZE},
    "lidar": {"columns": 60, "beams": 8},
}
STATISTICS = {
    "actions": {"min": [-6.0, -0.5], "max": [3.0, 0.5]},
    "state": {"mean": [6.0, 0.0, 0.0, 0.0], "std": [3.0, 0.2, 0.1, 2.0]},
    "words": dict.fromkeys(("go", "straight", "turn", "left"), 1),
}
POINTS = {
    "type": "pointnet", "output_dim": 16, "centers": [8, 4], "group": 4, "width": 8,
    "max_points": 64,
}  # fmt: skip
RADAR = {"type": "radar", "output_dim": 16, "embed_dim": 16, "num_heads": 2, "num_layers": 1}
SENSORS = {"points": POINTS, "radar": RADAR, "imu": {"type": "imu", "output_dim": 8}}


def driving_env(**task: object) -> DrivingEnv:
    return DrivingTask.make(DrivingConfig.model_validate({**SMALL_SENSORS, **task}))


@cache
def driving_contract() -> Contract:
    return driving_env().contract


def driving_policy(config: PolicyConfig, contract: Contract | None = None) -> Policy:
    return build_policy(config, contract or driving_contract(), STATISTICS, LossConfig()).eval()


def driving_batch(rows: int = 3, seed: int = 0, points: int = 96) -> dict[str, Any]:
    """Random readings and commands; later rows have fewer points and targets."""
    dice = torch.Generator().manual_seed(seed)
    there = torch.arange(points) < (points - 8 * torch.arange(rows)).clamp_min(0)[:, None]
    seen = torch.arange(12) < (12 - 2 * torch.arange(rows)).clamp_min(0)[:, None]
    cloud = torch.randn(rows, points, 4, generator=dice) * torch.tensor([20.0, 15.0, 1.0, 0.3])
    radar = torch.randn(rows, 12, 5, generator=dice) * torch.tensor([30.0, 20.0, 8.0, 8.0, 10.0])
    shape = (rows, 6, 3, SIZE, SIZE)
    actions = torch.rand(rows, CHUNK, CONTROLS, generator=dice) * 1.6 - 0.8
    is_pad = torch.zeros(rows, CHUNK, dtype=torch.bool)
    is_pad[0, CHUNK // 2 :] = True
    return {
        "observations": {
            "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=dice),
            "state": torch.randn(rows, 4, generator=dice) + torch.tensor([6.0, 0, 0, 0]),
            "points": cloud * there.unsqueeze(-1),
            "points_mask": there,
            "radar": radar * seen.unsqueeze(-1),
            "radar_mask": seen,
            "imu": torch.randn(rows, 5, 7, generator=dice),
            "imu_mask": torch.ones(rows, 5, dtype=torch.bool),
        },
        "targets": {"trajectory": torch.rand(rows, 6, 2, generator=dice) * 20},
        "actions": actions,
        "action_is_pad": is_pad,
        "language": [("go straight", "turn left", "go left")[row % 3] for row in range(rows)],
    }


def rows_of(batch: dict[str, Any], *rows: int) -> dict[str, Any]:
    """A batch of some rows of another."""
    at = list(rows)
    inner = {
        name: {key: value[at] for key, value in batch[name].items()}
        for name in ("observations", "targets")
    }
    flat = {name: batch[name][at] for name in ("actions", "action_is_pad")}
    return {**inner, **flat, "language": [batch["language"][row] for row in at]}

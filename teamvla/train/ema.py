"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An average of ``model``'s parameters that warms up: decay min(``decay``, (1 + n) / (10 + n)).

    Without the warm-up a short run would average in its random beginning (Tan & Le,
    EfficientNet, ICML 2019, use the same ramp).
    """

    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: object) -> None:
        seen = float(count)  # type: ignore[arg-type]
        keep = min(decay, (1 + seen) / (10 + seen))
        torch._foreach_lerp_(averaged, current, 1 - keep)

    averaged = AveragedModel(model, multi_avg_fn=average)  # type: ignore[arg-type]
    return averaged.requires_grad_(False)

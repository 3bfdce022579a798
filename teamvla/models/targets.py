"""What a policy is to learn of a batch, and how far it is from that.

Shapes: B batch, K chunk, D joined action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from teamvla.errors import ConfigError


def targets_of(batch: Mapping[str, Any], chunk_size: int, action_dim: int) -> tuple[Tensor, Tensor]:
    """Actions [B,K,D], float32, and their padding bool [B,K].

    Args:
        batch: ``actions`` [B,K,D] or, if K is 1, [B,D]; ``action_is_pad`` [B,K], [B,K,1], or [B]
            if K is 1; without it nothing is padding.
        chunk_size: K.
        action_dim: D.

    Raises:
        ConfigError: they have another shape.
    """
    target = batch["actions"]
    target = target.unsqueeze(1) if target.dim() == 2 else target
    expected = (chunk_size, action_dim)
    if target.shape[1:] != expected:
        raise ConfigError(
            "batch['actions']", f"chunks of shape {expected}", f"{tuple(target.shape[1:])}",
            "Set model.chunk_size and dataset.chunk_size alike, and take data of that contract.",
        )  # fmt: skip
    return target.float(), _padding(batch.get("action_is_pad"), target)


def errors_of(predicted: Tensor, target: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
    """``action_mse`` and ``action_mae``, scalars, of chunks [B,K,D]; padding does not count."""
    off = torch.where(is_pad.unsqueeze(-1), 0.0, predicted - target).detach()
    count = ((~is_pad).sum() * target.shape[-1]).clamp_min(1)
    return {"action_mse": off.square().sum() / count, "action_mae": off.abs().sum() / count}


def _padding(given: Any, target: Tensor) -> Tensor:
    shape = target.shape[:2]
    if given is None:
        return torch.zeros(shape, dtype=torch.bool, device=target.device)
    is_pad = torch.as_tensor(given, device=target.device).bool()
    fitting = [shape, (*shape, 1), *([shape[:1]] if shape[1] == 1 else [])]
    if is_pad.shape not in fitting:
        raise ConfigError("batch['action_is_pad']", f"{tuple(shape)}", f"{tuple(is_pad.shape)}")
    return is_pad.reshape(shape)

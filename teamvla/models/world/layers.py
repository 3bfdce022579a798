"""Layers that the parts of the world model share.

Shapes: B batch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dense(input_dim: int, hidden_dim: int, layers: int, output_dim: int | None = None) -> nn.Module:
    """``layers`` times linear, LayerNorm and SiLU, and if ``output_dim`` is given a last linear."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(input_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.SiLU()]
        input_dim = hidden_dim
    if output_dim is not None:
        parts.append(nn.Linear(input_dim, output_dim))
    return nn.Sequential(*parts)


class NormGRUCell(nn.Module):
    """A gated recurrent unit with LayerNorm before its gates, reluctant to change at first.

    As in DreamerV2 (Hafner et al. 2021, arXiv 2010.02193): the update gate's bias is -1.
    """

    def __init__(self, input_dim: int, size: int) -> None:
        super().__init__()
        self.joint = nn.Linear(input_dim + size, 3 * size, bias=False)
        self.norm = nn.LayerNorm(3 * size)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """Inputs [...,input_dim] and state [...,size] to the next state."""
        # The state is kept in full precision, whatever the layers compute in.
        gates = self.norm(self.joint(torch.cat([inputs, state], dim=-1))).float()
        reset, candidate, update = gates.chunk(3, dim=-1)
        fresh = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(state, fresh, torch.sigmoid(update - 1))

"""Small blocks that several parts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.initialization import init_identity


class ResidualBlock(nn.Module):
    """Pre-norm residual MLP: x + W2 silu(W1 norm(x)), the identity at first."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        init_identity(self.outer)

    def forward(self, features: Tensor) -> Tensor:
        """[...,width] to [...,width]."""
        hidden: Tensor = self.outer(self.dropout(functional.silu(self.inner(self.norm(features)))))
        return features + hidden


def sinusoids(times: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Sines and cosines of numbers [...] at geometric wavelengths, [...,width] (width is even).

    As positions of tokens and steps of a diffusion are told to a network (Vaswani et al. 2017,
    arXiv 1706.03762).
    """
    exponents = torch.arange(width // 2, dtype=torch.float32, device=times.device)
    frequencies = torch.exp(exponents * (-math.log(longest) / (width // 2 - 1 or 1)))
    angles = times.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

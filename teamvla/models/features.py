"""What flows between the parts of a policy. Tokens always travel with their mask.

Shapes: B batch, V cameras, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens and which of them count.

    Attributes:
        values: [B,N,D].
        mask: bool [B,N], False on padding.
    """

    values: Tensor
    mask: Tensor

    @staticmethod
    def full(values: Tensor) -> Tokens:
        """Tokens [B,N,D] that all count."""
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens(values, mask)

    def mean(self) -> Tensor:
        """[B,D]: the mean of those that count."""
        weights = self.mask.unsqueeze(-1).to(self.values.dtype)
        return (self.values * weights).sum(1) / weights.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Sensed:
    """What an encoder makes of a sensor: a vector [B,F] that sums it up, and tokens [B,N,D]."""

    vector: Tensor
    tokens: Tokens


@dataclass(frozen=True)
class Modalities:
    """What a policy has encoded of a batch; None where it has no such input.

    Attributes:
        pictures: tokens of every camera [B,V,N,D].
        text: tokens of the instructions.
        state: normalised [B,S].
        sensors: what is sensed besides, by field.
        pictures_mask: bool [B,V,N], False on tokens that tell nothing; None: all count.
    """

    pictures: Tensor | None = None
    text: Tokens | None = None
    state: Tensor | None = None
    sensors: Mapping[str, Sensed] = field(default_factory=dict)
    pictures_mask: Tensor | None = None


@dataclass(frozen=True)
class Features:
    """What a head acts on: a summary [B,D], and the tokens that it sums up, of the same width."""

    summary: Tensor
    tokens: Tokens

    @staticmethod
    def of(summary: Tensor) -> Features:
        """A vector [B,D] alone, which is then the only token."""
        return Features(summary, Tokens.full(summary[:, None]))

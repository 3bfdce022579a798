"""What a state is worth, and whether the episode goes on.

Shapes: B rows (any leading dimensions), F features, K bins.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.models.world.layers import dense


class PredictorConfig(Settings):
    """Settings of :class:`RewardPredictor` and :class:`ContinuationPredictor`."""

    reward: Literal["two_hot", "mse"] = Field(
        default="two_hot", description="How a reward is learned: as classes, or as a number."
    )
    bins: int = Field(default=63, ge=3, description="two_hot: places on the symlog line.")
    span: float = Field(default=3.0, gt=0, description="two_hot: the line reaches so far, symlog.")
    hidden_dim: int = Field(default=128, ge=1, description="Width of the layers.")
    layers: int = Field(default=1, ge=1, description="Layers.")


def symlog(values: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): large numbers made small, and small ones kept."""
    return values.sign() * values.abs().log1p()


def symexp(values: Tensor) -> Tensor:
    """The inverse of :func:`symlog`."""
    return values.sign() * values.abs().expm1()


def two_hot(values: Tensor, places: Tensor) -> Tensor:
    """Values [...] as shares [...,K] of the two nearest of ``places`` [K], ascending.

    Their mean is the value again; beyond the outermost places it is theirs.
    """
    inside = values.clamp(float(places[0]), float(places[-1]))
    above = torch.searchsorted(places, inside.contiguous()).clamp(1, len(places) - 1)
    low, high = places[above - 1], places[above]
    share = ((inside - low) / (high - low)).unsqueeze(-1)
    lower = functional.one_hot(above - 1, len(places))
    upper = functional.one_hot(above, len(places))
    return lower * (1 - share) + upper * share


class RewardPredictor(nn.Module):
    """The reward of the command that led to a state.

    ``two_hot``: a distribution over places on the symlog line, learned by cross-entropy
    (DreamerV3, arXiv 2301.04104); ``mse``: a number on that line.

    Args:
        features: F.
        config: which, and sizes.
    """

    places: Tensor

    def __init__(self, features: int, config: PredictorConfig) -> None:
        super().__init__()
        self._classes = config.reward == "two_hot"
        outputs = config.bins if self._classes else 1
        self.net = dense(features, config.hidden_dim, config.layers, outputs)
        places = torch.linspace(-config.span, config.span, config.bins)
        self.register_buffer("places", places, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """The expected reward [...] of features [...,F]."""
        raw = self.net(features).float()
        if not self._classes:
            return symexp(raw.squeeze(-1))
        return symexp(raw.softmax(-1) @ self.places)

    def loss(self, features: Tensor, reward: Tensor) -> Tensor:
        """Of each row [...], given the rewards [...] that came."""
        raw: Tensor = self.net(features).float()
        target = symlog(reward.float())
        if not self._classes:
            return (raw.squeeze(-1) - target).square()
        return -(two_hot(target, self.places) * raw.log_softmax(-1)).sum(-1)


class ContinuationPredictor(nn.Module):
    """Whether the episode goes on behind a state.

    Args:
        features: F.
        config: sizes.
    """

    def __init__(self, features: int, config: PredictorConfig) -> None:
        super().__init__()
        self.net = dense(features, config.hidden_dim, config.layers, 1)

    def forward(self, features: Tensor) -> Tensor:
        """The probability [...] that it does."""
        return torch.sigmoid(self.net(features).float().squeeze(-1))

    def loss(self, features: Tensor, goes_on: Tensor) -> Tensor:
        """Of each row [...], given whether it did, bool or 0..1."""
        logits = self.net(features).float().squeeze(-1)
        return functional.binary_cross_entropy_with_logits(
            logits, goes_on.float(), reduction="none"
        )

"""Actions with their uncertainty: a normal distribution of each number.

Shapes: B batch, K chunk, D action.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.models.features import Features
from teamvla.models.heads.base import (
    ActionHead,
    HeadConfig,
    HeadLoss,
    HiddenSettings,
    as_features,
    hidden_layers,
)
from teamvla.models.losses import masked_mean

#: greatest |action| that tanh is inverted at; demonstrations reach 1, whose inverse is infinite
_EDGE = 1 - 1e-3


class GaussianHeadConfig(HiddenSettings, HeadConfig):
    """Settings of :class:`GaussianMLPActionHead`."""

    type: Literal["gaussian"] = Field(default="gaussian", description="Normal distribution.")
    squashed: bool = Field(
        default=False, description="tanh of a normal: actions stay in [-1, 1], what was seen."
    )
    min_log_std: float = Field(
        default=-4.0,
        ge=-20,
        description="Least log deviation, normalised: demonstrations without noise would shrink "
        "it forever.",
    )
    max_log_std: float = Field(default=2.0, le=2, description="Greatest log deviation.")
    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Each number's loss weighs deviation^(2 beta): 0 is maximum likelihood, 1 "
        "lets the mean learn as from mean squares.",
    )

    @model_validator(mode="after")
    def _some_room(self) -> Self:
        if self.min_log_std >= self.max_log_std:
            raise ValueError(
                f"min_log_std {self.min_log_std} is not below max_log_std {self.max_log_std}"
            )
        return self


class GaussianMLPActionHead(ActionHead):
    """Independent normals of the whole chunk at once, from the summary.

        summary [B,input] -> (linear -> GELU -> dropout) x n_layers -+-> linear: mean [B,K*D]
                                                                     +-> linear: log std [B,K*D]

    Trained by beta-NLL (Seitzer et al. 2022, arXiv 2203.09168): plain likelihood neglects what
    is already uncertain. Bounds of log std are soft, so that it comes back from them.
    Squashed, an action is tanh of the normal, with the exact density (Haarnoja et al. 2018,
    arXiv 1801.01290, appendix C); demonstrated actions count as within 0.999 of the bounds.
    """

    Config = GaussianHeadConfig
    config: GaussianHeadConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self.bounded = self.config.squashed
        layers, width = hidden_layers(input_dim, self.config)
        self.layers = nn.Sequential(*layers)
        self.mean_head = nn.Linear(width, self.chunk_size * action_dim)
        self.log_std_head = nn.Linear(width, self.chunk_size * action_dim)

    def forward(  # type: ignore[override]
        self, features: Features | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of the normals (before tanh), each [B,K,D] (no K if it is 1)."""
        mean, log_std = self.normals(as_features(features))
        return self.squeezed(mean), self.squeezed(log_std)

    def normals(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and log deviation of the normals (before tanh), each [B,K,D]."""
        shape = (features.summary.shape[0], self.chunk_size, self.action_dim)
        hidden = self.layers(features.summary)
        mean = self.mean_head(hidden).reshape(shape).float()
        return mean, self._bounded(self.log_std_head(hidden).reshape(shape).float())

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`; ``nll`` is per number, ``std`` the mean deviation."""
        # Padding may hold NaN, of which a gradient stays NaN even where the loss is masked.
        target = target.masked_fill(is_pad.unsqueeze(-1), 0.0)
        mean, log_std = self.normals(features)
        nll = -self._log_density(mean, log_std, target)
        weighted = nll * (2 * self.config.beta * log_std.detach()).exp()
        parts = {
            "nll": masked_mean(nll.detach(), is_pad),
            "std": masked_mean(log_std.detach().exp(), is_pad),
        }
        return HeadLoss(masked_mean(weighted, is_pad), parts, self._squash(mean))

    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """The mean (its tanh if squashed), or with a generator a draw.

        Gradients flow through the draw to both mean and deviation.
        """
        features = as_features(features)
        mean, log_std = self.normals(features)
        if generator is not None:
            mean = mean + log_std.exp() * self.noise(features, generator)[0]
        return self._squash(mean)

    def log_prob(self, features: Features | Tensor, actions: Tensor) -> Tensor:
        """Log density of normalised actions [B,K,D] (or [B,D] if K is 1), [B,K] or [B]."""
        features = as_features(features)
        mean, log_std = self.normals(features)
        return self.squeezed(self._log_density(mean, log_std, actions.reshape(mean.shape)).sum(-1))

    def entropy(self, features: Features | Tensor) -> Tensor:
        """Entropy of the actions in nats, [B,K] or [B]; squashed by quadrature."""
        mean, log_std = self.normals(as_features(features))
        entropy = log_std + 0.5 * (1 + math.log(2 * math.pi))
        if self.config.squashed:
            points, weights = np.polynomial.hermite_e.hermegauss(64)
            nodes = mean.new_tensor(points)
            drawn = mean.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes
            shares = mean.new_tensor(weights / weights.sum())
            entropy = entropy + (_log_slope(drawn) * shares).sum(-1)
        return self.squeezed(entropy.sum(-1))

    def _squash(self, raw: Tensor) -> Tensor:
        return raw.tanh() if self.config.squashed else raw

    def _bounded(self, raw: Tensor) -> Tensor:
        """Softly within the bounds: far from both, where they are far apart, about as it is."""
        least, most = self.config.min_log_std, self.config.max_log_std
        capped = most - functional.softplus(most - raw)
        # The share of the last softplus makes the upper bound exact again.
        stretch = (most - least) / math.log1p(math.exp(most - least))
        return least + functional.softplus(capped - least) * stretch

    def _log_density(self, mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
        """Of each number, [B,K,D]."""
        raw = actions.clamp(-_EDGE, _EDGE).atanh() if self.config.squashed else actions
        off = (raw - mean) * (-log_std).exp()
        density = -0.5 * off.square() - log_std - 0.5 * math.log(2 * math.pi)
        return density - _log_slope(raw) if self.config.squashed else density


def _log_slope(raw: Tensor) -> Tensor:
    """log(1 - tanh(x)^2), which stays exact where tanh rounds to 1."""
    return 2 * (math.log(2) - raw - functional.softplus(-2 * raw))

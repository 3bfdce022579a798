"""Features to actions by a multi-layer perceptron."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Generator, Tensor, nn

from teamvla.models.features import Features
from teamvla.models.heads.base import (
    HeadLoss,
    HiddenSettings,
    RegressionConfig,
    RegressionHead,
    as_features,
    hidden_layers,
)


class MLPHeadConfig(HiddenSettings, RegressionConfig):
    """Settings of :class:`MLPActionHead`."""

    type: Literal["mlp"] = Field(default="mlp", description="Multi-layer perceptron.")
    tanh_output: bool = Field(
        default=False, description="Bound the output to [-1, 1], the range that was seen."
    )


class MLPActionHead(RegressionHead):
    """Deterministic head: the whole chunk at once from the summary.

        summary [B,input] -> (linear -> GELU -> dropout) x n_layers -> linear [B,K*D]

    Without hidden layers it is one linear map: the trunk before it has done the work.
    """

    Config = MLPHeadConfig
    config: MLPHeadConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self.bounded = self.config.tanh_output
        layers, width = hidden_layers(input_dim, self.config)
        layers.append(nn.Linear(width, self.chunk_size * action_dim))
        self.layers = nn.Sequential(*layers)

    def finish(self, raw: Tensor) -> Tensor:
        """See :meth:`RegressionHead.finish`."""
        finished = super().finish(raw)
        return finished.where(self.grippers, raw.tanh()) if self.bounded else finished

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`."""
        return self.regression(self._raw(features), target, is_pad)

    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`; nothing is drawn."""
        return self.finish(self._raw(as_features(features)))

    def forward(self, features: Features | Tensor) -> Tensor:  # type: ignore[override]
        """Features [B,input_dim] to normalised actions [B,action_dim], or [B,K,action_dim]."""
        return self.squeezed(self.sample(features))

    def _raw(self, features: Features) -> Tensor:
        shape = (features.summary.shape[0], self.chunk_size, self.action_dim)
        raw: Tensor = self.layers(features.summary)
        return raw.reshape(shape).float()

"""A few numbers to a vector; the encoder of sensors that have no other.

Shapes: B batch, P rows, C channels, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder, full_mask
from teamvla.models.features import Sensed, Tokens


class VectorConfig(SensorConfig):
    """Settings of :class:`VectorEncoder`."""

    type: Literal["vector"] = Field(default="vector", description="An MLP, and a mean of rows.")
    hidden_dim: int = Field(default=128, ge=1, description="Width of the MLP.")


class VectorEncoder(SensorEncoder):
    """Readings through an MLP: one number, one vector, or rows of which the mean is taken.

        [B], [B,C] -> MLP -> [B,F]        [B,P,C] -> MLP of each row -> mean [B,F]

    Every row is a token. Nothing knows of the rows' order.

    Args:
        input_dim: C.
        config, settings: see :class:`SensorEncoder`.
    """

    Config = VectorConfig

    def __init__(self, input_dim: int = 1, *, config: Any = None, **settings: Any) -> None:
        super().__init__(input_dim, config=config, **settings)
        self.dim, hidden = self.output_dim, self.config.hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(input_dim, hidden), nn.SiLU(), nn.Linear(hidden, self.dim), nn.SiLU()
        )

    @classmethod
    def of_shape(cls, config: SensorConfig, shape: Sequence[int]) -> Self:
        """See :meth:`SensorEncoder.of_shape`."""
        cls.require_rank(shape, 0, 1, 2)
        varies = tuple(shape) == (-1,)
        return cls(shape[-1] if shape and not varies else 1, config=config)

    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """See :meth:`SensorEncoder.encode`; also of [B] and [B,C]."""
        rows = readings.float().reshape(readings.shape[0], -1, self.channels)
        there = full_mask(rows, mask)
        found = self.layers(torch.where(there.unsqueeze(-1), rows, 0.0) / self.scale)
        tokens = Tokens(found, there)
        return Sensed(tokens.mean(), tokens)

"""Radar to tokens: point targets, or range-Doppler maps.

Shapes: B batch, P targets, C channels, H W cells of a map, D width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder, full_mask
from teamvla.models.encoders.vision import as_tokens
from teamvla.models.features import Sensed, Tokens
from teamvla.models.initialization import embedding, init_transformer


class RadarConfig(AttentionSettings, SensorConfig):
    """Settings of :class:`RadarEncoder`."""

    type: Literal["radar"] = Field(default="radar", description="Point targets or maps.")
    embed_dim: int = Field(default=128, ge=4, multiple_of=4, description="Width of a token.")
    num_layers: int = Field(default=2, ge=0, description="Transformer blocks among targets.")


class RadarEncoder(SensorEncoder):
    """Targets through attention among them, or maps through convolutions, by their rank.

        targets [B,P,C] -> MLP of each -> [summary | targets] -> blocks -> summary [B,F]
        maps [B,C,H,W] -> three convolutions, H and W / 8 -> mean of the cells [B,F]

    Targets are a set: their order does not matter, and a scan without any leaves the learned
    summary token alone. Cells of a map are tokens row by row.

    Args:
        input_dim: C: of a target (x, y in m, vx, vy in m/s, cross-section in dBsm), or of a map.
        kind: which of the two.
        config, settings: see :class:`SensorEncoder`.
    """

    Config = RadarConfig
    SCALE: ClassVar[tuple[float, ...]] = (40.0, 40.0, 10.0, 10.0, 20.0)

    def __init__(
        self,
        input_dim: int = 5,
        *,
        kind: Literal["points", "map"] = "points",
        config: Any = None,
        **settings: Any,
    ) -> None:
        self.kind = kind
        super().__init__(input_dim, config=config, **settings)
        self.dim = width = self.config.embed_dim
        if kind == "points":
            self._build_blocks(width)
        else:
            self._build_layers(width)
        self.output = nn.Linear(width, self.output_dim)

    @classmethod
    def of_shape(cls, config: SensorConfig, shape: Sequence[int]) -> Self:
        """See :meth:`SensorEncoder.of_shape`: [P,C] are targets, [C,H,W] a map."""
        cls.require_rank(shape, 2, 3)
        points = len(shape) == 2
        return cls(shape[-1 if points else 0], kind="points" if points else "map", config=config)

    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """See :meth:`SensorEncoder.encode`; also of maps [B,C,H,W], which have no mask."""
        if self.kind == "map":
            maps = readings.float() / self.scale[:, None, None]
            cells = as_tokens(self.layers(maps))
            return Sensed(self.output(cells.mean(1)), Tokens.full(cells))
        there = full_mask(readings, mask)
        targets = torch.where(there.unsqueeze(-1), readings, 0.0) / self.scale
        summary = self.summary.expand(targets.shape[0], -1, -1)
        tokens = torch.cat([summary, self.lift(targets)], 1)
        seen = torch.cat([there.new_ones(there.shape[0], 1), there], 1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        tokens = self.norm(tokens)
        return Sensed(self.output(tokens[:, 0]), Tokens(tokens[:, 1:], there))

    def _build_blocks(self, width: int) -> None:
        config = self.config
        self.lift = nn.Sequential(
            nn.Linear(self.channels, width), nn.GELU(), nn.Linear(width, width)
        )
        self.summary = embedding(1, 1, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        init_transformer(self.blocks)

    def _build_layers(self, width: int) -> None:
        sizes = (self.channels, width // 4, width // 2, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(1, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def _usual(self, channels: int) -> tuple[float, ...]:
        return (1.0,) * channels if self.kind == "map" else super()._usual(channels)

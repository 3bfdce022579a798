"""Cells of a grid world to tokens.

Shapes: B batch, H W cells, C their channels, N tokens, D width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder
from teamvla.models.features import Sensed, Tokens
from teamvla.models.initialization import embedding, init_identity

#: kinds that a channel of a cell can tell apart: MiniGrid has 11 of things, 6 colours, 4 states
KINDS = 16
#: ways to face
_DIRECTIONS = 4
_RANK, _CHANNELS = 3, 3


class GridConfig(SensorConfig):
    """Settings of :class:`StateEncoder`."""

    type: Literal["grid"] = Field(default="grid", description="Cells of a grid world.")
    scale: None = Field(default=None, description="There is none: kinds are no quantities.")
    token_dim: int = Field(default=128, ge=1, description="D, width of a token.")
    hidden_dim: int = Field(
        default=64, ge=8, multiple_of=8, description="Channels of the convolutions."
    )
    num_blocks: int = Field(default=2, ge=0, description="Residual blocks of two convolutions.")
    stride: Literal[1, 2, 3] = Field(
        default=1, description="Cells, down and across, that make one token."
    )
    direction: str | None = Field(
        default="direction", description="Field of the way it faces, 0..3; null: it is not told."
    )


class StateEncoder(SensorEncoder):
    """What a grid world shows, and the way that the agent faces, to tokens.

        cells [B,H,W,C] -> sum of embeddings of their kinds, place and direction
                        -> convolution (3x3 residual blocks) -> tokens [B,N,D] -> mean -> [B,F]

    N is H*W / stride^2, row by row. Whole numbers from 0 to 15 are told apart in each channel:
    MiniGrid's object, colour and state.

    Args:
        channels: C.
        cells: H and W.
        config, settings: see :class:`SensorEncoder`.
    """

    Config = GridConfig

    def __init__(
        self,
        channels: int = _CHANNELS,
        *,
        cells: tuple[int, int] = (7, 7),
        config: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(channels, config=config, **settings)
        config, hidden = self.config, self.config.hidden_dim
        self.dim, self.cells = config.token_dim, cells
        self.besides = () if config.direction is None else (config.direction,)
        self.kinds = nn.Embedding(channels * KINDS, hidden)
        self.places = embedding(hidden, *cells)
        self.directions = embedding(_DIRECTIONS, hidden)
        step = config.stride
        self.inputs = nn.Conv2d(hidden, hidden, 3, step, 1)
        self.blocks = nn.Sequential(*(ConvBlock(hidden) for _ in range(config.num_blocks)))
        self.tokens = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, self.dim))
        self.vector = nn.Linear(self.dim, self.output_dim)
        self.num_tokens = -(-cells[0] // step) * -(-cells[1] // step)

    @classmethod
    def of_shape(cls, config: SensorConfig, shape: Sequence[int]) -> Self:
        """See :meth:`SensorEncoder.of_shape`: [H,W,C]."""
        cls.require_rank(shape, _RANK)
        if shape[0] == -1:
            got = f"shape {tuple(shape)}"
            raise ConfigError("sensor encoder 'grid'", "as many rows of cells in each step", got)
        return cls(shape[2], cells=(shape[0], shape[1]), config=config)

    def encode(
        self, readings: Tensor, mask: Tensor | None = None, direction: Tensor | None = None
    ) -> Sensed:
        """See :meth:`SensorEncoder.encode`.

        Args:
            readings: cells [B,H,W,C].
            mask: there is none.
            direction: the way it faces, 0..3 [B]; None: nobody knows.
        """
        channels = torch.arange(self.channels, device=readings.device) * KINDS
        kinds = readings.long().clamp(0, KINDS - 1) + channels
        flat = functional.embedding_bag(kinds.flatten(0, 2), self.kinds.weight, mode="sum")
        hidden = flat.view(*kinds.shape[:3], -1).permute(0, 3, 1, 2) + self.places
        if direction is not None:
            facing = direction.long().clamp(0, _DIRECTIONS - 1).reshape(-1)
            hidden = hidden + self.directions[facing][:, :, None, None]
        maps = self.blocks(self.inputs(hidden))
        tokens = self.tokens(maps.flatten(2).transpose(1, 2))
        return Sensed(self.vector(tokens.mean(1)), Tokens.full(tokens))


class ConvBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3 each, the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, outer = (nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))
        init_identity(outer)
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), inner, nn.GroupNorm(8, width), nn.SiLU(), outer
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B,width,H,W] to the same."""
        found: Tensor = self.layers(maps)
        return maps + found

"""Cells of a grid world to tokens.

Shapes: B batch, X Y cells, C their channels, N tokens, D width, F features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.attention import Attention
from teamvla.models.encoders.base import TextEncoder
from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder
from teamvla.models.features import Sensed, Tokens
from teamvla.models.initialization import embedding

_LOG = logging.getLogger(__name__)

#: kinds that a channel of a cell can tell apart: MiniGrid has 11 of things, 6 colours, 4 states
KINDS = 16
#: MiniGrid's kind of the agent in a map of the world
AGENT = 10
#: ways to face
_DIRECTIONS = 4
_RANK, _CHANNELS = 3, 3
#: numbers of a token that are kept where they stand side by side
_KEPT = 16
#: attention heads by which cells look at words
_HEADS = 4


class GridConfig(SensorConfig):
    """Settings of :class:`StateEncoder`."""

    type: Literal["grid"] = Field(default="grid", description="Cells of a grid world.")
    scale: None = Field(default=None, description="There is none: kinds are no quantities.")
    token_dim: int = Field(default=128, ge=1, description="D, width of a token.")
    hidden_dim: int = Field(
        default=64, ge=8, multiple_of=8, description="Channels of the convolutions."
    )
    cell_dim: int = Field(
        default=64,
        ge=4,
        multiple_of=4,
        description="Numbers that a cell is embedded in; fewer make large maps cheaper.",
    )
    num_blocks: int = Field(default=2, ge=0, description="Residual blocks of two convolutions.")
    stride: Literal[1, 2, 3] = Field(
        default=1, description="Cells, down and across, that make one token."
    )
    pooling: Literal["mean", "flatten"] = Field(
        default="mean",
        description="How tokens become the feature vector: their mean, or side by side, a few "
        "numbers of each, through an MLP, which keeps what stands where.",
    )
    direction: str | None = Field(
        default="direction", description="Field of the way it faces, 0..3; null: it is not told."
    )
    centred: bool = Field(
        default=False,
        description="Whether a map that shows the agent is moved and turned so that it is in the "
        "middle and faces up; direction must be told.",
    )

    @model_validator(mode="after")
    def _can_be_turned(self) -> Self:
        if self.centred and self.direction is None:
            raise ValueError("centred goes with a direction")
        return self


class StateEncoder(SensorEncoder):
    """What a grid world shows, and the way that the agent faces, to tokens.

        cells [B,X,Y,C] -> sum of embeddings of their kinds -> (attention to the words)
          -> with place and direction -> 3x3 residual blocks -> tokens [B,N,D] -> mean -> [B,F]

    N is X*Y / stride^2. Whole numbers from 0 to 15 are told apart in each channel: MiniGrid's
    object, colour and state. As there, the first axis is x, to the right, and the second y, down.
    A map of the world may be ``centred`` on the agent first: where a thing lies from it is then
    where it stands in the map, of 2 max(X, Y) - 1 cells a side.

    In a policy that reads instructions each cell looks at their words, before anything mixes the
    cells: afterwards what is asked for is hardly found any more.

    Args:
        channels: C.
        cells: X and Y.
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
        config, hidden, own = self.config, self.config.hidden_dim, self.config.cell_dim
        self.dim, self.shown = config.token_dim, cells
        side = 2 * max(cells) - 1
        cells = (side, side) if config.centred else cells
        self.besides = () if config.direction is None else (config.direction,)
        self.kinds = embedding(channels * KINDS, own)
        self.places = embedding(*cells, own)
        self.directions = embedding(_DIRECTIONS, own)
        step = config.stride
        self.inputs = nn.Conv2d(own, hidden, 3, step, 1)
        self.blocks = nn.Sequential(*(ConvBlock(hidden) for _ in range(config.num_blocks)))
        self.tokens = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, self.dim))
        self.num_tokens = -(-cells[0] // step) * -(-cells[1] // step)
        self.vector = self._pool()
        self._looked = False

    @classmethod
    def of_shape(cls, config: SensorConfig, shape: Sequence[int]) -> Self:
        """See :meth:`SensorEncoder.of_shape`: [X,Y,C]."""
        cls.require_rank(shape, _RANK)
        if shape[0] == -1:
            got = f"shape {tuple(shape)}"
            raise ConfigError("sensor encoder 'grid'", "as many rows of cells in each step", got)
        return cls(shape[2], cells=(shape[0], shape[1]), config=config)

    def listen_to(self, text: TextEncoder) -> None:
        """See :meth:`SensorEncoder.listen_to`."""
        own = self.config.cell_dim
        self.alone = nn.LayerNorm(own)
        self.words, self.matched = Attention(own, _HEADS, text.dim), nn.Linear(own, own)
        self.listens = True

    def encode(
        self,
        readings: Tensor,
        mask: Tensor | None = None,
        direction: Tensor | None = None,
        words: Tokens | None = None,
    ) -> Sensed:
        """See :meth:`SensorEncoder.encode`.

        Args:
            readings: cells [B,X,Y,C].
            mask: there is none.
            direction: the way it faces, 0..3 [B]; None: nobody knows.
            words: of the instruction, if it listens.
        """
        facing = readings.new_zeros(len(readings)) if direction is None else direction.reshape(-1)
        facing = facing.long().clamp(0, _DIRECTIONS - 1)
        if self.config.centred:
            readings = self._centred(readings, facing)
        cells = self._embedded(readings) + self.places + self.directions[facing][:, None, None]
        if words is not None:
            cells = self._looked_for(cells, words)
        maps = self.blocks(self.inputs(cells.permute(0, 3, 1, 2)))
        tokens = self.tokens(maps.flatten(2).transpose(1, 2))
        pooled = tokens.mean(1) if self.config.pooling == "mean" else tokens
        return Sensed(self.vector(pooled), Tokens.full(tokens))

    def _embedded(self, readings: Tensor) -> Tensor:
        """Cells [B,X,Y,C] to the sum of the embeddings of their channels [B,X,Y,cell_dim]."""
        channels = torch.arange(self.channels, device=readings.device) * KINDS
        kinds = readings.long().clamp(0, KINDS - 1) + channels
        # A product: the backward pass of an embedding would sort all cells of the batch.
        marks = self.kinds.new_zeros(*kinds.shape[:3], len(self.kinds))
        found: Tensor = marks.scatter_(-1, kinds, 1.0) @ self.kinds
        return found

    def _looked_for(self, cells: Tensor, words: Tokens) -> Tensor:
        """Cells [B,X,Y,cell_dim] that know whether the words name them."""
        seen = self.alone(cells).flatten(1, 2)  # they are small beside words, which are normed
        seen = seen + self.words(seen, words.values, words.mask[:, None, None])
        found = seen + functional.silu(self.matched(seen))
        return torch.reshape(found, cells.shape)

    def _pool(self) -> nn.Module:
        if self.config.pooling == "mean":
            return nn.Linear(self.dim, self.output_dim)
        return nn.Sequential(
            nn.Linear(self.dim, _KEPT),
            nn.Flatten(),
            nn.Linear(self.num_tokens * _KEPT, 2 * self.output_dim),
            nn.SiLU(),
            nn.Linear(2 * self.output_dim, self.output_dim),
        )

    def _centred(self, readings: Tensor, facing: Tensor) -> Tensor:
        """Cells [B,X,Y,C] as the agent sees them [B,S,S,C]: 0 beyond the map, it faces up."""
        width, height = self.shown
        is_agent = (readings[..., 0] == AGENT).flatten(1)
        at = is_agent.long().argmax(1)
        x, y = (at // height)[:, None, None], (at % height)[:, None, None]
        reach = torch.arange(1 - max(self.shown), max(self.shown), device=at.device)
        right, ahead = reach[:, None], -reach
        # Facing 0..3 is right, down, left, up: a quarter turn each.
        cos = ((facing == 0).long() - (facing == 2).long())[:, None, None]
        sin = ((facing == 1).long() - (facing == 3).long())[:, None, None]
        x, y = x + cos * ahead - sin * right, y + sin * ahead + cos * right
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        # Without an agent there is nothing to see.
        inside = inside & self._shows(is_agent)[:, None, None]
        places = (x.clamp(0, width - 1) * height + y.clamp(0, height - 1)).flatten(1)
        cells = readings.flatten(1, 2)
        seen = cells.gather(1, places.unsqueeze(-1).expand(-1, -1, cells.shape[-1]))
        return seen.view(*x.shape, -1) * inside.unsqueeze(-1)

    def _shows(self, is_agent: Tensor) -> Tensor:
        """Which maps [B,X*Y] show the agent, bool [B]; a warning if the first ones do not."""
        shown = is_agent.any(1)
        if self.training and not self._looked:
            self._looked = True
            if not bool(shown.any()):
                _LOG.warning(
                    "sensor encoder grid, centred: expected a map of the world with the agent in "
                    "it, got %d without, of which nothing is seen: take one that shows it, such "
                    "as of minigrid.wrappers:FullyObsWrapper, or centred: false",
                    len(shown),
                )
        return shown


class ConvBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3 each.

    Not the identity at first: without a nonlinearity a mean over cells hardly tells what stands
    where.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, outer = (nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), inner, nn.GroupNorm(8, width), nn.SiLU(), outer
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B,width,H,W] to the same."""
        found: Tensor = self.layers(maps)
        return maps + found

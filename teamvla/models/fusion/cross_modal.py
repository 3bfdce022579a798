"""Fusion by attention across modalities: each asks all the others.

Shapes: B batch, N tokens of all modalities, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.models.attention import Attention, AttentionSettings
from teamvla.models.blocks import ResidualBlock
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig, named
from teamvla.models.fusion.tokens import SUMMARY, TokenFusion, joined
from teamvla.models.initialization import embedding, init_transformer


class CrossModalConfig(AttentionSettings, FusionConfig):
    """Settings of :class:`CrossModalFusion`."""

    type: Literal["cross_modal"] = Field(
        default="cross_modal", description="Each modality attends to all the others."
    )
    embed_dim: int = Field(default=128, ge=1, description="Width of a token.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / embed_dim.")
    num_layers: int = Field(default=2, ge=1, description="Blocks of attention across modalities.")
    num_queries: int = Field(default=4, ge=1, description="Learned queries that sum up.")
    num_blocks: int = Field(default=2, ge=0, description="Residual blocks on what they found.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate behind each part of a block.")


class CrossModalBlock(nn.Module):
    """Pre-norm block: x + attention(norm x) to the other modalities' tokens, then + MLP.

    The same weights for all: what a token comes from is told by its embedding.

    Args:
        width: D.
        num_heads: divides ``width``.
        mlp_ratio: hidden width of the MLP / D.
        dropout: rate behind each of its parts.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float = 2.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_attention, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens [B,N,D] to tokens [B,N,D].

        Args:
            seen: bool [B,1,N,N], True where a token may look at another.
        """
        normed = self.norm_attention(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, seen))
        mixed: Tensor = self.dropout(self.mlp(self.norm_mlp(tokens)))
        return tokens + mixed


class PooledQueries(nn.Module):
    """Learned queries that look at all tokens; what they find, side by side, is summed up.

        Q queries -> attention to the tokens [B,Q*D] -> residual blocks -> linear -> norm [B,D]

    Args:
        width: D.
        num_heads: divides ``width``.
        num_queries: Q.
        num_blocks: residual blocks.
        dropout: rate inside each.
    """

    def __init__(
        self, width: int, num_heads: int, num_queries: int, num_blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.queries = embedding(1, num_queries, width)
        self.attention = Attention(width, num_heads)
        found = num_queries * width
        blocks = [ResidualBlock(found, dropout) for _ in range(num_blocks)]
        self.trunk = nn.Sequential(*blocks, nn.Linear(found, width), nn.LayerNorm(width))

    def forward(self, tokens: Tokens, asking: Tensor) -> Tensor:
        """The summary [B,D] of tokens [B,N,D].

        Args:
            asking: [B,1,D], added to every query.
        """
        found = self.attention(self.queries + asking, tokens.values, tokens.mask[:, None, None])
        summary: Tensor = self.trunk(found.flatten(1))
        return summary


class CrossModalFusion(TokenFusion):
    """Every modality attends to all the others, and learned queries sum up.

        pictures, words, state, sensors -> tokens of D -> blocks: each token looks at all tokens
        of other modalities -> norm -> Q queries attend to all -> summary [B,D]

    A modality that is alone looks at itself. Features: the summary, and all tokens.

    Without encoders, as ``CrossModalFusion(feature_dim=256, num_heads=8)``, it is a module for
    tensors: ``fusion(vision, lidar, radar)`` of tokens [B,N,feature_dim] each, by position or by
    name, gives what becomes of the first [B,N,feature_dim].

    Args: see :class:`TokenFusion`.
    """

    Config = CrossModalConfig

    def build(self, config: CrossModalConfig) -> None:
        """See :meth:`TokenFusion.build`."""
        width, heads = self.dim, config.num_heads
        self.blocks = nn.ModuleList(
            CrossModalBlock(width, heads, config.mlp_ratio, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.pool = PooledQueries(
            width, heads, config.num_queries, config.num_blocks, config.dropout
        )
        init_transformer(self.blocks)

    def forward(
        self, seen: Modalities | Tensor | None = None, *more: Tensor, **others: Tensor
    ) -> Any:
        """See :meth:`Fusion.forward`; or of tokens, see :func:`named`, what becomes of the first.

        Raises:
            ContractError: it cannot be told of what the tokens are.
        """
        if isinstance(seen, Modalities):
            parts = self.parts(seen)
            summary = parts.pop(SUMMARY)
            tokens = self.exchanged(parts)
            return Features(self.pool(tokens, summary.values), tokens)
        given = named(() if seen is None else (seen, *more), others)
        parts = {name: Tokens.full(tokens) for name, tokens in given.items()}
        first = next(iter(given.values())).shape[1]
        return self.exchanged(parts).values[:, :first]

    def exchanged(self, parts: Mapping[str, Tokens]) -> Tokens:
        """All tokens in a row, after they have looked at each other."""
        tokens = joined(parts.values())
        seen = across(parts)
        values = tokens.values
        for block in self.blocks:
            values = block(values, seen)
        return Tokens(self.norm(values), tokens.mask)


def across(parts: Mapping[str, Tokens]) -> Tensor:
    """bool [B,1,N,N]: who may look at whom, tokens of the other modalities.

    Where nothing of them is there, a token looks at its own modality.
    """
    counts = [part.values.shape[1] for part in parts.values()]
    mask = torch.cat([part.mask for part in parts.values()], 1)[:, None, None]
    kinds = torch.cat(
        [mask.new_full((n,), kind, dtype=torch.long) for kind, n in enumerate(counts)]
    )
    seen = mask & (kinds[:, None] != kinds)
    return seen | (mask & ~seen.any(-1, keepdim=True))

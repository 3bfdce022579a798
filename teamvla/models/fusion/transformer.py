"""Fusion by a transformer over the tokens of everything that was sensed.

Shapes: B batch, V cameras, N tokens of a picture, L of an instruction, M all tokens, D width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.tokens import TokenFusion, joined
from teamvla.models.initialization import init_transformer


class TransformerFusionConfig(AttentionSettings, FusionConfig):
    """Settings of :class:`TransformerFusion`."""

    type: Literal["transformer"] = Field(
        default="transformer", description="Attention among all tokens."
    )
    num_layers: int = Field(default=2, ge=1, description="Transformer blocks.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Rate behind each part of a block.")


class TransformerFusion(TokenFusion):
    """Every token looks at every other, whatever it comes from.

        [summary | camera 0: N tokens | camera 1: N tokens | ... | words: L | state
         | sensor 0: vector, tokens | ...] -> blocks

    Where the vision encoder has a CLS token, with one camera it is that token which asks, and
    is the result. Features: the summary, and all tokens with their mask.
    """

    Config = TransformerFusionConfig

    def build(self, config: TransformerFusionConfig) -> None:
        """See :meth:`TokenFusion.build`."""
        self.blocks = nn.ModuleList(
            TransformerBlock(self.dim, config.num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(self.dim)
        init_transformer(self)

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        tokens = joined(self.parts(seen).values())
        values = tokens.values
        # Without padding attention needs no mask, and is faster.
        padded = seen.text is not None or seen.pictures_mask is not None or bool(seen.sensors)
        for block in self.blocks:
            values = block(values, tokens.mask if padded else None)
        values = self.norm(values)
        return Features(values[:, 0], Tokens(values, tokens.mask))

"""Fusion by pooling: tokens of everything side by side, and their means.

Shapes: B batch, M all tokens, D width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from teamvla.models.features import Features, Modalities
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.tokens import SUMMARY, TokenFusion, joined


class PooledConfig(FusionConfig):
    """Settings of :class:`PooledFusion`."""

    type: Literal["pooled"] = Field(default="pooled", description="Tokens, and their mean.")
    embed_dim: int = Field(default=128, ge=1, description="D, width of a token.")


class PooledFusion(TokenFusion):
    """Leaves it to the head to look at the tokens; the summary is what is plainest, their mean.

        [camera 0: N tokens | ... | words: L | state | sensor 0: vector, tokens | ...]
        summary: norm(sum over the modalities of the mean of their tokens, and sensors' vectors)

    A modality counts alike however many tokens it has. Nothing here connects the words with the
    rest: an encoder that listens does (:class:`StateEncoder`), or a head that looks at tokens.
    """

    Config = PooledConfig

    def build(self, config: PooledConfig) -> None:
        """See :meth:`TokenFusion.build`."""
        self.norm = nn.LayerNorm(self.dim)

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        parts = self.parts(seen)
        total: Tensor = parts.pop(SUMMARY).values[:, 0]
        for name, part in parts.items():
            total = total + part.mean()
            if name in self.from_sensors:  # its vector is but one of many tokens
                total = total + part.values[:, 0]
        return Features(self.norm(total), joined(parts.values()))

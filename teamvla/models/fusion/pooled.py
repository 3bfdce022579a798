"""Fusion by pooling: tokens of everything side by side, and their means.

Shapes: B batch, M all tokens, D width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.film import FilmBlock
from teamvla.models.fusion.tokens import SUMMARY, TEXT, TokenFusion, joined


class PooledConfig(FusionConfig):
    """Settings of :class:`PooledFusion`."""

    type: Literal["pooled"] = Field(default="pooled", description="Tokens, and their mean.")
    embed_dim: int = Field(default=128, ge=1, description="D, width of a token.")
    film_blocks: int = Field(
        default=2, ge=0, description="Blocks by which the words modulate all other tokens."
    )


class PooledFusion(TokenFusion):
    """Leaves it to the head to look at the tokens; the summary is what is plainest, their mean.

        words: mean -> FiLM of the others' tokens
        [camera 0: N tokens | ... | words: L | state | sensor 0: vector, tokens | ...]
        summary: norm(sum over the modalities of the mean of their tokens, and sensors' vectors)

    A modality counts alike however many tokens it has. Where there are words, they modulate
    everything else before (:class:`FilmBlock`): a head alone hardly learns to connect them.
    """

    Config = PooledConfig

    def build(self, config: PooledConfig) -> None:
        """See :meth:`TokenFusion.build`."""
        self.norm = nn.LayerNorm(self.dim)
        count = config.film_blocks if self.reads else 0
        self.film = nn.ModuleList(FilmBlock(self.dim, self.dim) for _ in range(count))

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        parts = self.parts(seen)
        total: Tensor = parts.pop(SUMMARY).values[:, 0]
        if TEXT in parts:
            said = parts[TEXT].mean()
            others = {name: part for name, part in parts.items() if name != TEXT}
            parts |= {name: self._modulated(part, said) for name, part in others.items()}
        for name, part in parts.items():
            total = total + part.mean()
            if name in self.from_sensors:  # its vector is but one of many tokens
                total = total + part.values[:, 0]
        return Features(self.norm(total), joined(parts.values()))

    def _modulated(self, part: Tokens, said: Tensor) -> Tokens:
        values = part.values
        if values.shape[1] > 1:  # the norm over all places makes nothing of a single one
            for block in self.film:
                values = block(values, said, part.mask)
        return Tokens(values, part.mask)

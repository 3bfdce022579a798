"""Fusion by a transformer over the tokens of everything that was sensed.

Shapes: B batch, V cameras, N tokens of a picture, L of an instruction, M all tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.encoders.base import TextEncoder, VisionBackbone
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import Fusion, FusionConfig
from teamvla.models.initialization import embedding, init_transformer


class TransformerFusionConfig(AttentionSettings, FusionConfig):
    """Settings of :class:`TransformerFusion`."""

    type: Literal["transformer"] = Field(
        default="transformer", description="Attention among all tokens."
    )
    num_layers: int = Field(default=2, ge=1, description="Transformer blocks.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Rate behind each part of a block.")


class TransformerFusion(Fusion):
    """Every token looks at every other, whatever it comes from.

        [summary | camera 0: N tokens | camera 1: N tokens | ... | words: L | state] -> blocks

    Each part goes through a linear layer of its own if it is not D wide. Tokens of pictures
    get a learned embedding of their camera and one of their place in the picture, words one
    that says that they are words; the state's is the bias of its layer. The summary is a
    learned token; where the vision encoder has a CLS token, the mean of all cameras' is added
    to it, so that with one camera it is that CLS token which asks, and is the result.
    Features: the summary, and all tokens with their mask.
    """

    Config = TransformerFusionConfig

    def __init__(
        self,
        config: TransformerFusionConfig,
        vision: VisionBackbone | None,
        num_cameras: int,
        text: TextEncoder | None,
        state_dim: int,
    ) -> None:
        super().__init__(config, vision, num_cameras, text, state_dim)
        self.dim = width = config.embed_dim
        self.summary = embedding(1, 1, width)
        self.has_cls = vision is not None and vision.has_cls
        if vision is not None:
            self.from_pictures = _projection(vision.dim, width)
            self.cameras = embedding(num_cameras, 1, width)
            self.places = embedding(vision.num_tokens, width)
        if text is not None:
            self.from_text = _projection(text.dim, width)
            self.words = embedding(width)
        if state_dim:
            self.from_state = nn.Linear(state_dim, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        init_transformer(self)

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        parts = self._parts(seen)
        values = torch.cat([part.values for part in parts], dim=1)
        mask = torch.cat([part.mask for part in parts], dim=1)
        for block in self.blocks:
            # Only words are ever padded: without them attention needs no mask, and is faster.
            values = block(values, None if seen.text is None else mask)
        values = self.norm(values)
        return Features(values[:, 0], Tokens(values, mask))

    def _parts(self, seen: Modalities) -> list[Tokens]:
        parts = []
        summary = self.summary
        if seen.pictures is not None:
            pictures = self.from_pictures(seen.pictures)
            if self.has_cls:
                summary = summary + pictures[:, :, 0].mean(1, keepdim=True)
            pictures = pictures + self.cameras + self.places
            parts.append(Tokens.full(pictures.flatten(1, 2)))
        if seen.text is not None:
            parts.append(Tokens(self.from_text(seen.text.values) + self.words, seen.text.mask))
        if seen.state is not None:
            parts.append(Tokens.full(self.from_state(seen.state).unsqueeze(1)))
        rows = parts[0].values.shape[0]
        return [Tokens.full(summary.expand(rows, -1, -1)), *parts]


def _projection(source: int, width: int) -> nn.Module:
    return nn.Identity() if source == width else nn.Linear(source, width)

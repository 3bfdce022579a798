"""Pictures to tokens by a vision transformer.

Shapes: B batch, C colours, H W pixels, P side of a patch, N patches of a picture, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.errors import ConfigError
from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.encoders.base import EncoderConfig, VisionBackbone
from teamvla.models.initialization import embedding, init_transformer


class ViTConfig(AttentionSettings, EncoderConfig):
    """Settings of :class:`VisionEncoder`."""

    type: Literal["vit"] = Field(default="vit", description="Vision transformer.")
    patch_size: int = Field(default=16, ge=1, description="Side of a patch, pixels.")
    num_layers: int = Field(default=4, ge=1, description="Transformer blocks.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Rate behind each part of a block.")


class PatchEmbedding(nn.Module):
    """Cuts pictures into patches that do not overlap, and tells each its place.

        [B,C,H,W] -> P x P convolution of stride P -> + learned position of each -> [B,N,D]

    Args:
        image_size: H and W, or one number for both.
        patch_size: P, which divides them.
        in_channels: C.
        embed_dim: D.

    Raises:
        ConfigError: the patch does not divide the picture.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 256,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        _check_divides(size, patch_size)
        self.image_size = size
        self.num_patches = (size[0] // patch_size) * (size[1] // patch_size)
        self.projection = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
        self.positions = embedding(self.num_patches, embed_dim)
        init_transformer(self)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B,C,H,W] to patches [B,N,D], row by row.

        Raises:
            ConfigError: they are of another size than it was made for.
        """
        if images.shape[-2:] != self.image_size:
            raise ConfigError(
                "pictures", _pixels(self.image_size), _pixels((images.shape[-2], images.shape[-1])),
                "A vision transformer learns a position for each patch: give pictures of its size.",
            )  # fmt: skip
        patches: Tensor = self.projection(images).flatten(2).transpose(1, 2)
        return patches + self.positions


class VisionEncoder(VisionBackbone):
    """ViT (Dosovitskiy et al. 2020, arXiv 2010.11929): pre-norm blocks, GELU.

        [B,C,H,W] -> patches [B,N,D] -> [CLS, patch, patch, ...] -> blocks -> norm [B,N+1,D]

    The first token sums the picture up; pooling takes it.
    """

    Config = ViTConfig
    has_cls: ClassVar[bool] = True

    def __init__(self, config: ViTConfig, picture: tuple[int, int, int]) -> None:
        super().__init__(config, picture)
        width, channels = config.embed_dim, picture[0]
        self.patches = PatchEmbedding(picture[1:], config.patch_size, channels, width)
        self.dim, self.features = width, width
        self.num_tokens = self.patches.num_patches + 1
        self.cls = embedding(1, 1, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        init_transformer(self)

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`VisionBackbone.forward`; the CLS token, then the patches row by row."""
        patches = self.patches(images)
        cls = self.cls.expand(patches.shape[0], -1, -1)
        tokens = self.dropout(torch.cat([cls, patches], dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def pooling(self) -> nn.Module:
        """The CLS token; nothing is learned there."""
        return FirstToken()


class FirstToken(nn.Module):
    """The first of a picture's tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,N,D] to [...,D]."""
        return tokens[..., 0, :]


def _check_divides(size: tuple[int, int], patch: int) -> None:
    if not any(side % patch for side in size):
        return
    fitting = [p for p in range(1, min(size) + 1) if not any(side % p for side in size)]
    smaller = max((p for p in fitting if p < patch), default=None)
    larger = min((p for p in fitting if p > patch), default=None)
    nearest = " or ".join(str(p) for p in (smaller, larger) if p is not None)
    raise ConfigError(
        "patch_size", f"a divisor of the picture's {_pixels(size)}", str(patch),
        f"The nearest that work are {nearest}; or take pictures of another size.",
    )  # fmt: skip


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"

"""Vision towers of published models, with everything that their weights hold.

Shapes: B batch, V cameras, H W pixels, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from teamvla.config import Settings
from teamvla.models.attention import Attention, require_heads
from teamvla.models.initialization import embedding, init_transformer

Colour = tuple[float, float, float]


class TowerSettings(Settings):
    """Sizes of a :class:`Tower`, in the words of a transformers ``vision_config``."""

    image_size: int = Field(default=64, ge=1, description="Side of the pictures it takes, pixels.")
    patch_size: int = Field(default=16, ge=1, description="Side of a patch, pixels.")
    hidden_size: int = Field(default=64, ge=1, description="Width of a token.")
    intermediate_size: int = Field(default=128, ge=1, description="Hidden width of the MLPs.")
    num_hidden_layers: int = Field(default=2, ge=2, description="Blocks.")
    num_attention_heads: int = Field(default=4, ge=1, description="Heads; divides hidden_size.")
    class_token: bool = Field(default=False, description="Whether a CLS token goes first.")
    registers: int = Field(default=0, ge=0, description="Tokens that belong to no patch.")
    layer_scale: bool = Field(default=False, description="Whether branches have learned scales.")
    pooled: bool = Field(
        default=False, description="Whether the weights have an attention pooling, unused here."
    )
    activation: Literal["gelu", "gelu_tanh"] = Field(
        default="gelu", description="Of the MLPs: exact, or by its tanh approximation."
    )
    mean: Colour = Field(default=(0.5, 0.5, 0.5), description="Of the colours, 0..1.")
    std: Colour = Field(default=(0.5, 0.5, 0.5), description="Of the colours, 0..1.")

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        require_heads(self.num_attention_heads, "hidden_size", self.hidden_size)
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size must divide image_size {self.image_size}")
        return self

    @property
    def num_patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


class TowerBlock(nn.Module):
    """x + scale attention(norm x), then x + scale MLP(norm x)."""

    def __init__(self, config: TowerSettings) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _mlp(config, hidden)
        self.scale_attention = self.scale_mlp = None
        if config.layer_scale:
            # Published ones were trained from 1e-5; from scratch few blocks need no such care.
            self.scale_attention = nn.Parameter(torch.ones(width))
            self.scale_mlp = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,N,D] to [B,N,D]."""
        normed = self.norm_attention(tokens)
        tokens = tokens + _scaled(self.attention(normed, normed), self.scale_attention)
        return tokens + _scaled(self.mlp(self.norm_mlp(tokens)), self.scale_mlp)


class AttentionPooling(nn.Module):
    """The weights of SigLIP's pooling, which no policy runs: they are kept to be written again."""

    def __init__(self, config: TowerSettings) -> None:
        super().__init__()
        self.latent = embedding(1, 1, config.hidden_size)
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = _mlp(config, config.intermediate_size)


class Tower(nn.Module):
    """ViT (Dosovitskiy et al. 2020, arXiv 2010.11929) as DINOv2 and SigLIP have it.

        pictures [B,3,H,W] -> patches + positions -> [CLS, registers, patches] -> blocks -> patches

    DINOv2: Oquab et al. 2023, arXiv 2304.07193; its registers: Darcet et al. 2023, arXiv
    2309.16588. SigLIP: Zhai et al. 2023, arXiv 2303.15343.

    Args:
        config: sizes.
    """

    supports_gradient_checkpointing = True

    def __init__(self, config: TowerSettings) -> None:
        super().__init__()
        self.config, self.checkpointed = config, False
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(TowerBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pooling = AttentionPooling(config) if config.pooled else None
        init_transformer(self)
        self.positions = embedding(1, config.num_patches, width)
        self.cls = embedding(1, 1, width) if config.class_token else None
        self.registers = embedding(1, config.registers, width) if config.registers else None

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in 0..1, of the size it takes, to normed patches [B,N,D]."""
        normed: Tensor = self.norm(self._run(pictures, len(self.blocks)))
        return normed[:, self._prefix :]

    def penultimate(self, pictures: Tensor) -> Tensor:
        """Patches [B,N,D] as they leave the second-to-last block, without a norm."""
        return self._run(pictures, len(self.blocks) - 1)[:, self._prefix :]

    def freeze_unused(self) -> None:
        """Freeze what :meth:`penultimate` does not run; it stays in the weights."""
        for part in (self.blocks[-1], self.norm, self.pooling):
            if part is not None:
                part.requires_grad_(False)

    def gradient_checkpointing_enable(self, settings: Mapping[str, Any] | None = None) -> None:
        """Compute the blocks again in the backward pass; spelt as in transformers."""
        self.checkpointed = True

    def _run(self, pictures: Tensor, blocks: int) -> Tensor:
        mean, std = (
            pictures.new_tensor(colour).reshape(3, 1, 1)
            for colour in (self.config.mean, self.config.std)
        )
        patches: Tensor = self.patches((pictures - mean) / std).flatten(2).transpose(1, 2)
        tokens = patches + self.positions
        first = [t for t in (self.cls, self.registers) if t is not None]
        tokens = torch.cat([*(t.expand(tokens.shape[0], -1, -1) for t in first), tokens], dim=1)
        for block in self.blocks[:blocks]:
            if self.checkpointed and torch.is_grad_enabled():
                tokens = cast(Tensor, checkpoint(block, tokens, use_reentrant=False))
            else:
                tokens = block(tokens)
        return tokens

    @property
    def _prefix(self) -> int:
        """Tokens before the patches."""
        return self.config.class_token + self.config.registers


def _mlp(config: TowerSettings, hidden: int) -> nn.Sequential:
    activation = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
    width = config.hidden_size
    return nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale

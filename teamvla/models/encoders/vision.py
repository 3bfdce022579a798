"""Pictures to features: a small convolutional encoder shared by all cameras.

Shapes: B batch, V cameras, C colours, H W pixels, D features.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings

_GROUPS = 8


class VisionConfig(Settings):
    """Settings of the convolutional encoder."""

    width: int = Field(
        default=16,
        ge=8,
        multiple_of=4,
        description="Channels of the first layer, half of the others'.",
    )
    reduced: int = Field(default=32, ge=1, description="Channels behind the 1x1 convolution.")
    grid: int = Field(default=8, ge=1, description="Side of the feature map that is flattened.")
    features: int = Field(default=128, ge=1, description="Length of a picture's feature vector.")


class GroupNorm(nn.GroupNorm):
    """Group normalisation that computes in float32 under autocast.

    Besides being exact, that is several times faster: PyTorch's CPU kernel for bfloat16
    channels-last maps takes longer than the convolutions around it.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] to [B,C,H,W] of the same dtype."""
        return super().forward(maps.float()).to(maps.dtype)


class ConvEncoder(nn.Module):
    """Four convolutions that divide the resolution by 8, then one linear layer.

        [B,3,H,W] -> k5 s2 -> k3 s2 -> k3 s2 -> k3 -> 1x1 -> grid x grid -> [B,features]

    The places of the feature map stay apart until the linear layer, which keeps where
    things are; a picture that is not 8 x grid pixels wide is averaged onto the grid.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid, self.features = config.grid, config.features
        narrow, wide = config.width, 2 * config.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, narrow, 5, 2, 2),
            nn.ReLU(inplace=True),
            *_block(narrow, wide, stride=2),
            *_block(wide, wide, stride=2),
            *_block(wide, wide, stride=1),
            nn.Conv2d(wide, config.reduced, 1),
        )
        self.linear = nn.Linear(config.reduced * config.grid**2, config.features)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled pictures [B,3,H,W] to features [B,features]."""
        maps = self.convolutions(images)
        if maps.shape[-2:] != (self.grid, self.grid):
            maps = functional.adaptive_avg_pool2d(maps, self.grid)
        return functional.silu(self.linear(maps.flatten(1)))


def build_vision_encoder(config: VisionConfig) -> ConvEncoder:
    """An encoder with fresh weights."""
    return ConvEncoder(config)


def forward_vision(encoder: nn.Module, images: Tensor) -> Tensor:
    """Encode the pictures of one or several cameras with the same encoder.

    Args:
        encoder: what :func:`build_vision_encoder` gave.
        images: uint8 0..255 or float 0..1, [B,C,H,W] or [B,V,C,H,W]. Bytes become floats
            here, on the encoder's device, so that a quarter of the data is moved.

    Returns:
        [B,D] or [B,V,D].
    """
    flat = images.flatten(0, -4) if images.dim() > 4 else images
    features: Tensor = encoder(scale_images(flat))
    return features.reshape(*images.shape[:-3], -1)


def scale_images(images: Tensor) -> Tensor:
    """uint8 0..255 or float 0..1 to channels-last floats in [-1, 1]."""
    factor = 2 / 255 if images.dtype == torch.uint8 else 2.0
    floats = images.contiguous(memory_format=torch.channels_last).to(torch.float32)
    return floats.mul_(factor).sub_(1) if images.dtype == torch.uint8 else floats * factor - 1


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)
    return convolution, GroupNorm(_GROUPS, outputs), nn.ReLU(inplace=True)

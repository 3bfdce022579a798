"""Pictures to tokens: the default encoder, and how any is built and called.

Shapes: B batch, V cameras, C colours, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.encoders.base import EncoderConfig, VisionBackbone
from teamvla.models.registries import ENCODER_REGISTRY

#: side of a thumbnail, pixels
THUMBNAIL = 8


class ConvConfig(EncoderConfig):
    """Settings of :class:`ConvEncoder`."""

    type: Literal["cnn"] = Field(default="cnn", description="Four convolutions.")
    width: int = Field(
        default=16,
        ge=8,
        multiple_of=4,
        description="Channels of the first layer, half of the others'.",
    )
    reduced: int = Field(default=32, ge=1, description="Channels behind the 1x1 convolution.")
    stride: Literal[4, 8] = Field(
        default=8, description="What the resolution is divided by; 4 keeps finer places apart."
    )
    grid: int = Field(default=8, ge=1, description="Largest side of the feature map that is kept.")
    features: int = Field(default=128, ge=1, description="Length of a picture's feature vector.")


class GroupNorm(nn.GroupNorm):
    """Normalisation of eight groups of channels that computes in float32 under autocast.

    Besides being exact, that is several times faster: PyTorch's CPU kernel for bfloat16
    channels-last maps takes longer than the convolutions around it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(8, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] to [B,C,H,W] of the same dtype."""
        return super().forward(maps.float()).to(maps.dtype)


class FlattenPooling(nn.Module):
    """Tokens side by side through one linear layer: each place keeps weights of its own."""

    def __init__(self, num_tokens: int, dim: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_tokens * dim, features)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,N,D] to [...,features]."""
        return functional.silu(self.linear(tokens.flatten(-2)))


class ConvEncoder(VisionBackbone):
    """Four convolutions that divide the resolution by 8, or by 4 as ``stride`` says.

        [B,C,H,W] -> k5 s2 -> k3 s2 -> k3 s2 or s1 -> k3 -> 1x1 -> grid x grid tokens [B,N,reduced]

    The places of the feature map stay apart, which keeps where things are; a map that is
    larger than the grid is averaged onto it, a smaller one stays as it is.
    """

    Config = ConvConfig

    def __init__(self, config: ConvConfig, picture: tuple[int, int, int]) -> None:
        super().__init__(config, picture)
        rows, columns = (min(config.grid, -(-size // config.stride)) for size in picture[1:])
        self.side = (rows, columns)
        self.features = config.features
        self.middle = middle_of_first(picture[1] / rows, config.stride)
        self.dim, self.num_tokens = config.reduced, self.side[0] * self.side[1]
        narrow, wide = config.width, 2 * config.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(picture[0], narrow, 5, 2, 2),
            nn.ReLU(inplace=True),
            *_block(narrow, wide, stride=2),
            *_block(wide, wide, stride=config.stride // 4),
            *_block(wide, wide, stride=1),
            nn.Conv2d(wide, config.reduced, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`VisionBackbone.forward`; tokens by rows of the grid."""
        maps = self.convolutions(images)
        if maps.shape[-2:] != self.side:
            maps = functional.adaptive_avg_pool2d(maps, self.side)
        return as_tokens(maps)

    def pooling(self) -> nn.Module:
        """One linear layer over all places."""
        return FlattenPooling(self.num_tokens, self.dim, self.features)


def build_vision_encoder(
    config: EncoderConfig, picture: tuple[int, int, int] = (3, 64, 64)
) -> VisionBackbone:
    """An encoder with fresh weights, of the kind that ``config.type`` names.

    Args:
        config: settings.
        picture: channels, height and width of the pictures.

    Raises:
        RegistryError: there is no such encoder.
        ConfigError: it cannot take such pictures.
    """
    return ENCODER_REGISTRY.get(config.type)(config, picture)


def forward_vision(encoder: VisionBackbone, images: Tensor) -> Tensor:
    """Encode the pictures of one or several cameras with the same encoder.

    Args:
        encoder: what :func:`build_vision_encoder` gave.
        images: uint8 0..255 or float 0..1, [B,C,H,W] or [B,V,C,H,W]. Bytes become floats
            here, on the encoder's device, so that a quarter of the data is moved.

    Returns:
        Tokens [B,N,D] or [B,V,N,D].
    """
    flat = images.flatten(0, -4) if images.dim() > 4 else images
    tokens: Tensor = encoder(scale_images(flat))
    return tokens.reshape(*images.shape[:-3], *tokens.shape[-2:])


def scale_images(images: Tensor) -> Tensor:
    """uint8 0..255 or float 0..1 to channels-last floats in [-1, 1]."""
    factor = 2 / 255 if images.dtype == torch.uint8 else 2.0
    floats = images.contiguous(memory_format=torch.channels_last).to(torch.float32)
    return floats.mul_(factor).sub_(1) if images.dtype == torch.uint8 else floats * factor - 1


def thumbnails(images: Tensor) -> Tensor:
    """Pictures [...,C,H,W], as for :func:`forward_vision`, to [...,C,8,8] in [-1, 1]."""
    flat = scale_images(images.flatten(0, -4))
    small = functional.adaptive_avg_pool2d(flat, THUMBNAIL)
    return small.reshape(*images.shape[:-2], THUMBNAIL, THUMBNAIL)


def middle_of_first(pixels: float, stride: int) -> float:
    """:attr:`VisionBackbone.middle` behind convolutions whose padding is half their kernel.

    The first place of their map looks at the first pixel, not at the middle of its share.

    Args:
        pixels: side of a token.
        stride: of all convolutions together; a token may be the mean of several places.
    """
    return 0.5 - (stride - 1) / (2 * pixels)


def as_tokens(maps: Tensor) -> Tensor:
    """Feature maps [B,C,H,W] to tokens [B,H*W,C], row by row."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)
    return convolution, GroupNorm(outputs), nn.ReLU(inplace=True)

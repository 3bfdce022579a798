"""Pictures to tokens by a residual convolutional network.

Shapes: B batch, C colours, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.encoders.base import EncoderConfig, VisionBackbone
from teamvla.models.encoders.vision import (
    FlattenPooling,
    GroupNorm,
    as_tokens,
    middle_of_first,
)


class ResNetConfig(EncoderConfig):
    """Settings of :class:`ResNetEncoder`."""

    type: Literal["resnet"] = Field(default="resnet", description="Residual network.")
    width: int = Field(
        default=16,
        ge=8,
        multiple_of=8,
        description="Channels of the first stage; each further one has twice as many.",
    )
    layers: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 1, 1),
        min_length=1,
        max_length=8,
        description="Basic blocks of each stage; all but the first halve the resolution.",
    )
    grid: int = Field(default=8, ge=1, description="Largest side of the feature map that is kept.")
    pooling: Literal["flatten", "spatial_softmax"] = Field(
        default="flatten",
        description="flatten: all places through a linear layer; spatial_softmax: where each "
        "channel is brightest.",
    )
    features: int = Field(default=128, ge=1, description="Length of a picture's feature vector.")


class BasicBlock(nn.Module):
    """relu(x + norm(conv3(relu(norm(conv3 x))))), with a 1x1 convolution of x where sizes change.

    The basic block of He et al. (2015, arXiv 1512.03385), with GroupNorm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            GroupNorm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            GroupNorm(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[B,inputs,H,W] to [B,outputs,H/stride,W/stride]."""
        return functional.relu(self.residual(maps) + self.skip(maps))


class ResNetEncoder(VisionBackbone):
    """Residual network (He et al. 2015, arXiv 1512.03385) that keeps places apart.

        [B,C,H,W] -> k5 s2 -> stage (w) -> stage (2w, s2) -> stage (4w, s2) -> tokens [B,N,D]

    The cells of the last feature map are the tokens, row by row; a map that is larger than
    ``grid`` is averaged onto it. N = 64, D = 64 for 64 x 64 pixels by default.
    """

    Config = ResNetConfig

    def __init__(self, config: ResNetConfig, picture: tuple[int, int, int]) -> None:
        super().__init__(config, picture)
        widths = [config.width * 2**stage for stage in range(len(config.layers))]
        stages: list[nn.Module] = []
        inputs = config.width
        for stage, (width, blocks) in enumerate(zip(widths, config.layers, strict=True)):
            strides = [2 if stage else 1, *[1] * (blocks - 1)]
            stages += [BasicBlock(inputs if n == 0 else width, width, s)
                       for n, s in enumerate(strides)]  # fmt: skip
            inputs = width
        stem = nn.Conv2d(picture[0], config.width, 5, 2, 2)
        self.convolutions = nn.Sequential(stem, nn.ReLU(inplace=True), *stages)
        halvings = len(config.layers)
        self.side = tuple(min(config.grid, -(-size // 2**halvings)) for size in picture[1:])
        self.dim, self.num_tokens = inputs, self.side[0] * self.side[1]
        self.middle = middle_of_first(picture[1] / self.side[0], 2**halvings)
        self.features, self._pooling = config.features, config.pooling

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`VisionBackbone.forward`."""
        maps = self.convolutions(images)
        if maps.shape[-2:] != self.side:
            maps = functional.adaptive_avg_pool2d(maps, self.side)
        return as_tokens(maps)

    def pooling(self) -> nn.Module:
        """As ``config.pooling`` says."""
        if self._pooling == "spatial_softmax":
            return SpatialSoftmax((self.side[0], self.side[1]), self.dim, self.features)
        return FlattenPooling(self.num_tokens, self.dim, self.features)


class SpatialSoftmax(nn.Module):
    """Where each channel is brightest (Levine et al. 2016, arXiv 1504.00702).

        x_c = sum over places p of softmax_p(map_c / temperature) * place_p

    The expected places, two numbers in [-1, 1] for each channel, go through a linear layer:
    a vector that moves with what the channels have found.

    Args:
        side: rows and columns of the grid that the tokens are.
        dim: D channels.
        features: length of the vector.
    """

    places: Tensor

    def __init__(self, side: tuple[int, int], dim: int, features: int) -> None:
        super().__init__()
        rows, columns = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in side)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        self.register_buffer("places", grid.reshape(-1, 2), persistent=False)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.linear = nn.Linear(2 * dim, features)

    def points(self, tokens: Tensor) -> Tensor:
        """Tokens [...,N,D] to expected places (x to the right, y down) [...,D,2]."""
        maps = tokens.float().transpose(-1, -2) * self.log_temperature.neg().exp()
        return maps.softmax(-1) @ self.places

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,N,D] to [...,features]."""
        return functional.silu(self.linear(self.points(tokens).flatten(-2)))

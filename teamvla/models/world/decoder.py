"""What is seen, as one vector for the model; and back: what would be seen in a state.

Shapes: B rows (any leading dimensions), V cameras, C channels, H W, S state, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.world.layers import dense

#: side of the smallest map
_LEAST = 4


class SensesConfig(Settings):
    """Settings of :class:`ObservationEncoder` and :class:`ObservationDecoder`."""

    use_state: bool = Field(default=True, description="Whether the state is felt and predicted.")
    cameras: tuple[int, ...] | None = Field(
        default=None, description="Places of the cameras that are looked at; null: all; []: none."
    )
    picture_size: int = Field(
        default=32, ge=8, description="Side of a picture for the model, a power of two."
    )
    channels: int = Field(default=16, ge=1, description="Of the first convolution; then doubled.")
    targets: tuple[str, ...] = Field(
        default=(),
        description="Target signals of the contract that are predicted too: what matters, but is "
        "hard to find in pictures.",
    )
    hidden_dim: int = Field(default=128, ge=1, description="Width of the layers for numbers.")
    layers: int = Field(default=2, ge=1, description="Layers for numbers.")


def shrunk(images: Tensor, config: SensesConfig) -> Tensor:
    """Pictures [...,V,C,H,W] uint8 or 0..1 as [...,v*C,P,P] in -0.5..0.5, of the chosen cameras."""
    chosen = images if config.cameras is None else images[..., list(config.cameras), :, :, :]
    scaled = chosen.float() / 255 if images.dtype == torch.uint8 else chosen.float()
    flat = scaled.flatten(0, -4)
    size = (config.picture_size, config.picture_size)
    if flat.shape[-2:] != size:
        flat = functional.adaptive_avg_pool2d(flat, size)
    stacked = flat.reshape(*chosen.shape[:-4], -1, *size)
    return stacked - 0.5


class ObservationEncoder(nn.Module):
    """State and pictures to one vector; either may be absent.

    Args:
        config: what is looked at, and sizes.
        state_dim: S; 0: there is no state.
        picture_channels: of the cameras looked at, together; 0: no pictures.

    Raises:
        ConfigError: nothing is left, or pictures of a size that cannot be halved.
    """

    def __init__(self, config: SensesConfig, state_dim: int, picture_channels: int) -> None:
        super().__init__()
        if not (state_dim or picture_channels):
            raise ConfigError("model.senses", "a state or pictures to look at", "neither")
        self.state = dense(state_dim, config.hidden_dim, config.layers) if state_dim else None
        self.dim = config.hidden_dim if state_dim else 0
        self.pictures = None
        if picture_channels:
            widths = [picture_channels, *_widths(config)]
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(1, after), nn.SiLU()]
            self.pictures = nn.Sequential(*layers, nn.Flatten())
            self.dim += widths[-1] * _LEAST**2

    def forward(self, observed: Mapping[str, Tensor]) -> Tensor:
        """``state`` [...,S] normalised and ``image`` [...,c,P,P] to [...,dim]."""
        parts = []
        if self.state is not None:
            parts.append(self.state(observed["state"]))
        if self.pictures is not None:
            image = observed["image"]
            seen = self.pictures(image.flatten(0, -4))
            parts.append(seen.unflatten(0, image.shape[:-3]))
        return torch.cat(parts, dim=-1)


class ObservationDecoder(nn.Module):
    """Features of a state to the state and pictures that would be observed.

    Args:
        features: F.
        config, state_dim, picture_channels: as for :class:`ObservationEncoder`.
        targets: length of the targets, joined; 0: there are none.
    """

    def __init__(
        self,
        features: int,
        config: SensesConfig,
        state_dim: int,
        picture_channels: int,
        targets: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"state": state_dim, "targets": targets}
        #: decoders of the vectors that there are
        self.vectors = nn.ModuleDict(
            {
                name: dense(features, config.hidden_dim, config.layers, size)
                for name, size in sizes.items()
                if size
            }
        )
        self.pictures = None
        if picture_channels:
            widths = [*reversed(_widths(config))]
            layers: list[nn.Module] = [
                nn.Linear(features, widths[0] * _LEAST**2),
                nn.Unflatten(-1, (widths[0], _LEAST, _LEAST)),
            ]
            for before, after in pairwise(widths):
                layers += [
                    nn.SiLU(),
                    nn.ConvTranspose2d(before, after, 4, 2, 1),
                    nn.GroupNorm(1, after),
                ]
            layers += [nn.SiLU(), nn.ConvTranspose2d(widths[-1], picture_channels, 4, 2, 1)]
            self.pictures = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """``state`` [...,S] normalised, ``targets`` [...,G] as symlog, and ``image`` [...,c,P,P]
        in -0.5..0.5; those that there are."""
        seen = {name: vector(features) for name, vector in self.vectors.items()}
        if self.pictures is not None:
            flat = self.pictures(features.reshape(-1, features.shape[-1]))
            seen["image"] = flat.unflatten(0, features.shape[:-1])
        return seen


def _widths(config: SensesConfig) -> list[int]:
    """Channels behind each halving, down to maps of 4 by 4."""
    size = config.picture_size
    widths: list[int] = []
    while size > _LEAST:
        widths.append(config.channels * 2 ** len(widths))
        size, odd = divmod(size, 2)
        if odd or size < _LEAST:
            raise ConfigError(
                "model.senses.picture_size", "8, 16, 32, 64, ...", str(config.picture_size)
            )
    return widths

"""What published models look at, and where they are.

Shapes: B batch, V cameras, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from teamvla.errors import ConfigError, ContractError, InputError
from teamvla.models.pretrained.settings import are_weights_following
from teamvla.models.spaces import Spaces


def require_pictures(spaces: Spaces, name: str) -> None:
    """ConfigError unless there are cameras with three colours, without which it cannot be."""
    if not spaces.cameras or spaces.picture[0] != 3:
        got = f"{len(spaces.cameras)} cameras of {spaces.picture[0]} channels"
        raise ConfigError(f"model {name!r}", "cameras with three colours", got)


def pictures_of(observations: Mapping[str, Any], spaces: Spaces) -> Tensor:
    """Pictures [B,V,3,H,W] of an observation as floats in 0..1.

    Raises:
        ContractError: there are none, or of other cameras.
    """
    expected = f"pictures of {len(spaces.cameras)} cameras, 3 channels: [B,V,C,H,W]"
    if "image" not in observations:
        raise ContractError("observations", expected, ", ".join(sorted(observations)))
    given = observations["image"]
    images = given if given.dim() > 4 else given.unsqueeze(1)
    if images.dim() != 5 or images.shape[1:3] != (len(spaces.cameras), 3):
        raise ContractError("observations['image']", expected, f"{tuple(given.shape)}")
    floats: Tensor = images.float()
    return floats / 255 if images.dtype == torch.uint8 else floats


def state_of_rows(observations: Mapping[str, Any]) -> Tensor:
    """State float32 [B,S]; ContractError if there is none."""
    if "state" not in observations:
        got = ", ".join(sorted(observations))
        raise ContractError("observations", "'state', which the model was made to use", got)
    state: Tensor = observations["state"]
    return state.float()


def stretched(pictures: Tensor, side: int) -> Tensor:
    """Pictures [B,3,H,W] to side x side, as OpenVLA does: bicubic, without regard to shape."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    resized = functional.interpolate(
        pictures, (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.clamp(0, 1)


def letterboxed(pictures: Tensor, side: int) -> Tensor:
    """Pictures [B,3,H,W] to side x side, as SmolVLA does: bilinear, black above and to the left."""
    height, width = pictures.shape[-2:]
    ratio = max(height, width) / side
    size = (int(height / ratio), int(width / ratio))
    if size != (height, width):
        pictures = functional.interpolate(pictures, size, mode="bilinear", align_corners=False)
    return functional.pad(pictures, (side - size[1], 0, side - size[0], 0))


def folder_of(weights: str | None) -> Path | None:
    """The folder to load weights from; None if there is none, or others follow.

    Raises:
        InputError: there is no such folder.
    """
    on_meta = torch.get_default_device().type == "meta"
    if weights is None or on_meta or are_weights_following():
        return None
    folder = Path(weights)
    if not folder.is_dir():
        raise InputError(weights, "the folder of a published model", "no such folder")
    return folder

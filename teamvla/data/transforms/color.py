"""Random light and colours of the pictures."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.data.transforms.base import Batch, Stream, pictures_of, random_units, with_pictures

#: ITU-R BT.601 luma, the grey of all common jitters
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class ColorConfig(Settings):
    """Change brightness, contrast and saturation of every camera's picture, each on its own."""

    type: Literal["color"] = "color"
    brightness: float = Field(
        default=0.2, ge=0, le=1, description="Factor within 1 - this and 1 + this."
    )
    contrast: float = Field(
        default=0.2, ge=0, le=1, description="Factor within 1 - this and 1 + this."
    )
    saturation: float = Field(
        default=0.2, ge=0, le=1, description="Factor within 1 - this and 1 + this."
    )

    def build(self, seed: int, contract: Contract | None = None) -> Color:
        return Color(self.brightness, self.contrast, self.saturation, seed)


class Color:
    """Colour jitter: the pixel x becomes b x, then a mix with the grey of picture and pixel.

        x1 = brightness x
        x2 = contrast x1 + (1 - contrast) mean(grey(x1))
        x3 = saturation x2 + (1 - saturation) grey(x2)

    The meaning of each is that of torchvision's ColorJitter, in this order and without
    rounding in between, so that the three are one affine map a picture; hue stays: the
    instruction may name a colour. The factors are uniform in [1 - range, 1 + range] for
    each sample and camera alone, as every camera has an exposure of its own.

    Args:
        brightness, contrast, saturation: ranges of the factors; 0 leaves it as it is.
        seed: of the run.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.ranges, self.seed = np.array([brightness, contrast, saturation]), seed

    def __call__(self, batch: Batch) -> Batch:
        """Colour ``observations.image`` uint8 [B,(T),V,C,H,W]; all else passes through."""
        pictures = pictures_of(batch)
        if pictures is None:
            return batch
        factors = self.factors(batch, pictures.shape[-4])
        history = pictures.shape[1:-4]
        for length in history:
            factors = np.repeat(factors[:, None], length, axis=1)
        flat = pictures.reshape(-1, *pictures.shape[-3:])
        return with_pictures(
            batch, color_pictures(flat, factors.reshape(-1, 3)).reshape(pictures.shape)
        )

    def factors(self, batch: Batch, cameras: int) -> np.ndarray:
        """Brightness, contrast and saturation of each sample and camera, float64 [B,V,3]."""
        units = random_units(batch, self.seed, Stream.COLOR, 3 * cameras)
        factors: np.ndarray = 1 + self.ranges * (2 * units.reshape(-1, cameras, 3) - 1)
        return factors


def color_pictures(pictures: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Pictures uint8 [N,H,W,3] under factors [N,3]: brightness, contrast, saturation."""
    colored = np.empty_like(pictures)
    ones = np.ones(pictures.shape[1] * pictures.shape[2], np.float32)
    # Picture by picture, so that the floats of one stay in the processor's cache.
    for picture, factor, out in zip(pictures, factors, colored, strict=True):
        brightness, contrast, saturation = factor.tolist()
        pixels = picture.reshape(-1, 3).astype(np.float32)
        # A product with ones is thirty times faster than mean(axis=0).
        mean_grey = float(ones @ pixels @ _LUMA) / len(ones)
        gain = brightness * contrast
        grey = (gain * (1 - saturation) * _LUMA)[:, None]
        mixed = pixels @ (gain * saturation * np.eye(3, dtype=np.float32) + grey)
        # Grey is its own grey: what contrast adds passes saturation unchanged; 0.5 rounds.
        mixed += brightness * (1 - contrast) * mean_grey + 0.5
        out[:] = np.clip(mixed, 0, 255, out=mixed).reshape(picture.shape)
    return colored

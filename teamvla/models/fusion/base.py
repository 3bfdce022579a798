"""What every fusion is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field
from torch import nn

from teamvla.config import Settings
from teamvla.models.encoders.base import TextEncoder, VisionBackbone
from teamvla.models.features import Features, Modalities


class FusionConfig(Settings):
    """Settings that all fusions share; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the fusion.")


class Fusion(nn.Module, ABC):
    """Modalities to features of width :attr:`dim`.

    Args:
        config: settings of the subclass.
        vision: encoder of the pictures, None if there are none. The fusion does not own it:
            it only asks for sizes and for :meth:`~VisionBackbone.pooling`.
        num_cameras: V.
        text: encoder of the instructions, None if they are not read.
        state_dim: S; 0 if the state is not read.
    """

    Config: ClassVar[type[FusionConfig]]
    dim: int

    def __init__(
        self,
        config: FusionConfig,
        vision: VisionBackbone | None,
        num_cameras: int,
        text: TextEncoder | None,
        state_dim: int,
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, seen: Modalities) -> Features:
        """What was encoded to features of width :attr:`dim`."""

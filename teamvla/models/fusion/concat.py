"""Fusion by concatenation: vectors side by side, then a residual MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.blocks import ResidualBlock
from teamvla.models.encoders.base import TextEncoder
from teamvla.models.features import Features, Modalities
from teamvla.models.fusion.base import Fusion, FusionConfig, Pictured, SensorSizes


class TrunkConfig(FusionConfig):
    """Settings that the fusions share which end in a residual MLP."""

    hidden_dim: int = Field(default=512, ge=1, description="Width of the trunk.")
    num_blocks: int = Field(default=3, ge=0, description="Residual blocks of the trunk.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each residual block.")


class ConcatConfig(TrunkConfig):
    """Settings of :class:`ConcatFusion`."""

    type: Literal["concat"] = Field(default="concat", description="Vectors side by side.")


class ConcatFusion(Fusion):
    """One vector per modality, joined.

    pictures [B,V,N,D] -> pooled [B,V*F] --+
    text -> mean [B,E] --------------------+-> linear -> silu -> blocks -> norm [B,hidden]
    state [B,S] ---------------------------+
    vector [B,F] of each sensor -----------+
    """

    Config: ClassVar[type[TrunkConfig]] = ConcatConfig

    def __init__(
        self,
        config: TrunkConfig,
        vision: Pictured | None,
        num_cameras: int,
        text: TextEncoder | None,
        state_dim: int,
        sensors: Mapping[str, SensorSizes] | None = None,
    ) -> None:
        super().__init__(config, vision, num_cameras, text, state_dim, sensors)
        self.dim = config.hidden_dim
        inputs = state_dim + (text.dim if text is not None else 0)
        self.pool = None
        if vision is not None:
            self.pool = vision.pooling()
            inputs += num_cameras * vision.features
        self.sensors = tuple(sensors or ())
        inputs += sum(sensor.output_dim for sensor in (sensors or {}).values())
        self.inputs = nn.Linear(inputs, self.dim)
        blocks = [ResidualBlock(self.dim, config.dropout) for _ in range(config.num_blocks)]
        self.trunk = nn.Sequential(*blocks, nn.LayerNorm(self.dim))

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        return Features.of(self.trunk(functional.silu(self.inputs(self._joined(seen)))))

    def _joined(self, seen: Modalities) -> Tensor:
        parts = []
        if self.pool is not None and seen.pictures is not None:
            parts.append(self.pool(seen.pictures).flatten(1))
        if seen.text is not None:
            parts.append(seen.text.mean())
        if seen.state is not None:
            parts.append(seen.state)
        parts += [seen.sensors[name].vector for name in self.sensors]
        return torch.cat(parts, dim=1)

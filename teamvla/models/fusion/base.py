"""What every fusion is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.errors import ContractError
from teamvla.models.encoders.base import TextEncoder
from teamvla.models.features import Features, Modalities

#: what tensors are that a fusion is given by position
_POSITIONS = ("vision", "lidar", "radar")


class FusionConfig(Settings):
    """Settings that all fusions share; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the fusion.")


class Pictured(Protocol):
    """What a fusion asks of who makes tokens of pictures; a :class:`VisionBackbone` is one."""

    has_cls: ClassVar[bool]
    dim: int
    num_tokens: int
    features: int

    def pooling(self) -> nn.Module:
        """See :meth:`teamvla.models.encoders.base.VisionBackbone.pooling`."""


class SensorSizes(Protocol):
    """What a fusion asks of who makes a vector and tokens of a sensor, or recalls them."""

    dim: int
    output_dim: int


class Fusion(nn.Module, ABC):
    """Modalities to features of width :attr:`dim`.

    Args:
        config: settings of the subclass.
        vision: encoder of the pictures, None if there are none. The fusion does not own it:
            it only asks for sizes and for :meth:`~VisionBackbone.pooling`.
        num_cameras: V.
        text: encoder of the instructions, None if they are not read.
        state_dim: S; 0 if the state is not read.
        sensors: encoders of what is sensed besides, by field, for their sizes alone. A fusion
            without this argument goes with policies without sensors.
    """

    Config: ClassVar[type[FusionConfig]]
    dim: int

    def __init__(
        self,
        config: Any,
        vision: Pictured | None,
        num_cameras: int,
        text: TextEncoder | None,
        state_dim: int,
        sensors: Mapping[str, SensorSizes] | None = None,
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, seen: Modalities) -> Features:
        """What was encoded to features of width :attr:`dim`."""


def named(by_position: Sequence[Tensor], by_name: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens of modalities by name: of those without one the first are vision, LiDAR and radar.

    Raises:
        ContractError: there are none, more without a name, or two of one name.
    """
    names = _POSITIONS[: len(by_position)]
    twice = [name for name in names if name in by_name]
    if len(by_position) > len(names) or twice or not (by_position or by_name):
        got = f"{twice[0]!r} twice" if twice else f"{len(by_position)} by position"
        expected = f"tokens of {', '.join(_POSITIONS)} in this order, and others by name"
        raise ContractError("fusion of tensors", expected, got)
    return {**dict(zip(names, by_position, strict=True)), **by_name}

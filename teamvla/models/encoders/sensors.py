"""What every encoder of a sensor is, and how one is built.

Shapes: B batch, P rows of a reading, C channels, N tokens, D their width, F features.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.errors import ConfigError
from teamvla.models.encoders.base import EncoderConfig, TextEncoder
from teamvla.models.features import Sensed, Tokens
from teamvla.models.registries import SENSOR_ENCODER_REGISTRY


class SensorConfig(EncoderConfig):
    """Settings that all encoders of sensors share; ``type`` decides whose are the others."""

    output_dim: int = Field(default=128, ge=1, description="F, length of the feature vector.")
    scale: tuple[float, ...] | None = Field(
        default=None,
        description="What each channel is divided by; null: what suits its usual units.",
    )


class SensorEncoder(nn.Module, ABC):
    """A sensor's readings to a vector and tokens.

    Statistics of the data do not cover sensors: each is scaled by fixed numbers. Where readings
    have rows whose number varies, what stands behind the mask changes nothing.

    Args:
        channels: C.
        config: settings; or give them one by one as ``settings``.

    Attributes:
        dim: D, width of a token.
        output_dim: F, length of the vector.
        besides: other fields of the observation that :meth:`encode` is told, in this order.

    Raises:
        ConfigError: ``scale`` has not C numbers.
    """

    Config: ClassVar[type[SensorConfig]]
    #: what a reading's first channels are divided by where ``scale`` is null
    SCALE: ClassVar[tuple[float, ...]] = ()
    dim: int
    output_dim: int
    besides: tuple[str, ...] = ()
    #: whether :meth:`encode` is told the instruction's tokens too, as ``words``
    listens: bool = False
    scale: Tensor

    def __init__(self, channels: int, *, config: Any = None, **settings: Any) -> None:
        super().__init__()
        self.config: Any = self.Config(**settings) if config is None else config
        self.channels, self.output_dim = channels, self.config.output_dim
        numbers = self._usual(channels) if self.config.scale is None else self.config.scale
        if len(numbers) != channels or 0 in numbers:
            where, got = f"scale of a {self.config.type}", f"{list(numbers)}"
            raise ConfigError(where, f"{channels} numbers other than 0, one a channel", got)
        self.register_buffer("scale", torch.tensor(numbers), persistent=False)

    @classmethod
    def of_shape(cls, config: SensorConfig, shape: Sequence[int]) -> Self:
        """An encoder of readings of a shape, -1 for a length that varies.

        Raises:
            ConfigError: it cannot take such readings.
        """
        cls.require_rank(shape, 2)
        return cls(shape[-1], config=config)

    def listen_to(self, text: TextEncoder) -> None:
        """Be made for the instructions of an encoder; most encoders of sensors hear nothing."""

    @abstractmethod
    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """Readings [B,P,C] and their mask bool [B,P], None where all are there.

        An encoder with :attr:`besides` takes those fields behind the mask.
        """

    def forward(self, readings: Tensor, mask: Tensor | None = None) -> Tensor:
        """The vector [B,F] of :meth:`encode`."""
        return self.encode(readings, mask).vector

    @classmethod
    def require_rank(cls, shape: Sequence[int], *ranks: int) -> None:
        """ConfigError unless a reading has as many dimensions as one of these."""
        if len(shape) not in ranks:
            kind = cls.Config.model_fields["type"].default
            expected = f"readings of {' or '.join(map(str, ranks))} dimensions"
            raise ConfigError(f"sensor encoder {kind!r}", expected, f"shape {tuple(shape)}")

    def _usual(self, channels: int) -> tuple[float, ...]:
        known = self.SCALE[:channels]
        return (*known, *[1.0] * (channels - len(known)))


class OwnSensor(SensorEncoder):
    """Any module that makes a vector [B,F] of readings, as an encoder without tokens.

    Args:
        module: its ``forward`` takes the readings, and if it has a second argument the mask or
            None; ``output_dim`` is F.

    Raises:
        ConfigError: the module does not say its ``output_dim``.
    """

    Config = SensorConfig

    def __init__(self, module: nn.Module) -> None:
        size = getattr(module, "output_dim", None)
        if not isinstance(size, int) or size < 1:
            name, mend = type(module).__name__, "Set self.output_dim in its __init__."
            raise ConfigError(f"sensor encoder {name}", "its output_dim", f"{size!r}", mend)
        super().__init__(0, config=SensorConfig(type="own", output_dim=size))
        self.module, self.dim = module, size
        self.masked = len(inspect.signature(module.forward).parameters) > 1

    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """See :meth:`SensorEncoder.encode`."""
        vector = self.module(readings, mask) if self.masked else self.module(readings)
        return Sensed(vector, no_tokens(vector, self.dim))


def as_sensor(module: nn.Module) -> SensorEncoder:
    """An encoder as it is, or one around somebody's own module."""
    return module if isinstance(module, SensorEncoder) else OwnSensor(module)


def build_sensor_encoder(config: SensorConfig, shape: Sequence[int]) -> SensorEncoder:
    """An encoder with fresh weights, of the kind that ``config.type`` names.

    Args:
        config: settings.
        shape: of the sensor in one step, -1 for a length that varies.

    Raises:
        RegistryError: there is no such encoder.
        ConfigError: it cannot take such readings.
    """
    return SENSOR_ENCODER_REGISTRY.get(config.type).of_shape(config, shape)


def full_mask(readings: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B,P]: the mask, or one of rows that are all there."""
    if mask is not None:
        return mask
    return torch.ones(readings.shape[:2], dtype=torch.bool, device=readings.device)


def no_tokens(vector: Tensor, dim: int) -> Tokens:
    """Tokens [B,0,D] beside a vector [B,F] that says it all."""
    return Tokens.full(vector.new_zeros(vector.shape[0], 0, dim))

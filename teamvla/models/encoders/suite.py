"""The sensors of a policy together: which there are, and what stands in for one that is not.

Shapes: B batch, N tokens, D their width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from teamvla.errors import ConfigError, ContractError
from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder, build_sensor_encoder
from teamvla.models.features import Sensed, Tokens
from teamvla.registry import did_you_mean


class StandIn(nn.Module):
    """What is put in place of an input that is not there: one learned vector, 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor, there: Tensor) -> Tensor:
        """Values [B,...,width], replaced where ``there``, bool [B], is False."""
        return torch.where(there.reshape(-1, *[1] * (values.dim() - 1)), values, self.value)


class SensorSuite(nn.Module):
    """Encoders of sensors by field.

    A sensor that is dropped has a learned vector, and no token counts. In training each sensor
    of each row is dropped at the rate ``dropout``.

    Args:
        encoders: by field.
        dropout: rate.
        missing: whether a batch may lack a sensor.
    """

    def __init__(
        self, encoders: Mapping[str, SensorEncoder], dropout: float = 0.0, missing: bool = False
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.dropout, self.missing = dropout, missing
        self.absent = nn.ModuleDict()
        if dropout or missing:
            sizes = {name: encoder.output_dim for name, encoder in encoders.items()}
            self.absent.update({name: StandIn(size) for name, size in sizes.items()})

    def forward(
        self, observations: Mapping[str, Tensor], rows: int, words: Tokens | None = None
    ) -> dict[str, Sensed]:
        """What is sensed in B observations, by field.

        Args:
            observations: of a batch.
            rows: B.
            words: the tokens of their instructions, for encoders that listen.

        Raises:
            ContractError: a sensor is missing, and may not.
        """
        return {name: self._sensed(name, observations, rows, words) for name in self.encoders}

    def _sensed(
        self, name: str, observations: Mapping[str, Tensor], rows: int, words: Tokens | None
    ) -> Sensed:
        if all(field in observations for field in self._fields(name)):
            sensed = self._encoded(name, observations, words)
            there = kept(rows, self.dropout if self.training else 0.0, sensed.vector.device)
        elif self.missing:
            sensed = self._nothing(name, rows)
            there = torch.zeros(rows, dtype=torch.bool, device=sensed.vector.device)
        else:
            needed = next(field for field in self._fields(name) if field not in observations)
            expected = f"{needed!r}, which the model was made to use"
            mend = "With model.missing_sensors: true it does without."
            got = ", ".join(sorted(observations))
            raise ContractError("batch['observations']", expected, got, mend)
        if name not in self.absent:
            return sensed
        tokens = Tokens(sensed.tokens.values, sensed.tokens.mask & there.unsqueeze(1))
        return Sensed(self.absent[name](sensed.vector, there), tokens)

    def _encoded(
        self, name: str, observations: Mapping[str, Tensor], words: Tokens | None
    ) -> Sensed:
        readings, *told = (observations[field].float() for field in self._fields(name))
        encoder = self._encoder(name)
        encode: Callable[..., Sensed] = encoder.encode
        heard = {"words": words} if encoder.listens else {}
        return encode(readings, observations.get(f"{name}_mask"), *told, **heard)

    def _fields(self, name: str) -> tuple[str, ...]:
        """The fields of an observation that an encoder needs."""
        return name, *self._encoder(name).besides

    def _encoder(self, name: str) -> SensorEncoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, SensorEncoder)
        return encoder

    def _nothing(self, name: str, rows: int) -> Sensed:
        """A vector and no tokens."""
        encoder, absent = self._encoder(name), self.absent[name]
        assert isinstance(absent, StandIn)
        values = absent.value.new_zeros(rows, 0, encoder.dim)
        return Sensed(absent.value.new_zeros(rows, encoder.output_dim), Tokens.full(values))


def kept(rows: int, dropout: float, device: torch.device) -> Tensor:
    """bool [rows]: which rows keep an input that is dropped at a rate."""
    if not dropout:
        return torch.ones(rows, dtype=torch.bool, device=device)
    return torch.rand(rows, device=device) >= dropout


def build_encoders(
    configs: Mapping[str, SensorConfig | None], shapes: Mapping[str, Sequence[int]]
) -> dict[str, SensorEncoder]:
    """An encoder with fresh weights for each sensor that has settings.

    Args:
        configs: by field; None for a sensor that is not looked at.
        shapes: of what the robot senses, by field.

    Raises:
        ConfigError: the robot has no such sensor, or its encoder cannot take it.
    """
    built = {}
    for name, config in configs.items():
        _require(name, shapes)
        if config is not None:
            built[name] = build_sensor_encoder(config, shapes[name])
            for field in built[name].besides:
                _require(field, shapes)
    return built


def _require(name: str, shapes: Mapping[str, Sequence[int]]) -> None:
    if name not in shapes:
        got = f"{name!r}. {did_you_mean(name, list(shapes))}"
        raise ConfigError("model.sensors", "sensors that the robot has", got)

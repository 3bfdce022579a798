"""Inertial measurements to a vector.

Shapes: B batch, T samples, C channels, F features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.models.encoders.sensors import SensorConfig, SensorEncoder, full_mask
from teamvla.models.features import Sensed, Tokens


class IMUConfig(SensorConfig):
    """Settings of :class:`IMUEncoder`."""

    type: Literal["imu"] = Field(default="imu", description="Recurrent network.")
    num_layers: int = Field(default=2, ge=1, description="Layers of the LSTM.")


class IMUEncoder(SensorEncoder):
    """Samples [B,T,C] in their order through an LSTM; the state after the last one there is.

    Hochreiter and Schmidhuber 1997, Neural Computation 9(8). Padding stands behind the samples
    and is never read: a sequence gives what it gives alone, and one without samples gives
    zeros. Its states are the tokens.

    Args:
        input_dim: C: accelerations (m/s^2) and rates of turn (rad/s) of three axes; before them
            a time against the step's (s), if there are seven.
        config, settings: see :class:`SensorEncoder`.
    """

    Config = IMUConfig
    SCALE: ClassVar[tuple[float, ...]] = (10.0, 10.0, 10.0, 1.0, 1.0, 1.0)

    def __init__(self, input_dim: int = 6, *, config: Any = None, **settings: Any) -> None:
        super().__init__(input_dim, config=config, **settings)
        self.dim = self.output_dim
        self.lstm = nn.LSTM(input_dim, self.dim, self.config.num_layers, batch_first=True)

    def encode(self, readings: Tensor, mask: Tensor | None = None) -> Sensed:
        """Samples [B,T,C] and their mask bool [B,T], True first."""
        there = full_mask(readings, mask)
        samples = torch.where(there.unsqueeze(-1), readings, 0.0) / self.scale
        states, _ = self.lstm(samples)
        count = there.sum(1)
        at = (count - 1).clamp_min(0)[:, None, None].expand(-1, 1, self.dim)
        vector = states.gather(1, at).squeeze(1) * (count > 0).unsqueeze(-1)
        return Sensed(vector, Tokens(states, there))

    def _usual(self, channels: int) -> tuple[float, ...]:
        timed = channels == len(self.SCALE) + 1
        return (0.05, *self.SCALE) if timed else super()._usual(channels)

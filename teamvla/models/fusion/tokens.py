"""Everything that was sensed as tokens of one width: where fusions by attention start from.

Shapes: B batch, V cameras, N tokens of a picture, L of an instruction, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from teamvla.models.encoders.base import TextEncoder
from teamvla.models.features import Modalities, Sensed, Tokens
from teamvla.models.fusion.base import Fusion, Pictured, SensorSizes
from teamvla.models.initialization import embedding

#: what is no sensor, in the order of the tokens; no field has such a name
SUMMARY, PICTURES, TEXT, STATE = "<summary>", "<pictures>", "<text>", "<state>"


class TokenFusion(Fusion):
    """Base of fusions that attend to tokens.

    Each part goes through a linear layer of its own if it is not D wide. Tokens of pictures
    get a learned embedding of their camera and one of their place in the picture, words one
    that says that they are words; the state's is the bias of its layer. A sensor is its vector
    and behind it its tokens, with an embedding of the sensor. The summary is a learned token;
    where the vision encoder has a CLS token, the mean of all cameras' is added to it.

    A subclass writes :meth:`build`. Without encoders it is a module for tensors, and may be made
    as ``CrossModalFusion(feature_dim=256, num_heads=8)``.

    Args:
        config: settings, or ``feature_dim``.
        vision, num_cameras, text, state_dim, sensors: see :class:`Fusion`.
        feature_dim: D, in place of settings.
        num_heads: of them.
    """

    def __init__(
        self,
        config: Any = None,
        vision: Pictured | None = None,
        num_cameras: int = 0,
        text: TextEncoder | None = None,
        state_dim: int = 0,
        sensors: Mapping[str, SensorSizes] | None = None,
        *,
        feature_dim: int = 256,
        num_heads: int = 8,
    ) -> None:
        super().__init__(config, vision, num_cameras, text, state_dim, sensors)
        #: made without settings, for :meth:`forward` on tensors by name
        self.is_for_tensors = not isinstance(config, self.Config)
        if self.is_for_tensors:
            width = feature_dim if config is None else config
            config = self.Config.model_validate({"embed_dim": width, "num_heads": num_heads})
        self.dim = width = config.embed_dim
        self.summary = embedding(1, 1, width)
        self.has_cls = vision is not None and vision.has_cls
        if vision is not None:
            self.from_pictures = _projection(vision.dim, width)
            self.cameras = embedding(num_cameras, 1, width)
            self.places = embedding(vision.num_tokens, width)
        if text is not None:
            self.from_text = _projection(text.dim, width)
            self.words = embedding(width)
        if state_dim:
            self.from_state = nn.Linear(state_dim, width)
        self.from_sensors = nn.ModuleDict()
        for name, sensor in (sensors or {}).items():
            self.from_sensors[name] = SensorTokens(sensor, width)
        self.build(config)

    @abstractmethod
    def build(self, config: Any) -> None:
        """Make what is behind the tokens, at the end of ``__init__``."""

    def parts(self, seen: Modalities) -> dict[str, Tokens]:
        """The summary's token, then those of each modality: of the sensors by field."""
        parts, summary = {}, self.summary
        if seen.pictures is not None:
            pictures = self.from_pictures(seen.pictures)
            if self.has_cls:
                summary = summary + pictures[:, :, 0].mean(1, keepdim=True)
            values = (pictures + self.cameras + self.places).flatten(1, 2)
            parts[PICTURES] = Tokens.full(values)
            if seen.pictures_mask is not None:
                parts[PICTURES] = Tokens(values, seen.pictures_mask.flatten(1))
        if seen.text is not None:
            parts[TEXT] = Tokens(self.from_text(seen.text.values) + self.words, seen.text.mask)
        if seen.state is not None:
            parts[STATE] = Tokens.full(self.from_state(seen.state).unsqueeze(1))
        for name, tokens in self.from_sensors.items():
            parts[name] = tokens(seen.sensors[name])
        rows = next(iter(parts.values())).values.shape[0]
        return {SUMMARY: Tokens.full(summary.expand(rows, -1, -1)), **parts}


class SensorTokens(nn.Module):
    """A sensor's vector and its tokens, in this order, as tokens of one width.

    Args:
        sensor: for its sizes.
        width: D.
    """

    def __init__(self, sensor: SensorSizes, width: int) -> None:
        super().__init__()
        self.vector = nn.Linear(sensor.output_dim, width)
        self.tokens = nn.Linear(sensor.dim, width)
        self.kind = embedding(width)

    def forward(self, sensed: Sensed) -> Tokens:
        """Of N tokens N + 1, of which the first always counts."""
        first = self.vector(sensed.vector).unsqueeze(1)
        values = torch.cat([first, self.tokens(sensed.tokens.values)], 1) + self.kind
        mask = sensed.tokens.mask
        return Tokens(values, torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1))


def joined(parts: Iterable[Tokens]) -> Tokens:
    """All tokens in a row."""
    parts = list(parts)
    values = torch.cat([part.values for part in parts], 1)
    return Tokens(values, torch.cat([part.mask for part in parts], 1))


def _projection(source: int, width: int) -> nn.Module:
    return nn.Identity() if source == width else nn.Linear(source, width)

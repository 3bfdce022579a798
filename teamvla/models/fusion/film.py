"""Fusion by modulation: the instruction decides what is looked for in the pictures.

Shapes: B batch, V cameras, N tokens of a picture, D their width, E width of the condition.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.encoders.base import TextEncoder
from teamvla.models.features import Features, Modalities
from teamvla.models.fusion.base import Pictured, SensorSizes
from teamvla.models.fusion.concat import ConcatFusion, TrunkConfig
from teamvla.models.initialization import init_modulation
from teamvla.models.temporal.recollection import RECALLED

_LOG = logging.getLogger(__name__)


class FilmConfig(TrunkConfig):
    """Settings of :class:`FilmFusion`."""

    type: Literal["film"] = Field(default="film", description="The words modulate the pictures.")
    film_blocks: int = Field(default=2, ge=1, description="Blocks that modulate the pictures.")
    film_state: bool = Field(
        default=False,
        description="Whether the state modulates them too; it does if nothing else could.",
    )


class FilmBlock(nn.Module):
    """Residual block whose channels a condition scales and shifts.

        h = norm(W2 silu(W1 x));  x + silu((1 + g) * h + b),  g, b = linear(condition)

    FiLM (Perez et al. 2018, arXiv 1709.07871), each token by itself: encoders have mixed
    neighbouring places already, and not all have a grid. As there, the norm is that of each
    channel over all places, which keeps how the places differ. On a toy where only the words
    decide which of two things counts, a norm of each token, or a weaker modulation at the
    start, learned to listen several times later, or never.
    """

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(condition, 2 * width)
        init_modulation(self.modulation)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens [B,M,D] under a condition [B,E] to tokens [B,M,D]."""
        scale, shift = self.modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        channels = self.outer(functional.silu(self.inner(tokens))).transpose(1, 2)
        hidden = functional.layer_norm(channels, channels.shape[-1:]).transpose(1, 2)
        return tokens + functional.silu((1 + scale) * hidden + shift)


class FilmFusion(ConcatFusion):
    """Concatenation of pictures that were looked at with the words in mind.

        text -> mean [B,E], recalled --+--------------------------------+
                                       v                                v
        pictures [B,V,N,D] -> FiLM blocks -> pooled [B,V*F] -> joined -> trunk [B,hidden]
        state [B,S], vectors of sensors -------------------------^

    Where there is nothing to modulate, or nothing to modulate it by, it is concatenation.
    """

    Config: ClassVar[type[TrunkConfig]] = FilmConfig

    def __init__(
        self,
        config: FilmConfig,
        vision: Pictured | None,
        num_cameras: int,
        text: TextEncoder | None,
        state_dim: int,
        sensors: Mapping[str, SensorSizes] | None = None,
    ) -> None:
        super().__init__(config, vision, num_cameras, text, state_dim, sensors)
        self.by_text = text is not None
        memory = (sensors or {}).get(RECALLED)
        self.by_memory = memory is not None
        told = self.by_text or self.by_memory
        self.by_state = bool(state_dim) and (config.film_state or not told)
        condition = (text.dim if text is not None else 0) + (state_dim if self.by_state else 0)
        condition += memory.output_dim if memory is not None else 0
        self.film = nn.ModuleList()
        # The norm over all places makes nothing of a single one.
        places = num_cameras * vision.num_tokens if vision is not None else 0
        if vision is not None and places > 1 and condition:
            self.film.extend(FilmBlock(vision.dim, condition) for _ in range(config.film_blocks))
        else:
            _LOG.info("film: at most one token of pictures, or neither words nor a state for them")

    def forward(self, seen: Modalities) -> Features:
        """See :meth:`Fusion.forward`."""
        if len(self.film) and seen.pictures is not None:
            seen = replace(seen, pictures=self._modulated(seen.pictures, self._condition(seen)))
        return super().forward(seen)

    def _modulated(self, pictures: Tensor, condition: Tensor) -> Tensor:
        tokens = pictures.flatten(1, 2)
        for block in self.film:
            tokens = block(tokens, condition)
        return tokens.reshape(pictures.shape)

    def _condition(self, seen: Modalities) -> Tensor:
        parts = []
        if self.by_text and seen.text is not None:
            parts.append(seen.text.mean())
        if self.by_memory:
            parts.append(seen.sensors[RECALLED].vector)
        if self.by_state and seen.state is not None:
            parts.append(seen.state)
        return torch.cat(parts, dim=1)

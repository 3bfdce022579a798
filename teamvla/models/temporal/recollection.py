"""What a policy recalls: in sequences, and from tick to tick of an episode.

Shapes: B sequences, S steps, N of all their steps those that are there, C width of what is noticed
of a step, E of what is recalled, A numbers of a command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teamvla.models.features import Sensed, Tokens
from teamvla.models.registries import TEMPORAL_REGISTRY
from teamvla.models.sequences import Sequences
from teamvla.models.temporal.base import Temporal, TemporalConfig

#: what is recalled stands under this name among what is sensed
RECALLED = "recalled"
#: under which a batch says what its steps come after
EARLIER = "earlier"


@dataclass(frozen=True)
class Earlier:
    """What the steps of a batch come after: each other, in sequences, with commands [B,S,A]."""

    sequences: Sequences
    commands: Tensor


@dataclass(frozen=True)
class NextTick:
    """The batch is the next step of the episode; ``command`` [1,A] is the one before it."""

    command: Tensor


class Recollection(nn.Module):
    """A temporal part, and where it is in the episode.

    Args:
        config: settings of the temporal part.
        noticed: C.
        action_dim: A.

    Attributes:
        dim, output_dim: E, as of the encoder of a sensor.
    """

    _state: Any

    def __init__(self, config: TemporalConfig, noticed: int, action_dim: int) -> None:
        super().__init__()
        self.part: Temporal = TEMPORAL_REGISTRY.get(config.type)(config, noticed, action_dim)
        self.action_dim = action_dim
        self.dim = self.output_dim = self.part.dim
        self.reset()

    def forward(self, noticed: Tensor, after: Earlier | NextTick | None) -> Sensed:
        """What is recalled at N steps [N,C].

        Args:
            after: what they come after; None: nothing, each is the first of an episode.
        """
        if isinstance(after, NextTick):
            recalled, self._state = self.part.step(self._state, noticed, after.command)
        else:
            recalled = self._in_sequences(noticed, after or self._nothing(noticed))
        return Sensed(recalled, Tokens.full(recalled.unsqueeze(1)))

    def _in_sequences(self, noticed: Tensor, after: Earlier) -> Tensor:
        commands = after.commands
        before = torch.cat([torch.zeros_like(commands[:, :1]), commands[:, :-1]], dim=1)
        placed = after.sequences.place(noticed)
        return after.sequences.pick(self.part(placed, before.to(placed.dtype)))

    def _nothing(self, noticed: Tensor) -> Earlier:
        sequences = Sequences.single(len(noticed), noticed.device)
        return Earlier(sequences, noticed.new_zeros(len(noticed), 1, self.action_dim))

    def reset(self) -> None:
        """Begin a new episode."""
        self._state = self.part.start()

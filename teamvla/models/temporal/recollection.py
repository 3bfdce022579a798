"""What a policy recalls: in sequences, and from tick to tick of an episode.

Shapes: B sequences, S steps, N of all their steps those that are there, C width of what is noticed
of a step, E of what is recalled, A numbers of a command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """What the steps of a batch come after: each other, in sequences.

    Attributes:
        sequences: which of their steps are in the batch.
        commands: [B,S,A], of all steps.
        observations: of all steps [B,S,...], and ``is_pad`` bool [B,S] of those that are none.
    """

    sequences: Sequences
    commands: Tensor
    observations: Mapping[str, Tensor]
    is_pad: Tensor


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

    def forward(
        self,
        notice: Callable[[Mapping[str, Tensor]], Tensor],
        observations: Mapping[str, Tensor],
        after: Earlier | NextTick | None,
    ) -> Sensed:
        """What is recalled at N steps.

        Args:
            notice: observations of N steps to what is noticed of them [N,C].
            observations: of the N steps.
            after: what they come after; None: nothing, each is the first of an episode.
        """
        if isinstance(after, Earlier):
            recalled = self._in_sequences(notice, after)
        elif isinstance(after, NextTick):
            noticed = notice(observations)
            recalled, self._state = self.part.step(self._state, noticed, after.command)
        else:
            noticed = notice(observations).unsqueeze(1)
            recalled = self.part(noticed, noticed.new_zeros(len(noticed), 1, self.action_dim))[:, 0]
        return Sensed(recalled, Tokens.full(recalled.unsqueeze(1)))

    def _in_sequences(
        self, notice: Callable[[Mapping[str, Tensor]], Tensor], after: Earlier
    ) -> Tensor:
        there = Sequences(~after.is_pad)
        noticed = there.place(notice({k: there.pick(v) for k, v in after.observations.items()}))
        commands = after.commands
        before = torch.cat([torch.zeros_like(commands[:, :1]), commands[:, :-1]], dim=1)
        return after.sequences.pick(self.part(noticed, before.to(noticed.dtype)))

    def reset(self) -> None:
        """Begin a new episode."""
        self._state = self.part.start()

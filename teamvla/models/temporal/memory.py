"""A memory of the whole episode.

Shapes: B sequences, S steps, M entries, C width of what is noticed of a step, E of an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.attention import require_heads
from teamvla.models.initialization import embedding
from teamvla.models.temporal.base import Temporal, TemporalConfig


class MemoryConfig(TemporalConfig):
    """Settings of :class:`MemoryBuffer`."""

    type: Literal["memory"] = Field(default="memory", description="A memory of the episode.")
    state: bool = Field(
        default=False, description="Whether the state is noticed; without pictures it always is."
    )
    embed_dim: int = Field(default=64, ge=1, description="Width of an entry.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides embed_dim.")
    stride: int = Field(default=4, ge=1, description="Steps that make one entry.")
    slots: int = Field(
        default=128,
        ge=2,
        multiple_of=2,
        description="Entries at most. When they are full, neighbours become one: a longer "
        "episode is remembered as a whole, more coarsely.",
    )
    ages: int = Field(
        default=12,
        ge=1,
        description="Ages of entries that are told apart, in strides; what is older is long ago.",
    )
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="Rate at which training forgets an entry."
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        require_heads(self.num_heads, "embed_dim", self.embed_dim)
        return self


@dataclass
class Remembered:
    """The memory of one episode.

    Attributes:
        entries: M of them, each the mean of its steps [1,E].
        span: steps that make an entry, by now.
        open: sum of the steps that do not make one yet, [1,E].
        count: of these.
        steps: of the episode so far.
    """

    entries: list[Tensor]
    span: int
    open: Tensor | None = None
    count: int = 0
    steps: int = 0


class MemoryBuffer(Temporal):
    """Entries for every few steps since the episode began, which each step may look up.

        write:  entry = mean over ``stride`` steps of linear(noticed)
        recall: linear(norm(mean of (entries - linear(noticed) + age))), weighted by attention

    What is recalled is how things were otherwise than now: what never changes, such as most of
    a picture, cancels out and does not drown the rest. An entry can be looked up as soon as its
    last step is over, by what it holds and by its age. Ages beyond ``ages`` strides are all one,
    and training forgets entries at random: a policy that could count all its steps would go by
    the clock, and carry on with empty hands where it missed a grasp. An empty entry, which is
    learned, stands for "nothing of the kind". That an entry sums up a chunk of steps is from
    the memory of Lampinen et al. 2021 (arXiv 2105.14039). It is bounded whatever the episode's
    length: ``slots`` entries, then half as many of twice the span.

    Args:
        config, noticed, action_dim: see :class:`Temporal`; commands are not remembered.
    """

    Config: ClassVar[type[MemoryConfig]] = MemoryConfig

    def __init__(self, config: MemoryConfig, noticed: int, action_dim: int) -> None:
        super().__init__(config, noticed, action_dim)
        self.dim = width = config.embed_dim
        self.stride, self.slots, self.dropout = config.stride, config.slots, config.dropout
        self.num_heads, self.ages = config.num_heads, config.ages
        # The last is that of the empty entry.
        self.age_bias = embedding(config.num_heads, config.ages + 2)
        self.age_values = embedding(config.num_heads, config.ages + 2, width // config.num_heads)
        self.write, self.query = nn.Linear(noticed, width), nn.Linear(noticed, width)
        self.key, self.empty = nn.Linear(width, width), embedding(1, 1, width)
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, noticed: Tensor, commands: Tensor) -> Tensor:
        """See :meth:`Temporal.forward`.

        Sequences beyond the memory's reach are remembered at the span that their length leads
        to; :meth:`step` gives the same up to there.
        """
        steps, span = noticed.shape[1], self._span(noticed.shape[1])
        whole = steps // span * span
        written = self.write(noticed)
        entries = written[:, :whole].unflatten(1, (-1, span)).mean(2)
        ends = torch.arange(1, entries.shape[1] + 1, device=noticed.device) * span
        since = torch.arange(1, steps + 1, device=noticed.device)[:, None] - ends
        known = (since >= 0).expand(len(noticed), -1, -1)
        if self.training and self.dropout:
            kept = torch.rand(len(noticed), 1, len(ends), device=noticed.device) >= self.dropout
            known = known & kept
        return self._recalled(noticed, written, entries, since, known)

    def start(self) -> Remembered:
        """See :meth:`Temporal.start`."""
        return Remembered([], self.stride)

    def step(
        self, state: Remembered, noticed: Tensor, command: Tensor
    ) -> tuple[Tensor, Remembered]:
        """See :meth:`Temporal.step`."""
        written = self.write(noticed)
        state.open = written if state.open is None else state.open + written
        state.count += 1
        state.steps += 1
        if state.count == state.span:
            state.entries.append(state.open / state.span)
            state.open, state.count = None, 0
            if len(state.entries) > self.slots:
                self._make_coarser(state)
        entries = written.new_zeros(1, 0, self.dim)
        if state.entries:
            entries = torch.stack(state.entries, dim=1)
        ends = torch.arange(1, entries.shape[1] + 1, device=noticed.device) * state.span
        since = (state.steps - ends)[None]
        now = noticed.unsqueeze(1), written.unsqueeze(1)
        return self._recalled(*now, entries, since, (since >= 0)[None]).squeeze(1), state

    def _make_coarser(self, state: Remembered) -> None:
        """Neighbours become one; the last of an odd number opens the next."""
        entries, last = state.entries[: self.slots], state.entries[self.slots :]
        pairs = zip(entries[::2], entries[1::2], strict=True)
        state.entries = [(before + after) / 2 for before, after in pairs]
        state.open, state.count = sum(last, torch.zeros(())) * state.span, state.span
        state.span *= 2

    def _span(self, steps: int) -> int:
        """How many steps make an entry in sequences of so many."""
        span = self.stride
        while steps // span > self.slots:
            span *= 2
        return span

    def _recalled(
        self, noticed: Tensor, now: Tensor, entries: Tensor, since: Tensor, known: Tensor
    ) -> Tensor:
        """What steps [B,S,C], which would write ``now`` [B,S,E], recall of entries [B,M,E].

        Args:
            since: [S,M], steps since each entry was over.
            known: bool [B,S,M], the entries that each step knows.
        """
        held = torch.cat([self.empty.expand(len(entries), -1, -1), entries], dim=1)
        mask = functional.pad(known, (1, 0), value=True).unsqueeze(1)
        age = functional.pad(
            (since // self.stride).clamp(0, self.ages), (1, 0), value=self.ages + 1
        )
        keys, queries = self._split(self.key(held)), self._split(self.query(noticed))
        scores = queries @ keys.mT / keys.shape[-1] ** 0.5 + self.age_bias[:, age]
        weights = scores.float().masked_fill(~mask, -torch.inf).softmax(-1).to(scores.dtype)
        # The empty entry is compared with nothing.
        share = weights[..., 1:].sum(-1, keepdim=True)
        of_age = functional.one_hot(age, self.ages + 2).to(weights.dtype)
        ages = torch.einsum("bhsm,sma->bhsa", weights, of_age) @ self.age_values
        otherwise = weights @ self._split(held) - share * self._split(now) + ages
        recalled: Tensor = self.output(self.norm(otherwise.transpose(1, 2).flatten(2)))
        return recalled

    def _split(self, values: Tensor) -> Tensor:
        heads = values.reshape(*values.shape[:2], self.num_heads, -1)
        return heads.transpose(1, 2)

"""The last few observations and commands.

Shapes: B sequences, S steps, T of them in a window, C width of what is noticed of a step, E width
of tokens.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.errors import ContractError
from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.features import Tokens
from teamvla.models.initialization import embedding, init_transformer
from teamvla.models.temporal.base import Temporal, TemporalConfig


class HistoryConfig(AttentionSettings, TemporalConfig):
    """Settings of :class:`History`."""

    type: Literal["history"] = Field(default="history", description="A window of steps.")
    window: int = Field(default=8, ge=1, description="Steps that are looked at, the present too.")
    stride: int = Field(default=1, ge=1, description="From one of them to the next.")
    num_layers: int = Field(default=2, ge=1, description="Transformer blocks.")
    actions: bool = Field(
        default=True,
        description="Whether past commands are looked at; a policy may then come to copy them.",
    )


class HistoryEncoder(nn.Module):
    """Past observations and commands to a context, by attention among them.

        o_1 a_1 o_2 a_2 ... o_T -> blocks -> norm -> the last observation's token -> linear

    Each token carries which step it is of and what it is. The transformer of Octo (Octo Model
    Team 2024, arXiv 2405.12213), without its tokens of tasks.

    Args:
        obs_dim: length of an observation's vector.
        action_dim: of a command; 0: commands are not looked at.
        context_dim: of the result.
        num_layers: transformer blocks.
        window: steps that are looked at, the last ones of T.
        width: E, which ``num_heads`` divides.
        num_heads: parallel attentions.
        mlp_ratio: hidden width of the MLPs / E.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        context_dim: int = 256,
        num_layers: int = 2,
        *,
        window: int = 16,
        width: int = 256,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.window = window
        self.from_observation = nn.Linear(obs_dim, width)
        self.from_action = nn.Linear(action_dim, width) if action_dim else None
        self.ages, self.kinds = embedding(window, width), embedding(2, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads, mlp_ratio) for _ in range(num_layers)
        )
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, context_dim)
        init_transformer(self)

    def forward(
        self, observations: Tensor, actions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """[B,T,obs_dim], oldest first, and the T - 1 commands between them to [B,context_dim].

        Args:
            actions: [B,T-1,action_dim]; may be left out.
            mask: bool [B,T], False for what was before the episode's start; the command behind
                such an observation does not count either.

        Raises:
            ContractError: there are more or fewer commands.
        """
        if actions is not None and actions.shape[1] != observations.shape[1] - 1:
            expected = f"{observations.shape[1] - 1}, one between each two observations"
            raise ContractError("commands of a history", expected, f"{actions.shape[1]}")
        observations = observations[:, -self.window :]
        batch, steps, _ = observations.shape
        actions = None if actions is None else actions[:, actions.shape[1] + 1 - steps :]
        there = observations.new_ones(batch, steps, dtype=torch.bool)
        there = there if mask is None else mask[:, -self.window :]
        ages = self.ages[self.window - steps :]
        tokens = self.from_observation(observations) + ages + self.kinds[0]
        parts = [Tokens(tokens, there)]
        if self.from_action is not None and actions is not None:
            commands = self.from_action(actions) + ages[: steps - 1] + self.kinds[1]
            parts.append(Tokens(commands, there[:, : steps - 1]))
        tokens = torch.cat([part.values for part in parts], dim=1)
        seen = torch.cat([part.mask for part in parts], dim=1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        context: Tensor = self.output(self.norm(tokens[:, steps - 1]))
        return context


class History(Temporal):
    """The steps at 0, -stride, ..., -(window - 1) stride, summed up by :class:`HistoryEncoder`.

    Of a step before the episode's start nothing is seen.

    Args:
        config, noticed, action_dim: see :class:`Temporal`.
    """

    Config: ClassVar[type[HistoryConfig]] = HistoryConfig

    def __init__(self, config: HistoryConfig, noticed: int, action_dim: int) -> None:
        super().__init__(config, noticed, action_dim)
        self.dim = config.embed_dim
        self.lags = [config.stride * back for back in reversed(range(config.window))]
        self.looks_at_actions = config.actions
        self.encoder = HistoryEncoder(
            noticed, action_dim if config.actions else 0, self.dim, config.num_layers,
            window=config.window, width=config.embed_dim, num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
        )  # fmt: skip

    def forward(self, noticed: Tensor, commands: Tensor) -> Tensor:
        """See :meth:`Temporal.forward`."""
        steps = noticed.shape[1]
        now = torch.arange(steps, device=noticed.device)
        rows = now[:, None] - torch.tensor(self.lags, device=noticed.device)
        mask = (rows >= 0).expand(noticed.shape[0], -1, -1).flatten(0, 1)
        rows = rows.clamp_min(0)
        # The command of a step stands in the row behind it, where it is the one before.
        behind = (rows[:, :-1] + 1).clamp_max(steps - 1)
        past = commands[:, behind].flatten(0, 1) if self.looks_at_actions else None
        context: Tensor = self.encoder(noticed[:, rows].flatten(0, 1), past, mask)
        return context.reshape(*noticed.shape[:2], -1)

    def start(self) -> deque[tuple[Tensor, Tensor]]:
        """See :meth:`Temporal.start`: what was noticed and commanded, as far as the window."""
        return deque(maxlen=self.lags[0] + 1)

    def step(
        self, state: deque[tuple[Tensor, Tensor]], noticed: Tensor, command: Tensor
    ) -> tuple[Tensor, deque[tuple[Tensor, Tensor]]]:
        """See :meth:`Temporal.step`."""
        state.append((noticed, command))
        earlier, commands = (torch.stack(part, dim=1) for part in zip(*state, strict=True))
        return self(earlier, commands)[:, -1], state

"""Features to actions row by row: each row of a chunk is predicted given those before it.

Shapes: B batch, K chunk, D action, W width of the head, N tokens of the features, C bins.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.models.attention import Attention, KeysValues, TransformerBlock, require_heads
from teamvla.models.features import Features
from teamvla.models.heads.base import (
    HeadLoss,
    RegressionConfig,
    RegressionHead,
    as_features,
    hold_last,
)
from teamvla.models.heads.bins import Bins
from teamvla.models.initialization import embedding, init_transformer
from teamvla.models.losses import masked_mean


class TransformerHeadConfig(RegressionConfig):
    """Settings of :class:`TransformerActionHead`."""

    type: Literal["transformer"] = Field(default="transformer", description="Row by row.")
    output: Literal["continuous", "binned"] = Field(
        default="continuous",
        description="continuous: numbers; binned: each a choice among num_bins, by cross-entropy.",
    )
    loss_type: Literal["huber", "l1", "mse"] = Field(
        default="huber", description="continuous: what is minimised: huber, l1 or mse."
    )
    huber_delta: float = Field(
        default=0.02,
        gt=0,
        description="continuous, huber: where square turns straight, in normalised units.",
    )
    gripper_weight: float = Field(
        default=0.05, ge=0, description="continuous: weight of the cross-entropy of the grippers."
    )
    num_bins: int = Field(default=256, ge=2, description="binned: equal parts of [-1, 1].")
    hidden_dim: int = Field(default=256, ge=1, description="Width of the tokens.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides hidden_dim.")
    num_layers: int = Field(default=2, ge=1, description="Transformer blocks.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / width.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each block.")
    input_noise: float = Field(
        default=0.3,
        ge=0,
        description="Deviation of the noise on the rows before, while it is trained, normalised.",
    )
    input_dropout: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="Share of the rows before hidden while it is trained: more drifts less, "
        "less keeps to one of several ways.",
    )
    max_seq_len: int = Field(default=100, ge=1, description="The longest chunk that it takes.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> TransformerHeadConfig:
        require_heads(self.num_heads, "hidden_dim", self.hidden_dim)
        return self


class TransformerActionHead(RegressionHead):
    """Autoregressive head: a token for each row of a chunk, which looks at those before it.

        summary   row 0   row 1 .. row K-2      linear each, + learned positions
           |        |       |        |
        causal transformer blocks, each of which also looks at the tokens of the features
           |        |       |        |
         row 0    row 1   row 2 .. row K-1      linear: D numbers, or D x C logits

    Trained on the demonstrated rows, all at once; run on its own, one by one, with the keys and
    values of those before kept. Its own are off, and who trusts them drifts: so in training
    they carry noise and most are hidden, which keeps the eye on the features (word dropout,
    Bowman et al. 2015, arXiv 1511.06349). ``binned``
    tokenises as RT-1 (Brohan et al. 2022, arXiv 2212.06817): the numbers of a row are
    independent of each other given the rows before, which takes K steps, where a token for each
    number would take K*D.
    """

    Config = TransformerHeadConfig
    config: TransformerHeadConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        config = self.config
        self.require_length(config.max_seq_len)
        self.binned = config.output == "binned"
        self.bounded = self.binned and len(self.choices) < action_dim
        self.bins = Bins(action_dim, config.num_bins, self.choices)
        width, told = config.hidden_dim, action_dim + sum(self.choices.values())
        self.start, self.previous = nn.Linear(input_dim, width), nn.Linear(told, width)
        self.positions = embedding(self.chunk_size, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, config.dropout, input_dim)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, action_dim * (self.bins.count if self.binned else 1))
        init_transformer(self)

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`; of ``binned`` the mean cross-entropy, nats a number."""
        target = hold_last(target, is_pad)
        if not self.binned:
            return self.regression(self.teacher_forced(features, target), target, is_pad)
        bins = self.bins.of(target)
        logits = self.teacher_forced(features, self.bins.centres(bins))
        surprise = functional.cross_entropy(
            logits.flatten(0, 2), bins.flatten(), reduction="none"
        ).view_as(target)
        # No bin stands for what is no number, and it must not pass for one.
        entropy = masked_mean(surprise.where(target.isfinite(), torch.nan), is_pad)
        right = (logits.argmax(-1) == bins).float()
        return HeadLoss(entropy, {"entropy": entropy, "accuracy": masked_mean(right, is_pad)})

    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`.

        ``continuous`` draws nothing; ``binned`` draws bins, without a generator it takes the
        likeliest.
        """
        features = as_features(features)
        blocks, context = self._blocks, features.tokens
        seen = [cast(Attention, block.cross).keys_values(context.values) for block in blocks]
        keys = context.mask[:, None, None]
        before: list[KeysValues | None] = [None] * len(blocks)
        token, rows = self.start(features.summary), []
        for place in range(self.chunk_size):
            token = (token + self.positions[place]).unsqueeze(1)
            for depth, block in enumerate(blocks):
                token, before[depth] = block.step(token, before[depth], seen[depth], keys)
            rows.append(self._choose(self._read(token)[:, 0], generator))
            token = self.previous(self._with_choices(rows[-1]))
        return torch.stack(rows, 1)

    def teacher_forced(self, features: Features, target: Tensor) -> Tensor:
        """The network's output for each row given the rows before it in ``target`` [B,K,D].

        Returns:
            float32 [B,K,D], or logits [B,K,D,C].
        """
        start = self.start(features.summary).unsqueeze(1)
        tokens = torch.cat([start, self._told(target[:, :-1])], 1) + self.positions
        for block in self._blocks:
            tokens = block(tokens, context=features.tokens, causal=True)
        return self._read(tokens)

    @property
    def chooses(self) -> bool:
        """See :attr:`ActionHead.chooses`."""
        return bool(self.config.output == "binned")

    def _with_choices(self, rows: Tensor) -> Tensor:
        """Rows [...,D] and behind them, for each choice, the one of its places that is 1."""
        if not self.choices:
            return rows
        chosen = self.bins.of(rows)
        marks = [
            functional.one_hot(chosen[..., place], count).to(rows.dtype)
            for place, count in self.choices.items()
        ]
        # A choice is no quantity: its number says nothing beside its mark.
        return torch.cat([rows.masked_fill(self.bins.is_choice, 0.0), *marks], -1)

    def _told(self, before: Tensor) -> Tensor:
        """Tokens of demonstrated rows [B,K-1,D]; in training noisy, and some of them zero."""
        before = self._with_choices(before)
        if self.training:
            told = torch.rand_like(before[..., :1]) >= self.config.input_dropout
            # Noise on hidden ones too: those that can be told from others make others trusted.
            noise = self.config.input_noise * torch.randn_like(before)
            before = torch.where(told, before, 0.0) + noise
        tokens: Tensor = self.previous(before)
        return tokens

    def _read(self, tokens: Tensor) -> Tensor:
        raw: Tensor = self.output(self.norm(tokens)).float()
        if not self.binned:
            return raw
        return self.bins.legal(raw.reshape(*raw.shape[:2], self.action_dim, -1))

    def _choose(self, raw: Tensor, generator: Generator | None) -> Tensor:
        """The network's output for a row [B,D], or logits [B,D,C], to that row [B,D]."""
        if not self.binned:
            return self.finish(raw)
        if generator is None:
            return self.bins.centres(raw.argmax(-1))
        chances = raw.softmax(-1).flatten(0, 1).to(generator.device)
        drawn = torch.multinomial(chances, 1, generator=generator)
        return self.bins.centres(drawn.view(raw.shape[:2]).to(raw.device))

    @property
    def _blocks(self) -> list[TransformerBlock]:
        return cast(list[TransformerBlock], list(self.blocks))

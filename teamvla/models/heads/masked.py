"""Actions by masked discrete diffusion: tokens are masked at random, and learned to be told.

Shapes: B batch, R maskings of each observation, K chunk, D action, C bins, N tokens of the
features, W width of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.models.attention import KeysValues, require_heads
from teamvla.models.dit import AdaptiveNorm, DiTBlock, Modulation, SinusoidalPositionEmbedding
from teamvla.models.features import Features
from teamvla.models.heads.base import ActionHead, HeadConfig, HeadLoss, as_features, hold_last
from teamvla.models.heads.bins import Bins
from teamvla.models.heads.unmasking import UnmaskingConfig, elbo_weight, mask_ratio, unmask
from teamvla.models.initialization import embedding, init_identity, init_transformer


class MaskedHeadConfig(UnmaskingConfig, HeadConfig):
    """Settings of :class:`MaskedDiffusionHead`."""

    type: Literal["masked"] = Field(default="masked", description="Masked discrete diffusion.")
    num_bins: int = Field(default=256, ge=2, description="Equal parts of [-1, 1] of real numbers.")
    bin_blur: float = Field(
        default=0.0,
        ge=0,
        description="Deviation, in bins, of what real numbers are learned as: near bins count as "
        "nearly right; 0: one is right.",
    )
    hidden_dim: int = Field(default=128, ge=2, multiple_of=2, description="Width of the tokens.")
    n_layers: int = Field(default=4, ge=1, description="DiT blocks.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides hidden_dim.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of the MLPs / width.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Rate inside each block.")
    max_seq_len: int = Field(default=64, ge=1, description="The longest chunk that it takes.")
    conditioning: Literal["pooled", "tokens"] = Field(
        default="pooled",
        description="What blocks know of the observation: pooled, its summary; tokens, besides "
        "its tokens in their context.",
    )
    loss_weighting: Literal["elbo", "uniform"] = Field(
        default="uniform",
        description="Of the time: elbo bounds the likelihood (of bins that are not blurred), "
        "uniform counts masked tokens alike.",
    )
    times_per_sample: int = Field(
        default=1, ge=1, description="Maskings that each observation, encoded once, is trained at."
    )
    corruption: Literal["mask", "noise"] = Field(
        default="mask",
        description="What stands in place of a masked token: a learned vector, or random noise.",
    )
    padding: Literal["left_out", "last_action"] = Field(
        default="left_out",
        description="Behind an episode's end: nothing, which has the head learn how many actions "
        "are left; or the last action, learned and seen as any other.",
    )

    ADJUSTABLE: ClassVar[tuple[str, ...]] = (
        "sampler",
        "num_inference_steps",
        "confidence_threshold",
        "temperature",
        "remasking",
    )

    @property
    def takes_any_chunk(self) -> bool:
        """See :attr:`HeadConfig.takes_any_chunk`; padding is learned, or told where it begins."""
        return True

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        require_heads(self.num_heads, "hidden_dim", self.hidden_dim)
        return self


@dataclass(frozen=True)
class Seen:
    """What the network is told of observations.

    Attributes:
        summary: [B,W].
        contexts: of each block keys and values of N more tokens; empty: none.
        mask: bool [B,N], which of them count; None without them.
    """

    summary: Tensor
    contexts: Sequence[KeysValues] = ()
    mask: Tensor | None = None


class MaskedDiffusionHead(ActionHead):
    """Masked discrete diffusion over chunks of actions, by a diffusion transformer.

        action row k: sum of the embeddings of its D tokens, [MASK] in place of masked ones
        time + linear(summary) -> condition [B,W]
        [rows + learned positions] -> DiT blocks (-> context: linear(tokens)) -> D x C logits a row

    Training masks each token with chance m(t), t uniform, and learns to tell those that are
    masked from the others (D3PM with absorbing states, Austin et al. 2021, arXiv 2107.03006;
    MDLM, Sahoo et al. 2024, arXiv 2406.07524). With ``loss_weighting: elbo`` the loss is

        E_t  m'(t)/m(t)  sum of -log p(token) over masked ones,  a token

    whose sum over the tokens is at least -log p(chunk); ``uniform`` takes the mean over all
    masked tokens instead. Sampling: :func:`teamvla.models.heads.unmasking.unmask`. Padding is
    neither learned nor looked at: that a chunk ends within K rows, and where, is told first by a
    linear layer of the summary (as in Mask-Predict, Ghazvininejad et al. 2019, arXiv
    1904.09324), and what is given behind it is the last action again.

    Choices of the contract are tokens as they are; real numbers are binned (as Discrete Diffusion
    VLA, Liang et al. 2025, arXiv 2508.20072, which has a position for each number; here the
    numbers of a row share one, which costs D times less).

    ``corruption: noise`` with ``padding: last_action`` is a variant to compare with, in which
    a masked token is replaced by noise and nothing tells where the demonstration ended.
    """

    Config = MaskedHeadConfig
    config: MaskedHeadConfig
    blurred: Tensor

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        config, width = self.config, self.config.hidden_dim
        self.require_length(config.max_seq_len)
        self.bounded = len(self.choices) < action_dim
        self.bins = Bins(action_dim, config.num_bins, self.choices)
        # Of each number its bins, and behind them what stands for a masked one.
        self.tokens = embedding(action_dim * (self.bins.count + 1), width)
        self.positions = embedding(self.chunk_size, width)
        if config.bin_blur:
            every = torch.arange(self.bins.count).unsqueeze(-1).minimum(self.bins.counts - 1)
            # [C,D,C]: what each bin of each number is learned as.
            blurred = self.bins.blurred(every, config.bin_blur)
            self.register_buffer("blurred", blurred, persistent=False)
        self.time = SinusoidalPositionEmbedding(width)
        self.summary = nn.Linear(input_dim, width)
        self.context = None
        if config.conditioning == "tokens":
            self.context = nn.Sequential(nn.Linear(input_dim, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.n_layers)
        )
        self.length = nn.Linear(width, self.chunk_size) if self.ends else None
        self.norm, self.modulation = AdaptiveNorm(width), Modulation(width, 2)
        self.output = nn.Linear(width, action_dim * self.bins.count)
        self._initialise()

    def _initialise(self) -> None:
        # Not time, summary and output: from values as small as a transformer's, or the output from
        # 0 as in DiT, what is observed is learned to be used many times later.
        init_transformer(self.blocks)
        for block in self._blocks:
            init_identity(block.modulation.linear)

    @property
    def ends(self) -> bool:
        """Whether chunks may end before K rows."""
        return bool(self.config.padding == "left_out") and self.chunk_size > 1

    @property
    def chooses(self) -> bool:
        """See :attr:`ActionHead.chooses`."""
        return True

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`.

        Parts: ``cross_entropy`` of masked tokens, nats a token; ``accuracy``, the share of them
        whose likeliest bin is right; ``mask_ratio``, the share of tokens that are masked;
        ``length``, -log p of how many rows there are, where it is learned: its share of each
        token is added to the total.
        """
        target, repeats = hold_last(target, is_pad), self.config.times_per_sample
        dice = self.dice(target)
        bins = self.bins.of(target).repeat_interleave(repeats, 0)
        known = target.isfinite().repeat_interleave(repeats, 0)
        counted = self._counted(is_pad).repeat_interleave(repeats, 0)
        times = self.random_times(target.shape[0], repeats, dice)
        drawn = torch.rand(bins.shape, generator=dice, device=bins.device)
        ratio = mask_ratio(self.config.schedule, times)[:, None, None]
        masked = (drawn < ratio) & counted.unsqueeze(-1)
        seen = self.condition(features, repeats)
        noise = self._noise(bins.shape[0], dice)
        logits = self.logits(bins, masked, times, seen, counted, noise)
        # No bin stands for what is no number, and it must not pass for one.
        surprise = self._surprise(logits, bins).where(known, torch.nan)
        surprise = torch.where(masked, surprise, 0.0)
        right = masked & (logits.argmax(-1) == bins)
        number = masked.sum().clamp_min(1)
        parts = {
            "cross_entropy": surprise.sum() / number,
            "accuracy": right.sum() / number,
            "mask_ratio": masked.sum() / (counted.sum() * self.action_dim),
        }
        total, tokens = parts["cross_entropy"], (counted.sum(1) * self.action_dim).clamp_min(1)
        if self.config.loss_weighting == "elbo":
            weights = elbo_weight(self.config.schedule, times)
            total = (weights * surprise.sum((1, 2)) / tokens).mean()
        if self.length is not None:
            # A row without any action has the number -1, which is nothing to learn.
            told, last = self.length(seen.summary).float(), counted.sum(1) - 1
            lost = functional.cross_entropy(told, last, reduction="none", ignore_index=-1)
            parts["length"] = lost.mean()
            total = total + (lost / tokens).mean()
        return HeadLoss(total, parts)

    def _counted(self, is_pad: Tensor) -> Tensor:
        """bool [B,K]: the rows that are learned and looked at."""
        return torch.ones_like(is_pad) if self.config.padding == "last_action" else ~is_pad

    def _surprise(self, logits: Tensor, bins: Tensor) -> Tensor:
        """-log p [B,K,D] of each token."""
        if not self.config.bin_blur:
            lost = functional.cross_entropy(logits.flatten(0, 2), bins.flatten(), reduction="none")
            return lost.view_as(bins)
        chances = self.blurred[bins, torch.arange(self.action_dim, device=bins.device)]
        told = logits.log_softmax(-1)
        if self.bins.uneven:  # 0 times minus infinity is no number
            told = told.where(chances > 0, 0.0)
        return -(chances * told).sum(-1)

    @torch.no_grad()
    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`."""
        features = as_features(features)
        rows, device = features.summary.shape[0], features.summary.device
        seen = self.condition(features)
        # What a row gets must not depend on which others there are.
        dice, draws = (self.steady(device), 1) if generator is None else (generator, rows)

        counted = self._there(seen.summary, generator)
        longest = int(counted.sum(1).max())

        def predict(bins: Tensor, masked: Tensor, times: Tensor) -> Tensor:
            # Nothing is computed of what is behind the end of every chunk.
            known, hidden, there = (each[:, :longest] for each in (bins, masked, counted))
            told = self.logits(known, hidden, times, seen, there, self._noise(draws, dice))
            return functional.pad(told, (0, 0, 0, 0, 0, self.chunk_size - longest))

        bins, chances = unmask(predict, counted, self.action_dim, self.config, generator)
        actions = self.bins.centres(bins)
        if self.config.bin_blur:  # as far as a target is blurred its bins cannot be told apart
            actions = self.bins.means(chances, bins, math.ceil(2 * self.config.bin_blur))
        return hold_last(actions, ~counted)

    def _there(self, summary: Tensor, generator: Generator | None) -> Tensor:
        """bool [B,K]: the rows that a chunk has."""
        if self.length is None:
            return summary.new_ones(summary.shape[0], self.chunk_size, dtype=torch.bool)
        told = self.length(summary).float()
        last = told.argmax(1)
        if generator is not None and self.config.temperature:
            chances = (told / self.config.temperature).softmax(1).to(generator.device)
            last = torch.multinomial(chances, 1, generator=generator)[:, 0].to(told.device)
        there: Tensor = torch.arange(self.chunk_size, device=summary.device) <= last[:, None]
        return there

    def condition(self, features: Features, repeats: int = 1) -> Seen:
        """What the network needs of the features of B observations, once for all steps."""
        summary = self.summary(features.summary).repeat_interleave(repeats, 0)
        if self.context is None:
            return Seen(summary)
        tokens = self.context(features.tokens.values)
        contexts = [block.attention.keys_values(tokens) for block in self._blocks]
        if repeats > 1:
            contexts = [
                (keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0))
                for keys, values in contexts
            ]
        return Seen(summary, contexts, features.tokens.mask.repeat_interleave(repeats, 0))

    def logits(
        self,
        bins: Tensor,
        masked: Tensor,
        times: Tensor,
        seen: Seen,
        counted: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,K,D,C], float32, of every token given those that are not masked.

        Args:
            bins: int64 [B,K,D], K at most the head's; what stands in masked ones changes nothing.
            masked: bool [B,K,D].
            times: [B].
            seen: of :meth:`condition`.
            counted: bool [B,K], rows that are looked at; None: all.
            noise: [B,K,W] or [1,K,W] in place of masked tokens; None: what was learned for them.
        """
        rows = bins.shape[1]
        noise = None if noise is None else noise[:, :rows]
        hidden = self._embedded(bins, masked, noise) + self.positions[:rows]
        condition = self.time(times) + seen.summary
        mask = counted
        if seen.mask is not None:
            own = torch.ones_like(masked[..., 0]) if counted is None else counted
            mask = torch.cat([seen.mask, own], 1)
        for depth, block in enumerate(self._blocks):
            context = seen.contexts[depth] if seen.contexts else None
            hidden = block(hidden, condition, mask, context)
        scale, shift = self.modulation(condition)
        raw: Tensor = self.output(self.norm(hidden, scale, shift)).float()
        return self.bins.legal(raw.reshape(*raw.shape[:2], self.action_dim, -1))

    def _noise(self, rows: int, dice: Generator | None) -> Tensor | None:
        """What stands for masked tokens, [rows,K,W]; None where it is learned."""
        if self.config.corruption == "mask":
            return None
        device = self.grippers.device
        source = device if dice is None else dice.device
        shape = (rows, self.chunk_size, self.config.hidden_dim)
        return torch.randn(shape, generator=dice, device=source).to(device)

    def _embedded(self, bins: Tensor, masked: Tensor, noise: Tensor | None) -> Tensor:
        """Rows [B,K,W]: the sum of the embeddings of their tokens."""
        count = self.bins.count
        first = torch.arange(self.action_dim, device=bins.device) * (count + 1)
        numbers = torch.where(masked, count, bins) + first
        rows = functional.embedding_bag(numbers.flatten(0, 1), self.tokens, mode="sum")
        rows = rows.view(*bins.shape[:2], -1)
        if noise is None:
            return rows
        marks = self.tokens[first + count]
        hidden = masked.to(rows.dtype)
        return rows - hidden @ marks + hidden.mean(-1, keepdim=True) * noise

    @property
    def _blocks(self) -> list[DiTBlock]:
        return cast(list[DiTBlock], list(self.blocks))

"""Networks that clean noisy chunks of actions, and what heads built on them share.

Shapes: B batch, R noisy chunks of each observation, K chunk, D action, N tokens, W width of the
denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from teamvla.models.attention import Attention, TransformerBlock, require_heads
from teamvla.models.blocks import ResidualBlock, sinusoids
from teamvla.models.features import Features, Tokens
from teamvla.models.heads.base import ActionHead, HeadConfig, as_features
from teamvla.models.initialization import embedding, init_transformer

#: numbers that tell the time 0..1 to a network, and the scale that spreads them
_TIME_DIM, _TIME_SCALE = 64, 1000.0


class DenoisingConfig(HeadConfig):
    """Settings of heads that sample by cleaning noise step by step."""

    denoiser: Literal["mlp", "transformer"] = Field(
        default="mlp",
        description="Network: mlp (whole chunk, summary) or transformer (an action a token).",
    )
    hidden_dim: int | None = Field(
        default=None,
        ge=1,
        description="Width of the denoiser; null: 512 for mlp, 128 for transformer.",
    )
    n_layers: int = Field(default=3, ge=1, description="Blocks of the denoiser.")
    num_heads: int = Field(
        default=4, ge=1, description="transformer: attention heads; divides hidden_dim."
    )
    mlp_ratio: float = Field(
        default=2.0, gt=0, description="transformer: hidden width of the MLPs / hidden_dim."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each block.")
    num_inference_steps: int = Field(
        default=10, ge=1, description="Steps from noise to actions; each runs the denoiser once."
    )
    times_per_sample: int = Field(
        default=4,
        ge=1,
        description="Noise levels that each observation, encoded once, is trained at.",
    )
    clip_sample: bool = Field(
        default=True, description="Keep estimates of the actions in [-1, 1], what was seen."
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.denoiser == "transformer":
            require_heads(self.num_heads, "hidden_dim", self.width)
        return self

    ADJUSTABLE: ClassVar[tuple[str, ...]] = ("num_inference_steps",)

    @property
    def width(self) -> int:
        """W, the width of the denoiser."""
        return self.hidden_dim or (512 if self.denoiser == "mlp" else 128)


class Denoiser(nn.Module, ABC):
    """A noisy chunk, the time and the features to a clean chunk, or to what was added.

    Args:
        input_dim: width of the features.
        action_dim: D.
        chunk_size: K.
        config: settings.
    """

    def __init__(
        self, input_dim: int, action_dim: int, chunk_size: int, config: DenoisingConfig
    ) -> None:
        super().__init__()
        self.chunk_size, self.action_dim = chunk_size, action_dim
        self.times = nn.Linear(_TIME_DIM, config.width)
        self.summary = nn.Linear(input_dim, config.width)

    def embed(self, times: Tensor) -> Tensor:
        """Times [...] in 0..1 to [...,W]."""
        embedded: Tensor = self.times(sinusoids(times * _TIME_SCALE, _TIME_DIM))
        return embedded

    def condition(self, features: Features) -> Features:
        """What the network needs of the features, of width W: once for all steps."""
        summary = self.summary(features.summary)
        return Features.of(summary)

    @abstractmethod
    def forward(
        self, noisy: Tensor, times: Tensor, seen: Features, is_pad: Tensor | None = None
    ) -> Tensor:
        """The network's estimate [B*R,K,D].

        Args:
            noisy: [B*R,K,D], those of one observation in succession.
            times: of :meth:`embed`, [B*R,W] or [1,W].
            seen: of :meth:`condition`, B rows.
            is_pad: bool [B*R,K] of rows that no other may look at; None: there are none.
        """

    def around(self, times: Tensor, seen: Features, rows: int) -> Tensor:
        """Time and summary of each noisy chunk, [rows,W]."""
        return times + seen.summary.repeat_interleave(rows // seen.summary.shape[0], 0)


class MLPDenoiser(Denoiser):
    """Residual MLP on the whole chunk (as in the image-free part of Chi et al. 2023).

    noisy [B,K*D] -> linear --+
    summary [B,input] -> linear + -> residual block x n_layers -> norm -> linear [B,K*D]
    time -> sinusoids -> linear --+
    """

    def __init__(
        self, input_dim: int, action_dim: int, chunk_size: int, config: DenoisingConfig
    ) -> None:
        super().__init__(input_dim, action_dim, chunk_size, config)
        width, flat = config.width, chunk_size * action_dim
        self.noisy = nn.Linear(flat, width)
        self.blocks = nn.Sequential(
            *(ResidualBlock(width, config.dropout) for _ in range(config.n_layers))
        )
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, flat))

    def forward(
        self, noisy: Tensor, times: Tensor, seen: Features, is_pad: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Denoiser.forward`; padded rows are part of the input as they stand."""
        hidden = self.noisy(noisy.flatten(1)) + self.around(times, seen, noisy.shape[0])
        cleaned: Tensor = self.outputs(self.blocks(hidden))
        return cleaned.reshape(noisy.shape).float()


class DenoisingBlock(nn.Module):
    """x + cross-attention(norm x), then a block of self-attention and MLP.

    All noisy chunks of an observation look at its tokens together, so that these need no copies.
    """

    def __init__(self, config: DenoisingConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.norm, self.cross = nn.LayerNorm(width), Attention(width, heads)
        self.dropout = nn.Dropout(config.dropout)
        self.block = TransformerBlock(width, heads, config.mlp_ratio, config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None, context: Tokens) -> Tensor:
        """[B*R,K,W] that look at a context of B rows to [B*R,K,W]."""
        together = self.norm(hidden).reshape(context.values.shape[0], -1, hidden.shape[-1])
        looked = self.cross(together, context.values, context.mask[:, None, None])
        mixed: Tensor = self.block(hidden + self.dropout(looked).reshape(hidden.shape), mask)
        return mixed


class TransformerDenoiser(Denoiser):
    """Transformer in which each noisy action is a token (Chi et al. 2023, arXiv 2303.04137).

    noisy [B,K,D] -> linear + position + time + linear(summary)
                  -> (cross-attention to features.tokens, self-attention, MLP) x n_layers
                  -> norm -> linear [B,K,D]
    """

    def __init__(
        self, input_dim: int, action_dim: int, chunk_size: int, config: DenoisingConfig
    ) -> None:
        super().__init__(input_dim, action_dim, chunk_size, config)
        width = config.width
        self.tokens = nn.Sequential(nn.LayerNorm(input_dim), nn.Linear(input_dim, width))
        self.noisy = nn.Linear(action_dim, width)
        self.blocks = nn.ModuleList(DenoisingBlock(config) for _ in range(config.n_layers))
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        init_transformer(self)
        self.positions = embedding(chunk_size, width)

    def condition(self, features: Features) -> Features:
        """See :meth:`Denoiser.condition`."""
        tokens = Tokens(self.tokens(features.tokens.values), features.tokens.mask)
        return Features(self.summary(features.summary), tokens)

    def forward(
        self, noisy: Tensor, times: Tensor, seen: Features, is_pad: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Denoiser.forward`."""
        mask = None if is_pad is None else ~is_pad
        around = self.around(times, seen, noisy.shape[0])
        hidden = self.noisy(noisy) + self.positions + around.unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden, mask, seen.tokens)
        cleaned: Tensor = self.outputs(hidden)
        return cleaned.float()


class DenoisingHead(ActionHead):
    """Base of heads that sample by cleaning noise; the subclass knows how noise is added."""

    config: DenoisingConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self.bounded = self.config.clip_sample
        kind = MLPDenoiser if self.config.denoiser == "mlp" else TransformerDenoiser
        self.denoiser = kind(input_dim, action_dim, self.chunk_size, self.config)

    @torch.no_grad()
    def predict(
        self,
        features: Features | Tensor,
        num_steps: int | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Sampled actions [B,K,D] (no K if it is 1), by so many steps.

        Args:
            features: or a summary [B,input_dim].
            num_steps: ``num_inference_steps`` of the settings unless given.
            generator: see :meth:`ActionHead.sample`.
        """
        steps = self.config.num_inference_steps if num_steps is None else num_steps
        return self.squeezed(self.denoise(as_features(features), steps, generator))

    @torch.no_grad()
    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`."""
        return self.denoise(as_features(features), self.config.num_inference_steps, generator)

    @abstractmethod
    def denoise(self, features: Features, num_steps: int, generator: Generator | None) -> Tensor:
        """Actions [B,K,D] from noise."""

    def noise_like(self, actions: Tensor, dice: Generator | None) -> Tensor:
        """Standard normal of the shape of ``actions``, from :meth:`dice`."""
        return torch.randn(actions.shape, generator=dice, device=actions.device)

"""Features to actions by a conditional variational autoencoder: action chunking (ACT).

Shapes: B batch, K chunk, D action, W width of the head, N tokens of the features, Z latent.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from teamvla.models.attention import TransformerBlock, require_heads
from teamvla.models.features import Features, Tokens
from teamvla.models.heads.base import (
    HeadLoss,
    RegressionConfig,
    RegressionHead,
    as_features,
    hold_last,
)
from teamvla.models.initialization import embedding, init_transformer


class ACTHeadConfig(RegressionConfig):
    """Settings of :class:`ACTActionHead`."""

    type: Literal["act"] = Field(default="act", description="Variational autoencoder of chunks.")
    loss_type: Literal["huber", "l1", "mse"] = Field(
        default="l1", description="What is minimised: huber, l1 or mse."
    )
    latent_dim: int = Field(default=32, ge=1, description="Numbers that tell manners apart.")
    kl_weight: float = Field(
        default=10.0, ge=0, description="Weight of the divergence; less: the latent tells more."
    )
    hidden_dim: int = Field(default=256, ge=1, description="Width of the tokens.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides hidden_dim.")
    encoder_layers: int = Field(
        default=1, ge=1, description="Transformer blocks of the encoder, used in training only."
    )
    decoder_layers: int = Field(default=2, ge=1, description="Transformer blocks of the decoder.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / width.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each block.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> ACTHeadConfig:
        require_heads(self.num_heads, "hidden_dim", self.hidden_dim)
        return self


class ChunkEncoder(nn.Module):
    """What was done, in which manner: a demonstrated chunk to a distribution over latents.

    [CLS, summary, row 0 .. row K-1] -> transformer blocks -> CLS -> mean, log variance [B,Z]
    """

    def __init__(
        self, input_dim: int, action_dim: int, chunk_size: int, config: ACTHeadConfig
    ) -> None:
        super().__init__()
        width = config.hidden_dim
        self.cls = embedding(1, 1, width)
        self.summary, self.rows = nn.Linear(input_dim, width), nn.Linear(action_dim, width)
        self.positions = embedding(chunk_size + 2, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, config.dropout)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 2 * config.latent_dim)

    def forward(self, summary: Tensor, target: Tensor, is_pad: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, float32, of chunks [B,K,D]; padding is not looked at."""
        cls = self.cls.expand(target.shape[0], -1, -1)
        rows = self.rows(hold_last(target, is_pad))
        tokens = torch.cat([cls, self.summary(summary).unsqueeze(1), rows], 1) + self.positions
        mask = nn.functional.pad(~is_pad, (2, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, mask)
        mean, log_variance = self.output(self.norm(tokens[:, 0])).float().chunk(2, -1)
        return mean, log_variance


class ACTActionHead(RegressionHead):
    """Action chunking with transformers (Zhao et al. 2023, arXiv 2304.13705).

        training:  summary, chunk -> encoder -> mean, variance -> z --+
        running:   z = 0, or drawn -----------------------------------+
                                                                      v
        K queries -> transformer blocks that look at [z + summary, tokens of the features]
                  -> linear -> rows [B,K,D]

        loss = loss_type(action) + gripper_weight * BCE + kl_weight * KL(posterior || normal)

    People do the same thing in several manners; z says which, so that the decoder need not
    predict a mean of them. While it is trained z is drawn; the loss in evaluation is that of
    z = 0, as it is deployed, and leaves the divergence out, which no deployment knows.
    """

    Config = ACTHeadConfig
    config: ACTHeadConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        config, width = self.config, self.config.hidden_dim
        self.encoder = ChunkEncoder(input_dim, action_dim, self.chunk_size, config)
        self.latent, self.summary = nn.Linear(config.latent_dim, width), nn.Linear(input_dim, width)
        self.tokens = nn.Linear(input_dim, width)
        self.queries = embedding(self.chunk_size, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.num_heads, config.mlp_ratio, config.dropout, width)
            for _ in range(config.decoder_layers)
        )
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, action_dim)
        init_transformer(self)

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`."""
        mean, log_variance = self.encoder(features.summary, target, is_pad)
        spread = (log_variance / 2).exp()
        z = mean + spread * torch.randn_like(spread) if self.training else torch.zeros_like(mean)
        lost = self.regression(self.decode(features, z), target, is_pad)
        kl = kl_to_normal(mean, log_variance)
        total = lost.total + self.config.kl_weight * kl if self.training else lost.total
        return HeadLoss(total, {**lost.parts, "kl": kl}, lost.predicted)

    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`; without a generator z is 0, the likeliest."""
        features = as_features(features)
        summary = features.summary
        shape = (summary.shape[0], self.config.latent_dim)
        if generator is None:
            z = torch.zeros(shape, device=summary.device)
        else:
            z = torch.randn(shape, generator=generator, device=generator.device)
        return self.finish(self.decode(features, z.to(summary.device)))

    def decode(self, features: Features, z: Tensor) -> Tensor:
        """The network's output [B,K,D], float32, for a latent [B,Z]."""
        context = features.tokens
        first = (self.latent(z) + self.summary(features.summary)).unsqueeze(1)
        values = torch.cat([first, self.tokens(context.values)], 1)
        seen = Tokens(values, nn.functional.pad(context.mask, (1, 0), value=True))
        rows = self.queries.expand(z.shape[0], -1, -1)
        for block in self.blocks:
            rows = block(rows, context=seen)
        raw: Tensor = self.output(self.norm(rows)).float()
        return raw


def kl_to_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of normals [B,Z] from the standard normal, summed over Z, mean over B.

    (mean^2 + variance - log variance - 1) / 2
    """
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(-1).mean() / 2

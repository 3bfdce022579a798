"""Transformer blocks that are steered by a condition: diffusion transformers.

Shapes: B batch, N tokens, M of a context, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from teamvla.models.attention import Attention, KeysValues, require_heads
from teamvla.models.blocks import sinusoids
from teamvla.models.initialization import init_identity

#: spreads times 0..1 over the wavelengths of the sinusoids
_TIME_SCALE = 1000.0


class SinusoidalPositionEmbedding(nn.Module):
    """How far a diffusion is, t in 0..1, to a vector [B,W] (as DiT tells it).

        t -> sinusoids [B,W] -> linear -> silu -> linear

    Args:
        hidden_dim: W, even.

    Raises:
        ValueError: it is odd.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim % 2:
            raise ValueError(f"hidden_dim {hidden_dim} must be even")
        self.hidden_dim = hidden_dim
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )

    def forward(self, times: Tensor) -> Tensor:
        """Times [B] to [B,W]."""
        embedded: Tensor = self.layers(sinusoids(times * _TIME_SCALE, self.hidden_dim))
        return embedded


class Modulation(nn.Module):
    """A condition [B,W] to so many vectors [B,1,W], all 0 at first.

    Args:
        width: W.
        count: of vectors.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count, self.linear = count, nn.Linear(width, count * width)
        init_identity(self.linear)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        steered: Tensor = self.linear(functional.silu(condition))
        parts = steered.view(-1, self.count, 1, steered.shape[-1] // self.count)
        return parts.unbind(1)


class AdaptiveNorm(nn.Module):
    """Layer norm without weights of its own: a condition says scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Tokens [B,N,W]; ``scale`` and ``shift`` [B,1,W], no change at 0."""
        normed: Tensor = self.norm(tokens)
        return normed * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Pre-norm block whose norms and gates a condition decides (adaLN-Zero).

        x + gate * attention(norm(x) * (1 + scale) + shift), then the same with an MLP

    Scales, shifts and gates are a linear layer of the condition that begins at 0: the block is
    the identity at first (Peebles and Xie 2023, arXiv 2212.09748).

    Args:
        hidden_dim: W.
        num_heads: divides ``hidden_dim``.
        mlp_ratio: hidden width of the MLP / W.
        dropout: rate behind attention and MLP.

    Raises:
        ValueError: ``num_heads`` does not divide ``hidden_dim``.
    """

    def __init__(
        self, hidden_dim: int, num_heads: int = 4, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        require_heads(num_heads, "hidden_dim", hidden_dim)
        hidden = int(hidden_dim * mlp_ratio)
        self.norm = AdaptiveNorm(hidden_dim)
        self.attention = Attention(hidden_dim, num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden_dim)
        )
        self.modulation = Modulation(hidden_dim, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        context: KeysValues | None = None,
    ) -> Tensor:
        """Tokens [B,N,W] to tokens [B,N,W].

        Args:
            condition: [B,W], such as time and state, added.
            mask: bool [B,N], or [B,M+N] with a context; False is not looked at. None: all is.
            context: keys and values of M more tokens to look at, in front of the others, by
                ``attention.keys_values``.
        """
        scale, shift, gate, *of_mlp = self.modulation(condition)
        normed = self.norm(tokens, scale, shift)
        seen = self.attention.keys_values(normed)
        if context is not None:
            seen = torch.cat([context[0], seen[0]], 2), torch.cat([context[1], seen[1]], 2)
        keys = None if mask is None else mask[:, None, None]
        tokens = tokens + gate * self.dropout(self.attention.attend(normed, seen, keys))
        scale, shift, gate = of_mlp
        mixed: Tensor = gate * self.dropout(self.mlp(self.norm(tokens, scale, shift)))
        return tokens + mixed

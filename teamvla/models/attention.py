"""Attention and the transformer block that everything here is built of.

The four projections are layers of their own and attention is called directly, so that adapters
(LoRA) reach each of them in training and in evaluation alike.

Shapes: B batch, N M tokens, D width.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from teamvla.config import Settings
from teamvla.models.features import Tokens

#: keys and values of a context, each [B,heads,M,D/heads]
KeysValues = tuple[Tensor, Tensor]


def require_heads(num_heads: int, name: str, width: int) -> None:
    """ValueError unless the heads divide the width of that name."""
    if width % num_heads:
        raise ValueError(f"num_heads {num_heads} must divide {name} {width}")


class AttentionSettings(Settings):
    """Settings of every transformer over tokens of width ``embed_dim``."""

    embed_dim: int = Field(default=256, ge=1, description="Width of a token.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides embed_dim.")
    mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of the MLPs / embed_dim.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        require_heads(self.num_heads, "embed_dim", self.embed_dim)
        return self


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        width: D, of queries and result; ``num_heads`` divides it.
        num_heads: parallel attentions.
        context_width: of what is attended to, D by default.
    """

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        source = width if context_width is None else context_width
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(source, width)
        self.v_proj, self.o_proj = nn.Linear(source, width), nn.Linear(width, width)

    def forward(
        self,
        queries: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Queries [B,N,D] that look at a context [B,M,D] to [B,N,D].

        Args:
            mask: bool, broadcast to [B,1,N,M]; False is not looked at. None: all is.
            causal: N is M, and a query looks at those up to its own place; without ``mask``.
        """
        return self.attend(queries, self.keys_values(context), mask, causal=causal)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Of a context [B,M,D] what :meth:`attend` needs, for whoever looks at it repeatedly."""
        return self._split(self.k_proj(context)), self._split(self.v_proj(context))

    def attend(
        self,
        queries: Tensor,
        seen: KeysValues,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """As :meth:`forward`, with the context as keys and values."""
        q = self._split(self.q_proj(queries))
        attended = scaled_dot_product(q, *seen, mask, causal)
        mixed: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, tokens: Tensor) -> Tensor:
        heads = tokens.reshape(*tokens.shape[:2], self.num_heads, -1)
        return heads.transpose(1, 2)


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    attention = functional.scaled_dot_product_attention
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return attention(q, k, v, mask, is_causal=causal)
    # On a CPU its backward pass is up to eight times slower in bf16 than in float32.
    with torch.autocast("cpu", enabled=False):
        full = attention(q.float(), k.float(), v.float(), mask, is_causal=causal)
    return full.to(q.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm x), optionally + cross-attention, then + MLP.

    Args:
        width: D.
        num_heads: divides ``width``.
        mlp_ratio: hidden width of the MLP / D.
        dropout: rate behind each of its parts.
        context_width: of a context to look at besides; None: there is none.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm_attention, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.cross = None
        if context_width is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.cross = Attention(width, num_heads, context_width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)
        #: whether the backward pass computes it again, instead of what it computed being kept
        self.checkpointed = False

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        context: Tokens | None = None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Tokens [B,N,D] to tokens [B,N,D].

        Args:
            mask: bool [B,N] of the tokens that count; None: all.
            context: what all of them look at, if the block was made for one.
            causal: a token looks at itself and those before it.
        """
        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._computed(tokens, mask, context, causal)
        again: Tensor = checkpoint(
            self._computed, tokens, mask, context, causal, use_reentrant=False
        )
        return again

    def _computed(
        self, tokens: Tensor, mask: Tensor | None, context: Tokens | None, causal: bool
    ) -> Tensor:
        normed = self.norm_attention(tokens)
        seen = None if mask is None else mask[:, None, None]
        if causal and seen is not None:
            length = tokens.shape[1]
            before = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
            seen = seen & before
        alone = causal and seen is None  # without a mask the kernels need none for it either
        tokens = tokens + self.dropout(self.attention(normed, normed, seen, causal=alone))
        if self.cross is not None and context is not None:
            normed, keys = self.norm_cross(tokens), context.mask[:, None, None]
            tokens = tokens + self.dropout(self.cross(normed, context.values, keys))
        mixed: Tensor = self.dropout(self.mlp(self.norm_mlp(tokens)))
        return tokens + mixed

    def step(
        self,
        token: Tensor,
        before: KeysValues | None,
        context: KeysValues | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """One more token [B,1,D] of a causal sequence, as :meth:`forward` gives it, no dropout.

        Args:
            before: what this method gave with the token before; None at the first.
            context: of what all tokens look at, by ``cross.keys_values``.
            keys: bool [B,1,1,M], which of the context count.
        """
        normed = self.norm_attention(token)
        seen = self.attention.keys_values(normed)
        if before is not None:
            seen = torch.cat([before[0], seen[0]], 2), torch.cat([before[1], seen[1]], 2)
        token = token + self.attention.attend(normed, seen)
        if self.cross is not None and context is not None:
            token = token + self.cross.attend(self.norm_cross(token), context, keys)
        return token + self.mlp(self.norm_mlp(token)), seen

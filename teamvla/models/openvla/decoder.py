"""Language models of the Llama family, taken apart where action experts need their layers.

The names of the layers are those of transformers, which published weights have.

Shapes: B batch, N M tokens, D width, H heads, G heads of keys and values, W width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.attention import KeysValues, scaled_dot_product
from teamvla.models.initialization import init_transformer

#: what transformers takes for a Llama of which it is told nothing else
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
}  # fmt: skip


class DecoderSettings(Settings):
    """Sizes of a :class:`Decoder`, in the words of a transformers ``config.json``."""

    vocab_size: int = Field(default=576, ge=1, description="Tokens that it knows.")
    hidden_size: int = Field(default=128, ge=1, description="Width of a token.")
    intermediate_size: int = Field(default=256, ge=1, description="Hidden width of the MLPs.")
    num_hidden_layers: int = Field(default=2, ge=1, description="Layers.")
    num_attention_heads: int = Field(default=4, ge=1, description="Attention heads.")
    num_key_value_heads: int = Field(
        default=4, ge=1, description="Heads of keys and values; divides num_attention_heads."
    )
    head_dim: int = Field(default=32, ge=2, multiple_of=2, description="Width of a head.")
    rms_norm_eps: float = Field(default=1e-6, gt=0, description="Floor of the norms.")
    rope_theta: float = Field(
        default=10_000.0, gt=0, description="Longest wavelength of the rotary positions / 2 pi."
    )

    @model_validator(mode="after")
    def _groups_divide_the_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any], where: str) -> DecoderSettings:
        """The sizes in a ``text_config``; what it leaves out is as in Llama 2.

        Raises:
            ConfigError: it is a model of another family, or with scaled positions.
        """
        family, rope = config.get("model_type", "llama"), config.get("rope_parameters") or {}
        kind = rope.get("rope_type", "default")
        if family != "llama" or kind != "default" or config.get("rope_scaling"):
            got = family if family != "llama" else f"rotary positions of type {kind!r}, or scaled"
            raise ConfigError(where, "a language model of the Llama family", str(got))
        given = {name: config.get(name, value) for name, value in _LLAMA.items()}
        given["rope_theta"] = rope.get("rope_theta", given["rope_theta"])
        heads = given["num_attention_heads"]
        given["num_key_value_heads"] = config.get("num_key_value_heads") or heads
        given["head_dim"] = config.get("head_dim") or given["hidden_size"] // heads
        return cls(**given)

    def to_transformers(self) -> dict[str, Any]:
        """A ``text_config`` that says all of it."""
        return {"model_type": "llama", "tie_word_embeddings": False, **self.model_dump()}


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,D] to [...,D] of the same dtype."""
        full = tokens.float()
        normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(tokens.dtype)


def rotate(heads: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): heads [B,H,N,W], positions [B,N]."""
    half = heads.shape[-1] // 2
    exponents = torch.arange(half, dtype=torch.float32, device=heads.device) / half
    angles = (positions.float().unsqueeze(-1) / theta**exponents).unsqueeze(1)
    first, second = heads.float().chunk(2, dim=-1)
    sine, cosine = angles.sin(), angles.cos()
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(heads.dtype)


class GroupedAttention(nn.Module):
    """Attention with fewer heads of keys and values (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        config: heads and their width.
        width: D, of queries and result; by default that of the settings.
        context_width: of what is attended to; D by default.
    """

    def __init__(
        self, config: DecoderSettings, width: int | None = None, context_width: int | None = None
    ) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        source = width if context_width is None else context_width
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.groups = config.num_attention_heads // config.num_key_value_heads
        inner, narrow = (
            heads * config.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(source, narrow, bias=False)
        self.v_proj = nn.Linear(source, narrow, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)

    def keys_values(self, context: Tensor, positions: Tensor | None = None) -> KeysValues:
        """Keys and values [B,G,M,W] of a context [B,M,...]; without positions unrotated."""
        keys, values = self.split(self.k_proj(context)), self.split(self.v_proj(context))
        return (keys if positions is None else rotate(keys, positions, self.theta)), values

    def attend(self, queries: Tensor, positions: Tensor, seen: KeysValues, mask: Tensor) -> Tensor:
        """Queries [B,N,D] at positions [B,N] to [B,N,D].

        Args:
            seen: what is looked at.
            mask: bool, broadcast to [B,1,N,M]; False is not looked at, and no row is all False.
        """
        q = rotate(self.split(self.q_proj(queries)), positions, self.theta)
        k, v = (part.repeat_interleave(self.groups, dim=1) for part in seen)
        attended = scaled_dot_product(q, k.to(q.dtype), v.to(q.dtype), mask, False)
        mixed: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return mixed

    def split(self, tokens: Tensor) -> Tensor:
        """[B,N,heads * W] to [B,heads,N,W]."""
        heads = tokens.reshape(*tokens.shape[:2], -1, self.head_dim)
        return heads.transpose(1, 2)


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,D] to [...,D]."""
        mixed: Tensor = self.down_proj(
            functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens)
        )
        return mixed


class DecoderLayer(nn.Module):
    """x + attention(norm x), then x + MLP(norm x).

    Args:
        config: sizes of the heads, and of everything else unless told here.
        width: D.
        hidden: of the MLP.
        context_width: of a context that is attended to instead of the tokens themselves.
    """

    def __init__(
        self,
        config: DecoderSettings,
        width: int | None = None,
        hidden: int | None = None,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        width, eps = width or config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = GroupedAttention(config, width, context_width)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = GatedMLP(width, hidden or config.intermediate_size)

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, before: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Tokens [B,N,D] that look at those ``before`` and at themselves, as the mask lets them.

        Returns:
            [B,N,D], and the keys and values of all that was looked at.
        """
        normed = self.input_layernorm(tokens)
        seen = self.self_attn.keys_values(normed, positions)
        if before is not None:
            seen = torch.cat([before[0], seen[0]], 2), torch.cat([before[1], seen[1]], 2)
        return self.rest(tokens, self.self_attn.attend(normed, positions, seen, mask)), seen

    def rest(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """What comes behind attention."""
        tokens = tokens + attended
        mixed: Tensor = self.mlp(self.post_attention_layernorm(tokens))
        return tokens + mixed


class Decoder(nn.Module):
    """Llama (Touvron et al. 2023, arXiv 2307.09288), with its layer of logits.

    embeddings [B,N,D] -> (attention with rotary positions, gated MLP) x layers -> norm [B,N,D]

    Args:
        config: sizes.
    """

    supports_gradient_checkpointing = True

    def __init__(self, config: DecoderSettings) -> None:
        super().__init__()
        self.config, self.checkpointed = config, False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        init_transformer(self)

    def forward(
        self,
        embedded: Tensor,
        positions: Tensor,
        mask: Tensor,
        before: Sequence[KeysValues] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Embedded tokens [B,N,D] to what :attr:`lm_head` reads [B,N,D].

        Args:
            positions: int64 [B,N], how many tokens that count are before each.
            mask: bool, broadcast to [B,1,N,M], of M tokens before and now; no row is all False.
            before: what this method gave with the tokens before.

        Returns:
            The tokens, and of every layer the keys and values of all M.
        """
        tokens, caches = embedded, []
        for depth, layer in enumerate(self._layers):
            tokens, seen = self._run(layer, tokens, positions, mask, before and before[depth])
            caches.append(seen)
        return self.norm(tokens), caches

    def keys_values(
        self, embedded: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, list[KeysValues]]:
        """As :meth:`forward`, but no more is computed of the last layer than its keys and values.

        Returns:
            What goes into the last layer [B,N,D], and of every layer its keys and values.
        """
        *most, last = self._layers
        tokens, caches = embedded, []
        for layer in most:
            tokens, seen = self._run(layer, tokens, positions, mask)
            caches.append(seen)
        normed = last.input_layernorm(tokens)
        return tokens, [*caches, last.self_attn.keys_values(normed, positions)]

    def gradient_checkpointing_enable(self, settings: Mapping[str, Any] | None = None) -> None:
        """Compute the layers again in the backward pass; spelt as in transformers."""
        self.checkpointed = True

    def _run(self, layer: DecoderLayer, *given: Any) -> tuple[Tensor, KeysValues]:
        if self.checkpointed and torch.is_grad_enabled():
            return cast(tuple[Tensor, KeysValues], checkpoint(layer, *given, use_reentrant=False))
        return cast(tuple[Tensor, KeysValues], layer(*given))

    @property
    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

"""Instructions to features: a character-level transformer.

Shapes: B batch, N characters, D width. Tokens and their mask always travel together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.models.initialization import init_text

CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
PAD, UNKNOWN = 0, 1
VOCABULARY_SIZE = len(CHARACTERS) + 2
_IDS = {character: place for place, character in enumerate(CHARACTERS, start=2)}
_CACHE_SIZE = 1024


class LanguageConfig(Settings):
    """Settings of the instruction encoder."""

    embed_dim: int = Field(
        default=64, ge=1, description="Width; length of an instruction's feature."
    )
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides embed_dim.")
    num_layers: int = Field(default=2, ge=0, description="Transformer blocks.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / embed_dim.")
    max_text_len: int = Field(default=64, ge=1, description="Characters that are read of a text.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> LanguageConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide embed_dim {self.embed_dim}")
        return self


def tokenize(texts: Sequence[str], max_length: int = 64) -> dict[str, Tensor]:
    """Characters to numbers, padded to the longest text of the batch.

    Upper case reads as lower case, characters outside the vocabulary as one "unknown",
    no text at all as one blank.

    Returns:
        ``input_ids`` int64 [B,N] and ``attention_mask`` bool [B,N], False on padding.
    """
    rows = [[_IDS.get(c, UNKNOWN) for c in (text.lower() or " ")[:max_length]] for text in texts]
    longest = max(map(len, rows), default=1)
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.int64)
    return {"input_ids": ids.view(-1, longest), "attention_mask": ids.view(-1, longest) != PAD}


class TextBlock(nn.Module):
    """Pre-norm transformer block.

    The four projections are separate layers and attention is called directly, so that
    adapters (LoRA) reach each of them in training and in evaluation alike.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B,N,D] under ``mask`` bool [B,N] to tokens [B,N,D]."""
        normed = self.norm_attention(tokens)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (self._split_heads(projection(normed)) for projection in projections)
        attended = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        tokens = tokens + self.o_proj(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.mlp(self.norm_mlp(tokens))
        return tokens + mixed

    def _split_heads(self, tokens: Tensor) -> Tensor:
        heads = tokens.reshape(*tokens.shape[:2], self.num_heads, -1)
        return heads.transpose(1, 2)


class SimpleLanguageEncoder(nn.Module):
    """Character embedding + learned positions + transformer blocks.

        [t e a m _ pad pad] -> tokens [B,N,D] -> masked mean [B,D]

    Instructions repeat: :meth:`encode` runs each distinct one of a batch once, and
    while gradients are off keeps the result until a weight changes.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.features, self.max_text_len = config.embed_dim, config.max_text_len
        self.embedding = nn.Embedding(VOCABULARY_SIZE, config.embed_dim)
        self.positions = nn.Embedding(config.max_text_len, config.embed_dim)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embed_dim)
        self._cache: dict[str, Tensor] = {}
        self._cached_for: tuple[object, ...] = ()
        init_text(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``input_ids`` [B,N] and ``attention_mask`` bool [B,N] to tokens [B,N,D]."""
        tokens: Tensor = self.embedding(input_ids)
        tokens = tokens + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, attention_mask)
        normed: Tensor = self.norm(tokens)
        return normed

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Instructions to features [B,D]."""
        if self.training or torch.is_grad_enabled():
            distinct = list(dict.fromkeys(texts))
            place = {text: row for row, text in enumerate(distinct)}
            encoded = self._encode_all(distinct)
            if len(distinct) == 1:
                return encoded.expand(len(texts), -1)
            return encoded[torch.tensor([place[t] for t in texts], device=encoded.device)]
        self._drop_stale()
        return torch.stack([self._recall(text) for text in texts])

    def train(self, mode: bool = True) -> SimpleLanguageEncoder:
        """Switch the mode, and forget what was encoded."""
        self._cache.clear()
        return super().train(mode)

    def _encode_all(self, texts: Sequence[str]) -> Tensor:
        device = self.embedding.weight.device
        tokens = {k: v.to(device) for k, v in tokenize(texts, self.max_text_len).items()}
        # A few short texts: casting the weights down costs more than it saves.
        with torch.autocast(device.type, enabled=False):
            return forward_text(self, tokens)

    def _recall(self, text: str) -> Tensor:
        if text not in self._cache:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            # Alone, never padded: its feature does not depend on what it was asked with.
            self._cache[text] = self._encode_all([text])[0]
        return self._cache[text]

    def _drop_stale(self) -> None:
        # In-place copies raise a tensor's version, moves change its address: averaged and
        # loaded weights are noticed. Fused optimizers raise nothing, but they work in
        # training mode, and leaving that mode clears the cache.
        weights = tuple((p._version, p.data_ptr()) for p in self.parameters())
        if weights != self._cached_for:
            self._cache.clear()
            self._cached_for = weights


def build_text_encoder(config: LanguageConfig) -> SimpleLanguageEncoder:
    """An encoder with fresh weights."""
    return SimpleLanguageEncoder(config)


def forward_text(encoder: nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    """Features [B,D] of tokenized texts: the mean over the characters that are no padding."""
    mask = tokens["attention_mask"]
    encoded: Tensor = encoder(tokens["input_ids"], mask)
    weights = mask.unsqueeze(-1).to(encoded.dtype)
    return (encoded * weights).sum(1) / weights.sum(1)

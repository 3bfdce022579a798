"""Instructions to tokens, character by character, and how any text encoder is built and called.

Shapes: B batch, N characters, D width. Tokens and their mask always travel together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.models.attention import AttentionSettings, TransformerBlock
from teamvla.models.encoders.base import EncoderConfig, TextEncoder
from teamvla.models.features import Tokens
from teamvla.models.initialization import init_transformer
from teamvla.models.registries import TEXT_ENCODER_REGISTRY

_LOG = logging.getLogger(__name__)
CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
PAD, UNKNOWN = 0, 1
VOCABULARY_SIZE = len(CHARACTERS) + 2
_IDS = {character: place for place, character in enumerate(CHARACTERS, start=2)}


class TextConfig(AttentionSettings, EncoderConfig):
    """Settings that the transformers over characters and over words share."""

    embed_dim: int = Field(default=64, ge=1, description="Width of a token.")
    num_layers: int = Field(default=2, ge=0, description="Transformer blocks.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / embed_dim.")
    max_text_len: int = Field(default=96, ge=1, description="Tokens that are read of a text.")


class CharacterConfig(TextConfig):
    """Settings of :class:`SimpleLanguageEncoder`."""

    type: Literal["characters"] = Field(default="characters", description="Character by character.")


def tokenize(texts: Sequence[str], max_length: int = 64) -> dict[str, Tensor]:
    """Characters to numbers, padded to the longest text of the batch.

    Upper case reads as lower case, characters outside the vocabulary as one "unknown",
    no text at all as one blank.

    Returns:
        ``input_ids`` int64 [B,N] and ``attention_mask`` bool [B,N], False on padding.
    """
    return pad_rows(
        [[_IDS.get(c, UNKNOWN) for c in (t.lower() or " ")[:max_length]] for t in texts]
    )


def pad_rows(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Token numbers, none of them ``PAD``, as ``input_ids`` and ``attention_mask`` [B,N]."""
    longest = max(map(len, rows), default=1)
    padded = [[*row, *[PAD] * (longest - len(row))] for row in rows]
    ids = torch.tensor(padded, dtype=torch.int64).view(-1, longest)
    return {"input_ids": ids, "attention_mask": ids != PAD}


class _Noticed:
    """Whether something was said already; averaged copies of an encoder share it."""

    said = False

    def __deepcopy__(self, memo: object) -> _Noticed:
        return self


class TextTransformer(TextEncoder):
    """Token embedding + learned positions + transformer blocks; a subclass cuts texts up.

    [pick up the cube pad pad] -> tokens [B,N,D] with their mask
    """

    def __init__(self, config: TextConfig, vocabulary_size: int) -> None:
        super().__init__(config)
        self.dim, self.max_text_len = config.embed_dim, config.max_text_len
        self.embedding = nn.Embedding(vocabulary_size, config.embed_dim)
        self.positions = nn.Embedding(config.max_text_len, config.embed_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.embed_dim, config.num_heads, config.mlp_ratio)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        self._cut = _Noticed()
        init_transformer(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See :meth:`TextEncoder.forward`."""
        tokens: Tensor = self.embedding(input_ids)
        tokens = tokens + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, attention_mask)
        normed: Tensor = self.norm(tokens)
        return normed

    def warn_if_cut(self, length: int, text: str) -> None:
        """Say once that an instruction has more than ``max_text_len`` tokens."""
        if length > self.max_text_len and not self._cut.said:
            self._cut.said = True
            _LOG.warning(
                "of instructions only the first %d tokens are read (max_text_len); "
                "one of %d that begins with %r is cut", self.max_text_len, length, text[:40],
            )  # fmt: skip


class SimpleLanguageEncoder(TextTransformer):
    """Reads an instruction character by character; needs no vocabulary."""

    Config = CharacterConfig

    def __init__(
        self, config: CharacterConfig, statistics: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(config, VOCABULARY_SIZE)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See :func:`tokenize`; a text that is too long is cut, with one warning."""
        for text in texts:
            self.warn_if_cut(len(text), text)
        return tokenize(texts, self.max_text_len)


def build_text_encoder(
    config: EncoderConfig, statistics: Mapping[str, Any] | None = None
) -> TextEncoder:
    """An encoder with fresh weights, of the kind that ``config.type`` names.

    Args:
        config: settings.
        statistics: of the training split; ``words`` in it become the vocabulary of words.

    Raises:
        RegistryError: there is no such encoder.
    """
    return TEXT_ENCODER_REGISTRY.get(config.type)(config, statistics)


def forward_text(encoder: nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    """Features [B,D] of tokenized texts: the mean over the tokens that are no padding."""
    mask = tokens["attention_mask"]
    return Tokens(encoder(tokens["input_ids"], mask), mask).mean()

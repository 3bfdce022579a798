"""Instructions to tokens, word by word.

Shapes: B batch, N words, D width. Tokens and their mask always travel together.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from teamvla.errors import ContractError
from teamvla.models.encoders.base import state_of
from teamvla.models.encoders.language import PAD, UNKNOWN, TextConfig, TextTransformer, pad_rows

_LOG = logging.getLogger(__name__)
_WORD = re.compile(r"\w+(?:'\w+)*")
#: of UTF-8 that are kept of a word; longer ones are told apart by these alone
WORD_BYTES = 32
#: token numbers below it are no words
FIRST_WORD = max(PAD, UNKNOWN) + 1


class WordConfig(TextConfig):
    """Settings of :class:`WordEncoder`."""

    type: Literal["words"] = Field(default="words", description="Word by word.")
    vocab_size: int = Field(
        default=1000,
        ge=1,
        description="Most words that are told apart: the most frequent of the training split. "
        "The table has as many rows, however few there are.",
    )
    word_dropout: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Share of words taken for unknown in training, in all of a batch that have "
        "the same instruction alike, so that unknown ones mean something.",
    )


class WordEncoder(TextTransformer):
    """Reads an instruction word by word.

        "Lift the tray!" -> [lift the tray] -> tokens [B,N,D] with their mask

    Case and punctuation are not read. Words that the vocabulary has not are all one token,
    and so is a text without any word. The vocabulary is the words of the training split; it
    is a buffer, so that it is wherever the weights are: in checkpoints, averaged copies and
    trainings that start from another's weights, which keep that one's vocabulary.

    Args:
        config: settings.
        statistics: of the training split: ``words``, as :func:`instruction_words` counts
            them, or a list of words, the most important first.

    Raises:
        ContractError: ``words`` is neither.
    """

    Config = WordConfig
    vocabulary: Tensor

    def __init__(self, config: WordConfig, statistics: Mapping[str, Any] | None = None) -> None:
        super().__init__(config, config.vocab_size + FIRST_WORD)
        words = _ranked((statistics or {}).get("words"))
        if not words:
            _LOG.warning("no words in the statistics: the words of instructions are all unknown")
        if len(words) > config.vocab_size:
            _LOG.info("of %d words the %d most frequent are told apart (vocab_size)",
                      len(words), config.vocab_size)  # fmt: skip
        self.register_buffer("vocabulary", _packed(words[: config.vocab_size], config.vocab_size))
        self.word_dropout = config.word_dropout
        self._numbers: dict[bytes, int] = {}
        self._numbers_for: tuple[object, ...] | None = None

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """See :meth:`TextEncoder.tokenize`; a text that is too long is cut, with one warning."""
        numbers, rows = self._known(), []
        for text in texts:
            words = split_words(text)
            self.warn_if_cut(len(words), text)
            kept = words[: self.max_text_len]
            rows.append([numbers.get(_key(word), UNKNOWN) for word in kept] or [UNKNOWN])
        return pad_rows(rows)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See :meth:`TextEncoder.forward`; in training some words are taken for unknown."""
        if self.training and self.word_dropout:
            dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
            input_ids = input_ids.masked_fill(dropped & attention_mask, UNKNOWN)
        return super().forward(input_ids, attention_mask)

    @property
    def words(self) -> list[str]:
        """The vocabulary, in order of the token numbers."""
        return [word.decode("utf-8", "replace") for word in self._known()]

    def _known(self) -> dict[bytes, int]:
        # Read again when the buffer has been written or moved, as loading does.
        state = state_of([self.vocabulary])
        if state is None or state != self._numbers_for:
            rows = map(bytes, self.vocabulary.cpu().numpy())
            words = [word.rstrip(b"\0") for word in rows]
            self._numbers = {word: n for n, word in enumerate(words, FIRST_WORD) if word}
            self._numbers_for = state
        return self._numbers


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def instruction_words(texts: Iterable[str]) -> dict[str, int]:
    """How often each word occurs in instructions, the most frequent first, then by alphabet."""
    counts = Counter(word for text in texts for word in split_words(text))
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _ranked(words: Any) -> list[bytes]:
    """The keys of the words of a vocabulary, each once, the most important first."""
    if words is None:
        return []
    if isinstance(words, Mapping) and all(isinstance(n, int) for n in words.values()):
        words = sorted(words, key=lambda word: (-words[word], str(word)))
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        expected = "words with their counts, or a list of words"
        raise ContractError("statistics.words", expected, "something else")
    return [key for key in dict.fromkeys(_key(word.lower()) for word in words) if key]


def _packed(keys: Sequence[bytes], rows: int) -> Tensor:
    """Keys in uint8 [rows, WORD_BYTES], filled up with zeros."""
    packed = np.zeros((rows, WORD_BYTES), np.uint8)
    for row, key in zip(packed, keys, strict=False):
        row[: len(key)] = np.frombuffer(key, np.uint8)
    return torch.from_numpy(packed)


def _key(word: str) -> bytes:
    """What a word is looked up by."""
    return word.encode("utf-8", "replace")[:WORD_BYTES]

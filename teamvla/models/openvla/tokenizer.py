"""Texts to the tokens of a published language model. The vocabulary travels in the weights.

Shapes: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from teamvla.errors import ConfigError, InputError, MissingDependencyError
from teamvla.models.encoders.base import state_of
from teamvla.models.pretrained.loading import parse_tokenizer
from teamvla.models.pretrained.settings import are_weights_following

#: of the tokenizer without a file: padding, begin and end come before the 256 bytes
PADDING, BEGIN, FIRST_BYTE = 0, 1, 3


class PublishedTokenizer(nn.Module):
    """The tokenizer of a ``tokenizer.json``, kept as bytes in a buffer.

    A checkpoint that holds the buffer needs no other file. Without a file a text is its UTF-8
    bytes behind a begin token, which needs a vocabulary of 259.

    Args:
        size: of the file, bytes; 0: there is none.
        begins: whether a text without a file gets the begin token.
    """

    file: Tensor

    def __init__(self, size: int, *, begins: bool = True) -> None:
        super().__init__()
        self.register_buffer("file", torch.zeros(size, dtype=torch.uint8))
        self._begins = begins
        self._read: Any = None
        self._known: dict[str, list[int]] = {}
        self._read_from: tuple[object, ...] | None = None

    def load(self, data: bytes) -> None:
        """Take over a file of the size that it was made for; ConfigError if it has another."""
        if len(data) != self.file.numel():
            expected, got = f"{self.file.numel()} bytes", f"{len(data)}"
            raise ConfigError("tokenizer.json", f"{expected}, as the architecture says", got)
        self.file.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))

    def load_from(self, folder: str | None) -> None:
        """Take over the file in the folder of a published model, where there is one.

        Unlike weights it is read even if a checkpoint follows: it is small, and a dry run needs it.
        Not so one of another size: the checkpoint's own was then made with another file.

        Raises:
            InputError: it is missing, and nothing follows that would bring it.
        """
        if folder is None or not self.file.numel():
            return
        path = Path(folder) / "tokenizer.json"
        same = path.is_file() and path.stat().st_size == self.file.numel()
        if same or not are_weights_following():
            self.load(tokenizer_bytes(path.parent))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            MissingDependencyError: there is a file, and no ``tokenizers`` to read it.
        """
        self._forget_stale()
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def batch(
        self, texts: Sequence[Sequence[int]], side: Literal["left", "right"]
    ) -> tuple[Tensor, Tensor]:
        """Rows of tokens as int64 [B,L] and bool [B,L], which are filled up on that side."""
        longest = max(map(len, texts))
        ids = torch.full((len(texts), longest), PADDING, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            place = slice(len(text)) if side == "right" else slice(longest - len(text), None)
            ids[row, place], mask[row, place] = torch.tensor(text), True
        return ids.to(self.file.device), mask.to(self.file.device)

    def _encode(self, text: str) -> list[int]:
        if self._read is not None:
            return list(self._read.encode(text).ids)
        begin = [BEGIN] if self._begins else []
        return begin + [FIRST_BYTE + byte for byte in text.encode()]

    def _forget_stale(self) -> None:
        # Read again when the buffer has been written or moved, as loading does.
        state = state_of([self.file])
        if state is not None and state == self._read_from:
            return
        self._known, self._read_from = {}, state
        self._read = _parse(bytes(self.file.cpu().numpy())) if self.file.numel() else None

    def __deepcopy__(self, memo: dict[int, Any]) -> PublishedTokenizer:
        copied = PublishedTokenizer(self.file.numel(), begins=self._begins)
        copied.file = self.file.clone()
        return copied


def tokenizer_bytes(folder: Path) -> bytes:
    """``tokenizer.json`` of a published model; InputError if it has none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        mend = "Fetch it with the weights; SmolVLA's is that of the SmolVLM2 it was made of."
        raise InputError(str(path), "the tokenizer of a published model", "no such file", mend)
    return path.read_bytes()


def _parse(data: bytes) -> Any:
    try:
        return parse_tokenizer(data)
    except MissingDependencyError:
        raise
    except Exception as error:  # tokenizers raises plain ones
        raise ConfigError("tokenizer.json", "a tokenizer", str(error)) from None

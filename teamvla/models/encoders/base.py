"""What every encoder of pictures or instructions is.

Shapes: B batch, V cameras, C colours, H W pixels, N tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.models.features import Tokens


class EncoderConfig(Settings):
    """Settings that all encoders share; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the encoder.")


class VisionBackbone(nn.Module, ABC):
    """Pictures to tokens, shared by all cameras.

    Attributes:
        dim: D, width of a token.
        num_tokens: N, of one picture.
        features: length of the vector that :meth:`pooling` makes of a picture's tokens.
        middle: of the first token, from the picture's upper left corner, in tokens' sides.

    Args:
        config: settings of the subclass.
        picture: channels, height and width of the pictures.
    """

    Config: ClassVar[type[EncoderConfig]]
    #: whether the first token sums the picture up
    has_cls: ClassVar[bool] = False
    dim: int
    num_tokens: int
    features: int
    middle: float = 0.5

    def __init__(self, config: EncoderConfig, picture: tuple[int, int, int]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Scaled pictures [B,C,H,W] to tokens [B,N,D]."""

    @abstractmethod
    def pooling(self) -> nn.Module:
        """A new layer: tokens [...,N,D] to one vector [...,features].

        It belongs to who asks for it: who works on the tokens themselves has no use for it.
        """


class TextEncoder(nn.Module, ABC):
    """Instructions to tokens.

    Instructions repeat: :meth:`encode` runs each distinct one of a batch once, and while
    gradients are off keeps the result until a weight changes.

    Attributes:
        dim: D, width of a token.

    Args:
        config: settings of the subclass.
        statistics: of the training split; their ``words`` are those of its instructions.
    """

    Config: ClassVar[type[EncoderConfig]]
    dim: int
    _CACHE_SIZE = 1024

    def __init__(self, config: EncoderConfig, statistics: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._cache: dict[str, Tensor] = {}
        self._cached_for: tuple[object, ...] | None = ()

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` int64 [B,N] and ``attention_mask`` bool [B,N], False on padding."""

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``input_ids`` [B,N] and ``attention_mask`` bool [B,N] to tokens [B,N,D]."""

    def encode(self, texts: Sequence[str]) -> Tokens:
        """B instructions to their tokens."""
        distinct = list(dict.fromkeys(texts))
        if self.training or torch.is_grad_enabled():
            encoded = self._encode_all(distinct)
        else:
            self._drop_stale()
            encoded = _padded([self._recall(text) for text in distinct])
        if len(distinct) == 1:
            return Tokens(*(part.expand(len(texts), *part.shape[1:]) for part in encoded))
        place = {text: row for row, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in texts], device=encoded[0].device)
        return Tokens(*(part[rows] for part in encoded))

    def train(self, mode: bool = True) -> TextEncoder:
        """Switch the mode, and forget what was encoded."""
        self._cache.clear()
        return super().train(mode)

    def _encode_all(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = next(self.parameters()).device
        tokens = {name: value.to(device) for name, value in self.tokenize(texts).items()}
        # A few short texts: casting the weights down costs more than it saves.
        with torch.autocast(device.type, enabled=False):
            return self(tokens["input_ids"], tokens["attention_mask"]), tokens["attention_mask"]

    def _recall(self, text: str) -> Tensor:
        if text not in self._cache:
            if len(self._cache) >= self._CACHE_SIZE:
                self._cache.clear()
            # Alone, never padded: its tokens do not depend on what it was asked with.
            self._cache[text] = self._encode_all([text])[0][0]
        return self._cache[text]

    def _drop_stale(self) -> None:
        # In-place copies raise a tensor's version, moves change its address: averaged and
        # loaded weights are noticed. Fused optimizers raise nothing, but they work in
        # training mode, and leaving that mode clears the cache.
        weights = state_of(self.parameters())
        if weights is None or weights != self._cached_for:
            self._cache.clear()
            self._cached_for = weights


def state_of(tensors: Iterable[Tensor]) -> tuple[object, ...] | None:
    """What changes when tensors are written or moved; None if they cannot tell.

    Tensors that were made in inference mode have no version.
    """
    tensors = list(tensors)
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor._version, tensor.data_ptr()) for tensor in tensors)


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token rows [N_i,D] to [B,N,D] and their mask bool [B,N]."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask

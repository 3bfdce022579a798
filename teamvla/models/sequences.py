"""Sequences of steps as one batch of steps, and back.

Shapes: B sequences, S steps, N of all their steps those that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Which steps of a batch of sequences are looked at: bool [B,S]; not padding, at least."""

    there: Tensor

    @staticmethod
    def of(batch: Mapping[str, Any], count: int | None = None) -> Sequences | None:
        """Those of a batch as the loader gives it; None if it has single steps.

        Args:
            count: so many steps of each sequence at most, drawn at random; None: all.
        """
        is_pad = batch.get("observation_is_pad")
        if is_pad is None:
            return None
        if count is None or count >= is_pad.shape[1]:
            return Sequences(~is_pad)
        drawn = torch.rand(is_pad.shape, device=is_pad.device).masked_fill(is_pad, 2.0)
        first = drawn.topk(count, dim=1, largest=False).indices
        return Sequences(torch.zeros_like(is_pad).scatter(1, first, value=True) & ~is_pad)

    def steps(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same batch as steps that are there: [B,S,...] is [N,...] everywhere."""
        flat = {name: self._select(value) for name, value in batch.items()}
        if "language" in batch:
            texts = batch["language"]
            counts = self.there.sum(1).tolist()
            flat["language"] = [t for t, n in zip(texts, counts, strict=True) for _ in range(n)]
        del flat["observation_is_pad"]
        return flat

    def place(self, values: Tensor) -> Tensor:
        """[N,...] to [B,S,...], 0 where there is padding."""
        placed = values.new_zeros(*self.there.shape, *values.shape[1:])
        placed[self.there] = values
        return placed

    def place_all(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """:meth:`place` for every tensor in a policy's output."""
        return {name: self._place_any(value) for name, value in output.items()}

    def _place_any(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.place_all(value)
        if isinstance(value, tuple):
            return tuple(map(self.place, value))
        return self.place(value)

    def pick(self, values: Tensor) -> Tensor:
        """[B,S,...] to [N,...]."""
        return values[self.there]

    def _select(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self._select(part) for name, part in value.items()}
        if torch.is_tensor(value) and value.shape[:2] == self.there.shape:
            return self.pick(value)
        return value


def unfolded(
    batch: Mapping[str, Any], count: int | None = None
) -> tuple[Sequences | None, Mapping[str, Any]]:
    """The sequences of a batch, if it has any, and the steps of it that are looked at.

    Args:
        count: see :meth:`Sequences.of`.
    """
    sequences = Sequences.of(batch, count)
    return sequences, batch if sequences is None else sequences.steps(batch)

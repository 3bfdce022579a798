"""Fewer points of a cloud.

Shapes: B batch, N points, M of them, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cropped(points: Tensor, box: Sequence[tuple[float, float]]) -> Tensor:
    """Which points [B,N,C] lie in a box, bool [B,N].

    Args:
        box: least and greatest x, y and z, m.
    """
    low = points.new_tensor([side[0] for side in box])
    high = points.new_tensor([side[1] for side in box])
    places = points[..., :3]
    return ((places >= low) & (places <= high)).all(-1)


def thinned(
    points: Tensor, mask: Tensor, count: int, *, random: bool = False
) -> tuple[Tensor, Tensor]:
    """At most so many of the points of each cloud.

    What is not there counts for nothing: a cloud keeps the same points whatever its padding.

    Args:
        points: [B,N,C].
        mask: bool [B,N] of those that are there.
        count: M.
        random: any M of them; otherwise evenly many near and far ones, whatever their order.

    Returns:
        Points [B,min(M,N),C], and their mask.
    """
    size = points.shape[1]
    if size <= count:
        return points, mask
    if random:
        kept = _any(mask, count)
    else:
        points, mask = _by_range(points, mask)
        kept = _even(mask, count)
    # Kept ones first, each group in its order.
    first = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)[:, :count]
    rows = first.unsqueeze(-1).expand(-1, -1, points.shape[2])
    return points.gather(1, rows), kept.gather(1, first)


def _by_range(points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest first, and what is not there last."""
    away = points[..., :3].square().sum(-1).masked_fill(~mask, torch.inf)
    order = away.argsort(dim=1)
    return points.gather(1, order.unsqueeze(-1).expand_as(points)), mask.gather(1, order)


def _any(mask: Tensor, count: int) -> Tensor:
    drawn = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
    best = drawn.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(mask).scatter(1, best, value=True) & mask


def _even(mask: Tensor, count: int) -> Tensor:
    """The k-th of n is kept where k M / n passes a whole number."""
    place = mask.cumsum(1)
    total = place[:, -1:].clamp_min(1)
    passes = place * count // total > (place - 1) * count // total
    return mask & (passes | (total <= count))

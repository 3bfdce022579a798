"""Samplers of masked diffusion: which tokens become known in which step.

Shapes: B batch, K chunk, D numbers of an action, C bins. A token is one number of one action.
Time runs from 1, all masked, to 0, all known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from teamvla.config import Settings

#: bins [B,K,D], which of them are masked, and the time [B] -> logits [B,K,D,C]
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
_TINY = 1e-9


class UnmaskingConfig(Settings):
    """How masks grow in training, and are lifted again in sampling."""

    schedule: Literal["cosine", "linear"] = Field(
        default="cosine",
        description="Share of masked tokens at time t: cosine, sin(pi t / 2), or linear, t.",
    )
    sampler: Literal["ancestral", "confidence", "remasking"] = Field(
        default="confidence",
        description="What is unmasked in a step: ancestral, chance decides; confidence, what the "
        "network is surest of; remasking, chance decides and may take back.",
    )
    num_inference_steps: int = Field(
        default=8, ge=1, description="Most steps from all masked to all known."
    )
    confidence_threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Adaptive steps: what is likelier than this is unmasked at once, and "
        "sampling ends where all is known (but for remasking); null: by the schedule alone.",
    )
    temperature: float = Field(
        default=1.0, ge=0, description="Of the choice of a bin; 0 takes the likeliest."
    )
    remasking: float = Field(
        default=0.1, ge=0, le=1, description="remasking: most of what is known masked in a step."
    )


def mask_ratio(schedule: str, times: Tensor) -> Tensor:
    """m(t), the share of tokens that are masked at times [...]: 0 at 0, 1 at 1."""
    return torch.sin(times * (math.pi / 2)) if schedule == "cosine" else times


def elbo_weight(schedule: str, times: Tensor) -> Tensor:
    """m'(t) / m(t): with it the cross-entropy of masked tokens bounds the likelihood."""
    times = times.clamp_min(_TINY)
    if schedule == "cosine":
        return (math.pi / 2) / torch.tan(times * (math.pi / 2))
    return 1 / times


def time_of(schedule: str, ratio: Tensor) -> Tensor:
    """The time at which so many are masked: the inverse of :func:`mask_ratio`."""
    return torch.asin(ratio.clamp(0, 1)) * (2 / math.pi) if schedule == "cosine" else ratio


def unmask(
    predict: Predict,
    counted: Tensor,
    width: int,
    config: UnmaskingConfig,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Bins int64 [B,K,D], from nothing known, and the chances [B,K,D,C] they were chosen by.

    In rows that do not count there is nothing that means anything.

    - ``ancestral``: the reverse of the masking (Sahoo et al. 2024, arXiv 2406.07524).
    - ``confidence``: as many as the schedule says, the surest first (MaskGIT, Chang et al. 2022,
      arXiv 2202.04200); with a temperature noise is added to how sure it is, less and less.
    - ``remasking``: ancestral, and what is known may be masked again (ReMDM, Wang et al. 2025,
      arXiv 2503.00307, its capped schedule).

    Args:
        predict: the network.
        counted: bool [B,K], rows that there are.
        width: D.
        config: sampler, steps and temperature.
        generator: draws; without one all rows draw the same, every time.
    """
    there = counted.unsqueeze(-1).expand(-1, -1, width)
    dice = _Dice(there, generator)
    bins, masked = torch.zeros_like(there, dtype=torch.long), there
    known_by, total = torch.zeros(()), there.flatten(1).sum(1)
    for step in range(config.num_inference_steps):
        before, after = (1 - (step + k) / config.num_inference_steps for k in (0, 1))
        share = masked.flatten(1).sum(1) / total
        chances = predict(bins, masked, time_of(config.schedule, share)).softmax(-1)
        chosen = _chosen(chances, config.temperature, dice)
        likely = chances.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        bins = torch.where(masked, chosen, bins)
        known_by = chances if not step else torch.where(masked.unsqueeze(-1), chances, known_by)
        masked = there & _still_masked(masked, likely, total, (before, after), config, dice)
        if config.sampler != "remasking" and not bool(masked.any()):
            break
    return bins, known_by


class _Dice:
    """Uniform numbers: fresh, or without a generator the same in each row and each time."""

    def __init__(self, tokens: Tensor, generator: Generator | None) -> None:
        self._size = tokens.shape if generator is not None else (1, *tokens.shape[1:])
        self._device = tokens.device
        self._generator = generator or Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        """[B,K,D], or [1,K,D]."""
        drawn = torch.rand(self._size, generator=self._generator, device=self._generator.device)
        return drawn.to(self._device)


def _chosen(chances: Tensor, temperature: float, dice: _Dice) -> Tensor:
    if not temperature:
        return chances.argmax(-1)
    if temperature != 1:
        # A chance of 0 stays one, and the largest is no 0 however low the temperature.
        chances = (chances / chances.amax(-1, keepdim=True)).pow(1 / temperature)
    below = chances.cumsum(-1)
    drawn = dice().unsqueeze(-1) * below[..., -1:]
    return (below <= drawn).sum(-1).clamp_max(chances.shape[-1] - 1)


def _still_masked(
    masked: Tensor,
    likely: Tensor,
    total: Tensor,
    times: tuple[float, float],
    config: UnmaskingConfig,
    dice: _Dice,
) -> Tensor:
    """Which tokens are masked after a step between two times; ``total`` [B] there are."""
    before, after = (float(mask_ratio(config.schedule, torch.tensor(time))) for time in times)
    if config.sampler == "confidence":
        # At least one a step, or the network would be asked the same again.
        count = (after * total).floor().minimum(masked.flatten(1).sum(1) - 1)
        left = _least_sure(masked, likely, count, config.temperature * times[0], dice)
    elif config.sampler == "ancestral":
        left = masked & (dice() < after / before)
    else:
        left = _masked_again(masked, before, after, config.remasking, dice)
    if config.confidence_threshold is not None:
        left = left & ~(masked & (likely > config.confidence_threshold))
    return left


def _least_sure(masked: Tensor, likely: Tensor, count: Tensor, noise: float, dice: _Dice) -> Tensor:
    """Of what is masked ``count`` [B], the least sure."""
    sure = likely.clamp_min(_TINY).log()
    if noise:
        sure = sure - noise * (-dice().clamp(_TINY, 1 - 1e-7).log()).log()  # Gumbel's
    order = sure.masked_fill(~masked, torch.inf).flatten(1).argsort(dim=1, stable=True)
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    least: Tensor = places < count[:, None]
    return least.view_as(masked) & masked


def _masked_again(masked: Tensor, before: float, after: float, most: float, dice: _Dice) -> Tensor:
    """The reverse step with a share ``most`` of what is known masked again, or all that may be."""
    known = 1 - before
    again = min(most, after / known) if known > 0 else 0.0
    stays = (after - again * known) / before
    drawn = dice()
    return torch.where(masked, drawn < stays, drawn < again)

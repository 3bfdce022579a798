"""Planning: the commands whose imagined consequences are best.

Three ways to look for them, all over the candidates at once and all within [-1, 1]: random
shooting, the cross-entropy method and model-predictive path integrals.

Shapes: N candidates, H steps ahead, A action, I iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from teamvla.config import Settings

#: the return [N] that candidates [N,H,A] are expected to bring
Score = Callable[[Tensor], Tensor]


class PlannerConfig(Settings):
    """How the best commands are looked for. May differ between training and evaluation."""

    type: Literal["cem", "mppi", "shooting"] = Field(
        default="cem",
        description="cem: narrow the search down to the best; mppi: to a mean weighted by return; "
        "shooting: draw once, take the best.",
    )
    horizon: int = Field(default=15, ge=1, description="H: how many steps ahead are imagined.")
    samples: int = Field(
        default=512,
        ge=2,
        description="Candidates in all; cem and mppi spread them over iterations.",
    )
    iterations: int = Field(default=4, ge=1, description="cem, mppi: rounds of drawing.")
    elites: float = Field(
        default=0.1, gt=0, le=1, description="cem: share of the candidates that is the best."
    )
    temperature: float = Field(
        default=0.3,
        gt=0,
        description="mppi: a return lower by so many standard deviations weighs 1/e.",
    )
    least_std: float = Field(
        default=0.05, gt=0, description="cem, mppi: the search never becomes narrower."
    )
    proposal: Literal["data", "uniform"] = Field(
        default="data",
        description="Where the search begins: at mean and deviation of the commands in the data, "
        "or at the middle of their range, half of it wide.",
    )
    prior: float = Field(
        default=0.0,
        ge=0,
        description="What a command costs that is one standard deviation of the data off their "
        "mean; grows with the square. Where the return does not care, it stays near the data.",
    )
    correlation: float = Field(
        default=0.7, ge=0, lt=1, description="Of the noise from one step to the next: smoothness."
    )
    discount: float = Field(default=0.99, gt=0, le=1, description="Of rewards, per step ahead.")
    after_end: Literal["zero", "hold"] = Field(
        default="zero",
        description="What is earned behind an imagined end: nothing, or the last reward again and "
        "again.",
    )
    warm_start: bool = Field(
        default=True, description="Begin where the last plan left off, one step on."
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.type != "shooting" and self.samples < 2 * self.iterations:
            raise ValueError(f"samples: at least {2 * self.iterations}, two for each iteration")
        return self


class Planner:
    """Looks for the best H commands again at every step, from where the last search ended.

    Args:
        config: how.
        mean, std: [A], of the commands in the data, in [-1, 1]; the search begins there.
    """

    def __init__(self, config: PlannerConfig, mean: Tensor, std: Tensor) -> None:
        self.config = config
        self._usual = mean, std.clamp_min(config.least_std)
        if config.proposal == "uniform":
            mean, std = torch.zeros_like(mean), torch.full_like(std, 0.5)
        self._mean = mean.clamp(-1, 1).expand(config.horizon, -1)
        self._std = std.clamp_min(config.least_std).expand(config.horizon, -1)
        self._last: Tensor | None = None

    def reset(self) -> None:
        """Forget the last plan: a new episode begins."""
        self._last = None

    def plan(self, score: Score, generator: Generator) -> Tensor:
        """The best commands found [H,A]; the first is the one to carry out now.

        Args:
            score: what candidates are worth.
            generator: of the candidates; the same one gives the same plan.
        """
        start = self._mean
        if self._last is not None and self.config.warm_start:
            start = torch.cat([self._last[1:], self._mean[-1:]])
        search = {"shooting": self._shooting, "cem": self._cem, "mppi": self._mppi}

        def judged(candidates: Tensor) -> Tensor:
            return score(candidates) - self._unusual(candidates)

        self._last = search[self.config.type](judged, start, generator)
        return self._last

    def _unusual(self, candidates: Tensor) -> Tensor:
        """What candidates [N,H,A] cost for being far from the commands in the data, [N]."""
        mean, std = self._usual
        return self.config.prior * ((candidates - mean) / std).square().sum((1, 2))

    def _shooting(self, score: Score, start: Tensor, generator: Generator) -> Tensor:
        candidates = self._draw(start, self._std, self.config.samples, generator)
        best: Tensor = candidates[score(candidates).argmax()]
        return best

    def _cem(self, score: Score, start: Tensor, generator: Generator) -> Tensor:
        """The cross-entropy method (Rubinstein 1999; for control as in PlaNet, 1811.04551).

        As in iCEM (Pinneri et al. 2020, arXiv 2008.06389) the noise is correlated and the best
        of one round stay in the next. The mean of the best is taken: the very best owes much to
        errors of the model.
        """
        mean, std = start, self._std
        count = self.config.samples // self.config.iterations
        keep = max(1, round(self.config.elites * count))
        elites = values = None
        for _ in range(self.config.iterations):
            candidates = self._draw(mean, std, count, generator)
            returns = score(candidates)
            if elites is not None and values is not None:
                candidates = torch.cat([candidates, elites])
                returns = torch.cat([returns, values])
            values, best = returns.topk(keep)
            elites = candidates[best]
            mean = elites.mean(0)
            std = elites.std(0, correction=0).clamp_min(self.config.least_std)
        return mean

    def _mppi(self, score: Score, start: Tensor, generator: Generator) -> Tensor:
        """Model-predictive path integral control (Williams et al. 2017, arXiv 1509.01149)."""
        mean = start
        for _ in range(self.config.iterations):
            count = self.config.samples // self.config.iterations
            candidates = self._draw(mean, self._std, count, generator)
            returns = score(candidates)
            spread = self.config.temperature * returns.std().clamp_min(1e-6)
            weights = ((returns - returns.max()) / spread).softmax(0)
            mean = torch.einsum("n,nha->ha", weights, candidates)
        return mean

    def _draw(self, mean: Tensor, std: Tensor, count: int, generator: Generator) -> Tensor:
        """Candidates [count,H,A] around ``mean`` [H,A], which is the first of them."""
        shape = (count, *mean.shape)
        noise = torch.randn(shape, generator=generator, device=mean.device)
        keep = self.config.correlation
        for step in range(1, mean.shape[0]):
            noise[:, step] = keep * noise[:, step - 1] + math.sqrt(1 - keep**2) * noise[:, step]
        noise[0] = 0
        return (mean + std * noise).clamp(-1, 1)


def total_return(reward: Tensor, goes_on: Tensor, config: PlannerConfig) -> Tensor:
    """The discounted return [N] of imagined steps.

    Args:
        reward: [N,H] of each step.
        goes_on: [N,H], the probability that the episode does behind it.
        config: discount, and what is earned behind an end.
    """
    alive = torch.cat([torch.ones_like(goes_on[:, :1]), goes_on[:, :-1]], dim=1)
    earned: list[Tensor] = []
    for step, (now, chance) in enumerate(zip(reward.unbind(1), alive.unbind(1), strict=True)):
        instead = earned[-1] if config.after_end == "hold" and step else torch.zeros_like(now)
        share = chance if config.after_end == "hold" else alive[:, : step + 1].prod(1)
        earned.append(share * now + (1 - share) * instead)
    weights = config.discount ** torch.arange(reward.shape[1], device=reward.device)
    return torch.stack(earned, 1) @ weights

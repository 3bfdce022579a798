"""The stochastic part of the model's state: classes or numbers, and how far two beliefs differ.

Shapes: G variables, C classes of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor
from torch.nn import functional


class Latent(ABC):
    """A family of distributions over the stochastic part of a state.

    Attributes:
        size: length of a sample.
        parameters: numbers that a network gives to describe one distribution.
    """

    size: int
    parameters: int

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely sample [...,size]."""

    @abstractmethod
    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        """A sample [...,size] that gradients flow through."""

    @abstractmethod
    def kl(self, one: Tensor, other: Tensor) -> Tensor:
        """KL divergence [...] of ``one`` from ``other``, nats, summed over the variables."""


class CategoricalLatent(Latent):
    """Independent classes, one-hot (DreamerV2, arXiv 2010.02193).

    Gradients go straight through the draw. A share ``unimix`` of the uniform distribution is
    mixed in, so that no class is ever impossible (DreamerV3, arXiv 2301.04104).
    """

    def __init__(self, variables: int, classes: int, unimix: float) -> None:
        self._shape, self._unimix = (variables, classes), unimix
        self.size = self.parameters = variables * classes

    def mode(self, parameters: Tensor) -> Tensor:
        logits = torch.unflatten(parameters, -1, self._shape)
        return functional.one_hot(logits.argmax(-1), self._shape[1]).to(logits.dtype).flatten(-2)

    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        shares = self._log_shares(parameters).exp()
        # The class of the first arrival among exponential clocks, as torch.multinomial does it.
        clocks = torch.empty_like(shares).exponential_(generator=generator)
        drawn = (shares.detach() / clocks).argmax(-1)
        hot = functional.one_hot(drawn, self._shape[1]).to(shares.dtype)
        return (hot + shares - shares.detach()).flatten(-2)

    def kl(self, one: Tensor, other: Tensor) -> Tensor:
        first, second = self._log_shares(one), self._log_shares(other)
        return (first.exp() * (first - second)).sum((-2, -1))

    def _log_shares(self, parameters: Tensor) -> Tensor:
        """Logarithms of the classes' probabilities [...,G,C]."""
        shares = torch.unflatten(parameters.float(), -1, self._shape).softmax(-1)
        mixed: Tensor = (1 - self._unimix) * shares + self._unimix / self._shape[1]
        return mixed.log()


class GaussianLatent(Latent):
    """Independent normal numbers (PlaNet, arXiv 1811.04551), deviation at least ``least``."""

    def __init__(self, variables: int, least: float = 0.1) -> None:
        self.size, self.parameters, self._least = variables, 2 * variables, least

    def mode(self, parameters: Tensor) -> Tensor:
        return self._split(parameters)[0]

    def sample(self, parameters: Tensor, generator: Generator | None = None) -> Tensor:
        mean, deviation = self._split(parameters)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + deviation * noise

    def kl(self, one: Tensor, other: Tensor) -> Tensor:
        (mean, spread), (centre, width) = self._split(one), self._split(other)
        ratio = (spread / width).square()
        return 0.5 * (ratio + ((mean - centre) / width).square() - 1 - ratio.log()).sum(-1)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = parameters.float().chunk(2, dim=-1)
        return mean, functional.softplus(raw) + self._least

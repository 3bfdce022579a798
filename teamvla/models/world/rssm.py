"""The recurrent state-space model: how the state of the world goes on, and what is seen of it.

Shapes: B rows (any leading dimensions), T time, H steps ahead, D deterministic, Z stochastic,
A action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from teamvla.config import Settings
from teamvla.models.world.latents import CategoricalLatent, GaussianLatent, Latent
from teamvla.models.world.layers import NormGRUCell, dense


class RSSMConfig(Settings):
    """Settings of :class:`RSSM`."""

    deterministic: int = Field(default=128, ge=1, description="Width of the recurrent state.")
    hidden_dim: int = Field(default=128, ge=1, description="Width of the layers around it.")
    latent: Literal["categorical", "gaussian"] = Field(
        default="gaussian", description="Kind of the stochastic state: numbers or classes."
    )
    variables: int = Field(default=32, ge=1, description="Variables of the stochastic state.")
    classes: int = Field(default=8, ge=2, description="Classes of each, if it is categorical.")
    unimix: float = Field(
        default=0.01, ge=0, lt=1, description="Share of the uniform distribution in each."
    )

    def make_latent(self) -> Latent:
        """The family of the stochastic state."""
        if self.latent == "gaussian":
            return GaussianLatent(self.variables)
        return CategoricalLatent(self.variables, self.classes, self.unimix)


@dataclass(frozen=True)
class LatentState:
    """What the model believes of the world at a time.

    Attributes:
        deterministic: [...,D], what follows from the past for sure.
        stochastic: [...,Z], a draw of what does not.
        parameters: of the distribution that it was drawn from.
    """

    deterministic: Tensor
    stochastic: Tensor
    parameters: Tensor

    @property
    def features(self) -> Tensor:
        """[...,D+Z], what decoder and predictors look at."""
        return torch.cat([self.deterministic, self.stochastic], dim=-1)

    def map(self, change: Callable[[Tensor], Tensor]) -> LatentState:
        """The state with ``change`` done to each tensor, such as an index or ``repeat``."""
        return LatentState(
            change(self.deterministic), change(self.stochastic), change(self.parameters)
        )

    @staticmethod
    def stack(states: Sequence[LatentState]) -> LatentState:
        """States [B,...] of successive times as one [B,T,...]."""
        return LatentState(
            torch.stack([state.deterministic for state in states], 1),
            torch.stack([state.stochastic for state in states], 1),
            torch.stack([state.parameters for state in states], 1),
        )


class RSSM(nn.Module):
    """Recurrent state-space model of PlaNet (arXiv 1811.04551) and Dreamer (V2 2010.02193, V3
    2301.04104).

        h' = GRU(h, z, action)      transition
        z' ~ prior(h')              what is expected
        z' ~ posterior(h', seen)    what is believed once something was seen

    Args:
        config: sizes and the kind of the stochastic state.
        action_dim: A.
        seen_dim: length of what the encoder makes of an observation.
    """

    def __init__(self, config: RSSMConfig, action_dim: int, seen_dim: int) -> None:
        super().__init__()
        self.latent = config.make_latent()
        size, width = config.deterministic, config.hidden_dim
        self.size = size
        self.inputs = dense(self.latent.size + action_dim, width, 1)
        self.recurrent = NormGRUCell(width, size)
        self.prior = dense(size, width, 1, self.latent.parameters)
        self.posterior = dense(size + seen_dim, width, 1, self.latent.parameters)

    @property
    def features(self) -> int:
        """Length of :attr:`LatentState.features`."""
        return self.size + self.latent.size

    def initial(self, rows: int) -> LatentState:
        """What is believed [rows,...] before anything was seen or done."""
        weight = next(self.parameters())
        return self._believed(self.prior, weight.new_zeros(rows, self.size))

    def imagine_step(
        self, state: LatentState, action: Tensor, generator: Generator | None = None
    ) -> LatentState:
        """The state after ``action`` [...,A], unseen.

        In training mode, or given a generator, the stochastic state is drawn; otherwise it is
        the most likely one, so that nothing is left to chance.
        """
        inputs = self.inputs(torch.cat([state.stochastic, action], dim=-1))
        return self._believed(self.prior, self.recurrent(inputs, state.deterministic), generator)

    def observe_step(
        self, expected: LatentState, seen: Tensor, generator: Generator | None = None
    ) -> LatentState:
        """What is believed of an ``expected`` state once ``seen`` [...,E] is known."""
        return self._believed(self.posterior, expected.deterministic, generator, seen)

    def imagine(
        self, state: LatentState, actions: Tensor, generator: Generator | None = None
    ) -> LatentState:
        """The states [B,H,...] after each of ``actions`` [B,H,A], none of them seen."""
        states = []
        for action in actions.unbind(1):
            state = self.imagine_step(state, action, generator)
            states.append(state)
        return LatentState.stack(states)

    def observe(self, seen: Tensor, actions: Tensor) -> tuple[LatentState, LatentState]:
        """Follow a sequence.

        Args:
            seen: [B,T,E], what the encoder makes of each observation.
            actions: [B,T,A], the command given from each.

        Returns:
            What was believed at each time [B,T,...], and what was expected: [B,T+1,...], from
            before the first observation to behind the last action.
        """
        expected = [self.initial(seen.shape[0])]
        believed = []
        for now, action in zip(seen.unbind(1), actions.unbind(1), strict=True):
            believed.append(self.observe_step(expected[-1], now))
            expected.append(self.imagine_step(believed[-1], action))
        return LatentState.stack(believed), LatentState.stack(expected)

    def divergence(self, believed: LatentState, expected: LatentState) -> tuple[Tensor, Tensor]:
        """KL [...] of belief from expectation, nats: as the expectation's fault, as the belief's.

        The same number twice; gradients reach one side of each (KL balancing).
        """
        one, other = believed.parameters, expected.parameters
        return self.latent.kl(one.detach(), other), self.latent.kl(one, other.detach())

    def _believed(
        self,
        network: nn.Module,
        deterministic: Tensor,
        generator: Generator | None = None,
        seen: Tensor | None = None,
    ) -> LatentState:
        inputs = deterministic if seen is None else torch.cat([deterministic, seen], dim=-1)
        parameters = network(inputs)
        if self.training or generator is not None:
            stochastic = self.latent.sample(parameters, generator)
        else:
            stochastic = self.latent.mode(parameters)
        return LatentState(deterministic, stochastic, parameters)

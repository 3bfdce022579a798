"""What the world model is held to.

Shapes: B sequences, T steps of the model, L unseen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from teamvla.config import Settings
from teamvla.models.world.decoder import ObservationDecoder
from teamvla.models.world.predictors import ContinuationPredictor, RewardPredictor
from teamvla.models.world.rssm import RSSM, LatentState
from teamvla.models.world.sequences import Windows, pick


class WorldLossConfig(Settings):
    """Weights of the parts of the loss. Sums over numbers and pixels, means over steps."""

    state: float = Field(default=1.0, ge=0, description="Squared error of the state.")
    picture: float = Field(default=0.1, ge=0, description="Squared error of the pictures, 0..1.")
    targets: float = Field(
        default=1.0, ge=0, description="Squared error of target signals, symlog."
    )
    reward: float = Field(default=1.0, ge=0, description="Of the reward.")
    continuation: float = Field(default=1.0, ge=0, description="Of whether the episode goes on.")
    dynamics: float = Field(default=1.0, ge=0, description="KL that expectations answer for.")
    representation: float = Field(default=0.1, ge=0, description="KL that beliefs answer for.")
    free_nats: float = Field(default=1.0, ge=0, description="KL that costs nothing.")
    overshooting: float = Field(
        default=1.0,
        ge=0,
        description="All but pictures and KL again, after steps that were not seen.",
    )
    unseen_steps: int = Field(default=15, ge=1, description="overshooting: how many steps.")


class Parts(Protocol):
    """The networks of a world model."""

    rssm: RSSM
    decoder: ObservationDecoder
    reward: RewardPredictor
    continuation: ContinuationPredictor

    @property
    def config(self) -> Any:
        """Its settings, with :class:`WorldLossConfig` as ``loss``."""


def world_loss(
    model: Parts,
    believed: LatentState,
    expected: LatentState,
    observed: Mapping[str, Tensor],
    seen: Windows,
) -> dict[str, Tensor]:
    """``loss`` and its parts, scalars.

    Args:
        model: its networks.
        believed: at each time, [B,T,...].
        expected: before each and behind the last, [B,T+1,...].
        observed: ``state`` and ``image`` [B,T,...] as the encoder took them.
        seen: the sequences, with rewards.
    """
    config: WorldLossConfig = model.config.loss
    assert seen.reward is not None
    parts = _decoding(model.decoder, believed, observed, seen.there)
    behind = expected.map(lambda part: part[:, 1:])
    parts |= _predicting(model, behind, seen.reward, seen)
    before = expected.map(lambda part: part[:, :-1])
    parts |= _divergence(model.rssm, believed, before, seen.there, config.free_nats)
    far = _overshooting(model, believed, observed, seen)
    weights = config.model_dump()
    total = sum((weights[name] * value for name, value in parts.items()), torch.zeros(()))
    further = [config.overshooting * weights[name] * value for name, value in far.items()]
    total = sum(further, total)
    return {"loss": total, **parts, **{f"far_{name}": value for name, value in far.items()}}


def _decoding(
    decoder: ObservationDecoder, states: LatentState, observed: Mapping[str, Tensor], there: Tensor
) -> dict[str, Tensor]:
    """How far what is decoded is from what was observed, summed over numbers and pixels."""
    decoded, parts = decoder(states.features), {}
    for name, given in observed.items():
        off = (decoded[name].float() - given).square().flatten(there.dim()).sum(-1)
        parts["picture" if name == "image" else name] = _mean(off, there)
    return parts


def _predicting(
    model: Parts, states: LatentState, reward: Tensor, seen: Windows
) -> dict[str, Tensor]:
    """How far reward and end are from those that came with the commands that led to states."""
    features = states.features
    return {
        "reward": _mean(model.reward.loss(features, reward), seen.there),
        "continuation": _mean(model.continuation.loss(features, seen.goes_on), seen.ended_known),
    }


def _divergence(
    rssm: RSSM, believed: LatentState, expected: LatentState, there: Tensor, free: float
) -> dict[str, Tensor]:
    dynamics, representation = rssm.divergence(believed, expected)
    return {
        "dynamics": _mean(dynamics, there).clamp_min(free),
        "representation": _mean(representation, there).clamp_min(free),
    }


def _overshooting(
    model: Parts, believed: LatentState, observed: Mapping[str, Tensor], seen: Windows
) -> dict[str, Tensor]:
    """The same of states that were imagined, from beliefs all along the sequence.

    As a planner asks for them (observation overshooting: PlaNet, arXiv 1811.04551, appendix).
    Pictures are left out: of so many states they would cost more than all the rest.
    """
    config: WorldLossConfig = model.config.loss
    steps, total = config.unseen_steps, seen.there.shape[1]
    starts = [*range(0, total - steps, max(1, steps // 2))]
    if not config.overshooting or not starts:
        return {}
    begin = believed.map(lambda part: part[:, starts].flatten(0, 1))
    pieces = seen.pieces(starts, steps)
    assert pieces.reward is not None
    states = model.rssm.imagine(begin, pieces.actions)
    parts = _predicting(model, states, pieces.reward, pieces)
    later = [at + 1 for at in starts]
    there = pick(seen.there, later, steps)
    for name, vector in model.decoder.vectors.items():
        off = vector(states.features).float() - pick(observed[name], later, steps)
        parts[name] = _mean(off.square().sum(-1), there)
    return parts


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """The mean of those of ``values`` that are there."""
    # A slope of 0 times NaN would be no 0.
    return torch.where(there, values, 0.0).sum() / there.sum().clamp_min(1)

"""Scaling of actions and states. It lives in the policy and travels in its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.errors import ContractError
from teamvla.models.spaces import Spaces

log = logging.getLogger(__name__)


class NormalizationConfig(Settings):
    """How actions and states are scaled from the statistics of the training split."""

    actions: Literal["min_max", "quantiles"] = Field(
        default="min_max",
        description="Range scaled to [-1, 1]: extremes or percentiles 1 to 99.",
    )
    half_range_floor: float = Field(
        default=0.025, gt=0, description="Smallest half range of an action, rad: damps idle joints."
    )
    std_floor: float = Field(
        default=0.05,
        gt=0,
        description="Smallest deviation of a state, rad or 0..1: a joint that hardly moved in "
        "the demonstrations must not blow a small drift up.",
    )


class Normalizer(nn.Module):
    """Affine scaling of the joined vectors, exact to undo.

    Joint targets go to [-1, 1] by their range, grippers from 0..1 and choices from 0..C-1 to
    [-1, 1] whatever was seen of them, states to zero mean and unit deviation. Nothing is
    clipped. Without statistics all but grippers and choices stays as it is, which is said in the
    log.

    Args:
        config: which range, and the floors.
        spaces: give the lengths D and S and the places of the grippers.
        statistics: ``{"actions": {"min": [D], ...}, "state": {"mean": [D], ...}}`` or None.
            With neither of the two (only ``words``) it is as without statistics.

    Raises:
        ContractError: the statistics are not of this contract's length, or not finite.
    """

    action_center: Tensor
    action_scale: Tensor
    state_mean: Tensor
    state_std: Tensor

    def __init__(
        self,
        config: NormalizationConfig,
        spaces: Spaces,
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if statistics and not {"actions", "state"} & {*statistics}:
            statistics = None
        #: whether it was made from statistics
        self.fitted = statistics is not None
        size = spaces.state_dim
        center, scale = torch.zeros(spaces.action_dim), torch.ones(spaces.action_dim)
        mean, std = torch.zeros(size), torch.ones(size)
        if statistics is None:
            log.warning("no statistics: actions and states are not normalised")
        else:
            center, scale = _action_range(config, spaces, statistics)
            mean = _vector(statistics, "state", "mean", size)
            std = _vector(statistics, "state", "std", size).clamp_min(config.std_floor)
        places = list(spaces.grippers)
        center[places], scale[places] = 0.5, 0.5
        for place, count in spaces.choices.items():
            center[place], scale[place] = (count - 1) / 2, max(count - 1, 1) / 2
        self.register_buffer("action_center", center)
        self.register_buffer("action_scale", scale)
        self.register_buffer("state_mean", mean)
        self.register_buffer("state_std", std)

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Contract units [..., D] to [-1, 1]."""
        return (actions - self.action_center) / self.action_scale

    def denormalize_actions(self, actions: Tensor) -> Tensor:
        """The inverse of :meth:`normalize_actions`."""
        return actions * self.action_scale + self.action_center

    def normalize_state(self, state: Tensor) -> Tensor:
        """Contract units [..., D] to zero mean and unit deviation.

        Raises:
            ContractError: it has another length.
        """
        if state.shape[-1:] != self.state_mean.shape:
            expected, got = f"{len(self.state_mean)} numbers a row", f"shape {tuple(state.shape)}"
            raise ContractError("observations['state']", expected, got)
        return (state - self.state_mean) / self.state_std


def _action_range(
    config: NormalizationConfig, spaces: Spaces, statistics: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    low, high = ("min", "max") if config.actions == "min_max" else ("q01", "q99")
    lowest = _vector(statistics, "actions", low, spaces.action_dim)
    highest = _vector(statistics, "actions", high, spaces.action_dim)
    center = (lowest + highest) / 2
    return center, ((highest - lowest) / 2).clamp_min(config.half_range_floor)


def _vector(statistics: Mapping[str, Any], group: str, name: str, dim: int) -> Tensor:
    where = f"statistics.{group}.{name}"
    try:
        vector = torch.as_tensor(statistics[group][name], dtype=torch.float32)
    except (KeyError, TypeError, ValueError):
        raise ContractError(where, f"{dim} numbers", "nothing of the kind") from None
    if vector.shape != (dim,) or not bool(vector.isfinite().all()):
        got = f"shape {tuple(vector.shape)}" if vector.shape != (dim,) else "NaN or infinity"
        raise ContractError(where, f"{dim} finite numbers", got, "Index the data again.")
    return vector

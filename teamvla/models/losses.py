"""Losses of imitation. Padding counts nowhere.

    loss = the head's own + sync * sync + collision * collision

The first functions are what heads build their losses of; sync and collision ask both arms
together, on top of any head that predicts actions while it is trained.

Shapes: B batch, K chunk, S sampled rows of a chunk, A arms, D joined vector.
``is_pad`` is True where a chunk reaches beyond the end of its episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.errors import ContractError
from teamvla.models.kinematics import ArmChains, link_gaps

#: metres of relative motion that count as much as a whole gripper stroke
_SYNC_LENGTH_M = 0.1
#: a centimetre, a tenth of a stroke: errors below it fade out, lest they drown the rest
_SYNC_DELTA = 0.1
_GEOMETRIC = "the losses sync and collision"
_WITHOUT = "To train without them: --set loss.sync=0 --set loss.collision=0."


class LossConfig(Settings):
    """Weights of what is asked of both arms together; a part of weight 0 is not computed."""

    sync: float = Field(default=0.02, ge=0, description="Weight of the arms moving together.")
    collision: float = Field(default=0.01, ge=0, description="Weight of arms coming too near.")
    collision_margin: float = Field(
        default=0.03, gt=0, description="Gap between links below which that costs, m."
    )
    geometry_stride: int = Field(
        default=4, ge=1, description="sync and collision look at every so many rows of a chunk."
    )


def huber_loss(
    predicted: Tensor, target: Tensor, is_pad: Tensor | None = None, delta: float = 1.0
) -> Tensor:
    """Mean Huber loss divided by delta, so that its slope is 1 far away (L1 as delta -> 0).

        e = predicted - target;  e^2 / (2 delta) if |e| < delta, else |e| - delta / 2

    Args:
        predicted, target: [B,K,...] in normalised units.
        is_pad: bool [B,K] of rows to leave out, or None.
    """
    return masked_mean(
        functional.smooth_l1_loss(predicted, target, reduction="none", beta=delta), is_pad
    )


def gripper_bce(logits: Tensor, target: Tensor, is_pad: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of the gripper commands.

        -(g log p + (1 - g) log(1 - p)),  p = sigmoid(logit)

    Args:
        logits: [B,K,A].
        target: g, 0 open .. 1 closed, [B,K,A]; openings in between are fine.
        is_pad: bool [B,K] or None.
    """
    loss = functional.binary_cross_entropy_with_logits(logits, target.clamp(0, 1), reduction="none")
    return masked_mean(loss, is_pad)


def sync_loss(
    tools: Tensor,
    target_tools: Tensor,
    grippers: Tensor,
    target_grippers: Tensor,
    is_pad: Tensor | None = None,
) -> Tensor:
    """How far the arms move and grip together differently from the demonstration.

    With x_i the place of arm i's tool, g_i its gripper, arm 0 as the reference, hats for
    predictions and means over arms i > 0 and rows s:

        r_i[s] = x_i[s] - x_0[s]
        h( ((r^_i[s+1] - r^_i[s]) - (r_i[s+1] - r_i[s])) / 0.1 m )
          + h( (g^_i[s] - g^_0[s]) - (g_i[s] - g_0[s]) )

    where h is the Huber function of :func:`huber_loss` with delta 0.1. A prediction that is
    wrong in the same way for both arms costs nothing here.

    Args:
        tools, target_tools: [B,S,A,3], m.
        grippers, target_grippers: [B,S,A], 0..1.
        is_pad: bool [B,S] or None.
    """
    motion = _relative(tools - target_tools).diff(dim=1) / _SYNC_LENGTH_M
    moving_pad = None if is_pad is None else is_pad[:, 1:] | is_pad[:, :-1]
    timing = _relative(grippers - target_grippers)
    moving = huber_loss(motion, torch.zeros_like(motion), moving_pad, _SYNC_DELTA)
    return moving + huber_loss(timing, torch.zeros_like(timing), is_pad, _SYNC_DELTA)


def collision_penalty(gaps: Tensor, margin: float, is_pad: Tensor | None = None) -> Tensor:
    """Hinge on the gaps between the links of different arms.

        sum over pairs of links of max(0, 1 - gap / margin), mean over B and S

    Args:
        gaps: [B,S,pairs], m, from :func:`teamvla.models.kinematics.link_gaps`.
        margin: gap from which on nothing is paid, m.
        is_pad: bool [B,S] or None.
    """
    return masked_mean((1 - gaps / margin).relu().sum(-1), is_pad)


def needs_geometry(config: LossConfig, contract: Contract) -> bool:
    """Whether sync or collision counts: they have a weight, and there are several arms."""
    return len(contract.arms) > 1 and bool(config.sync or config.collision)


def require_geometry(config: LossConfig, contract: Contract) -> None:
    """Raise ContractError if a part that counts needs geometry that the contract has not.

    sync and collision need every arm's links, and actions that are joint positions.
    """
    if not needs_geometry(config, contract):
        return
    if contract.action != "absolute_joint_position":
        expected = f"absolute_joint_position, for {_GEOMETRIC}"
        raise ContractError("contract: action", expected, contract.action, _WITHOUT)
    for arm in contract.arms:
        arm.require_links(_GEOMETRIC, _WITHOUT)


class GeometryLoss(nn.Module):
    """sync and collision for one contract.

    Without the geometry that :func:`require_geometry` asks for it can be made, so that a
    policy can act, but not called.
    """

    def __init__(self, config: LossConfig, contract: Contract) -> None:
        super().__init__()
        self.config = config
        self.pairs = list(combinations(range(len(contract.arms)), 2))
        known = bool(contract.arms) and all(arm.links for arm in contract.arms)
        self.chains = ArmChains(contract) if known else None
        self._contract = contract
        self._sizes = [arm.num_joints + 1 for arm in contract.arms]

    def forward(self, predicted: Tensor, target: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
        """The parts that have a weight.

        Args:
            predicted, target: joined vectors [B,K,D] in contract units.
            is_pad: bool [B,K].

        Raises:
            ContractError: a part has a weight, but the contract no geometry.
        """
        require_geometry(self.config, self._contract)
        if not self.chains or not needs_geometry(self.config, self._contract):
            return {}
        rows = self._rows(target.shape[1])
        return self._geometry(self.chains, predicted[:, rows], target[:, rows], is_pad[:, rows])

    def total(self, parts: Mapping[str, Tensor]) -> Tensor | float:
        """The weighted sum of what :meth:`forward` gave."""
        return sum((getattr(self.config, name) * part for name, part in parts.items()), 0.0)

    def _geometry(
        self, chains: ArmChains, predicted: Tensor, target: Tensor, is_pad: Tensor
    ) -> dict[str, Tensor]:
        parts = {}
        points = chains([arm[..., :-1] for arm in self._arms(predicted)])
        if self.config.sync:
            with torch.no_grad():
                demonstrated = chains([arm[..., :-1] for arm in self._arms(target)])
            parts["sync"] = sync_loss(
                points[..., -1, :],
                demonstrated[..., -1, :],
                self._grippers(predicted),
                self._grippers(target),
                is_pad,
            )
        if self.config.collision:
            gaps = [link_gaps(points, chains.radii, *pair).flatten(2) for pair in self.pairs]
            margin = self.config.collision_margin
            parts["collision"] = collision_penalty(torch.cat(gaps, dim=-1), margin, is_pad)
        return parts

    def _rows(self, chunk_size: int) -> slice:
        stride = self.config.geometry_stride
        return slice((chunk_size - 1) % stride, None, stride)

    def _arms(self, joined: Tensor) -> tuple[Tensor, ...]:
        return torch.split(joined, self._sizes, dim=-1)

    def _grippers(self, joined: Tensor) -> Tensor:
        return torch.stack([arm[..., -1] for arm in self._arms(joined)], dim=-1)


def _relative(arms: Tensor) -> Tensor:
    return arms[:, :, 1:] - arms[:, :, :1]


def masked_mean(loss: Tensor, is_pad: Tensor | None) -> Tensor:
    """Mean over all entries of the rows that are not padding; 0 if all are."""
    if is_pad is None:
        return loss.mean() if loss.numel() else loss.sum()
    valid = (~is_pad).reshape(*is_pad.shape, *[1] * (loss.dim() - is_pad.dim()))
    per_row = loss.numel() // max(is_pad.numel(), 1)
    # where, not a product: whatever stands in padding, NaN even, must not leak in.
    return torch.where(valid, loss, 0.0).sum() / (valid.sum() * per_row).clamp_min(1)

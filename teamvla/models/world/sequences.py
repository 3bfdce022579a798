"""Sequences of control steps as the longer steps that the model takes.

Shapes: B sequences, S control steps, R of them in a step of the model, T = S // R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from teamvla.errors import ConfigError


@dataclass(frozen=True)
class Windows:
    """Sequences in steps of R control steps.

    Attributes:
        observations: those at the beginning of each step, [B,T,...]; 0 where it is not there.
        actions: mean of the commands in it, [B,T,A].
        reward: mean of the rewards in it, [B,T], or None; where the episode ends in it the last
            one, which tells how it ended.
        there: bool [B,T], whether it belongs to the episode.
        goes_on: bool [B,T], whether the episode does behind it.
        ended_known: bool [B,T], whether the sequence tells that.
    """

    observations: dict[str, Tensor]
    actions: Tensor
    reward: Tensor | None
    there: Tensor
    goes_on: Tensor
    ended_known: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any], repeat: int, skipped: int = 0) -> Windows:
        """Those of a batch as the loader gives it, without its first ``skipped`` control steps.

        Raises:
            ConfigError: it has single steps, or sequences shorter than a step.
        """
        actions = batch["actions"]
        is_pad = batch.get("observation_is_pad")
        if is_pad is None or actions.dim() != 4:
            raise ConfigError(
                "batch", "sequences: actions [B,S,1,A] and observation_is_pad [B,S]",
                f"actions {tuple(actions.shape)}", "Set dataset.sequence_length.",
            )  # fmt: skip
        total = is_pad.shape[1]
        steps = (total - skipped) // repeat
        if steps == 0:
            expected = f"at least {repeat + skipped}, one step of the model"
            raise ConfigError("dataset.sequence_length", expected, str(total))
        end = skipped + steps * repeat

        def cut(values: Tensor) -> Tensor:
            """[B,S,...] to [B,T,R,...]."""
            return torch.unflatten(values[:, skipped:end], 1, (steps, repeat))

        valid = cut(~is_pad)
        padded = torch.cat([is_pad, is_pad[:, -1:]], 1)
        behind = torch.unflatten(padded[:, skipped + 1 : end + 1], 1, (steps, repeat))
        known = valid[:, :, 0].clone()
        if end == total:  # what comes behind the last one is not told
            known[:, -1] &= behind[:, -1].any(-1)
        reward = batch.get("reward")
        if reward is not None:
            reward = _rewards(cut(reward.float()), valid, behind)
        return cls(
            {name: _there(cut(value)[:, :, 0], valid[:, :, 0])
             for name, value in batch["observations"].items()
             if value.dim() > 1 and value.shape[:2] == is_pad.shape},
            _mean_of_valid(cut(actions[:, :, 0].float()), valid),
            reward,
            valid[:, :, 0],
            ~behind.any(-1),
            known,
        )  # fmt: skip

    def pieces(self, starts: Sequence[int], steps: int) -> Windows:
        """The ``steps`` from each start on, [B*starts,steps,...], without their observations."""

        return Windows(
            {},
            pick(self.actions, starts, steps),
            None if self.reward is None else pick(self.reward, starts, steps),
            pick(self.there, starts, steps),
            pick(self.goes_on, starts, steps),
            pick(self.ended_known, starts, steps),
        )

    def with_actions(self, actions: Tensor) -> Windows:
        """The same with other actions [B,T,A]."""
        return replace(self, actions=actions)


def pick(values: Tensor, starts: Sequence[int], steps: int) -> Tensor:
    """[B,T,...] to [B*starts,steps,...]: so many from each start on."""
    return torch.stack([values[:, at : at + steps] for at in starts], 1).flatten(0, 1)


def _there(values: Tensor, there: Tensor) -> Tensor:
    """[B,T,...], 0 where bool [B,T] says that they are padding: a slope of 0 times NaN is no 0."""
    shape = there.shape + (1,) * (values.dim() - 2)
    return values.masked_fill(~there.view(shape), 0)


def _rewards(rewards: Tensor, valid: Tensor, behind: Tensor) -> Tensor:
    """[B,T,R] to [B,T]; see :attr:`Windows.reward`."""
    mean = _mean_of_valid(rewards[..., None], valid)[..., 0]
    last = (valid.sum(-1, keepdim=True) - 1).clamp_min(0)
    final = rewards.gather(-1, last)[..., 0]
    return torch.where(behind.any(-1) & valid[..., 0], final, mean)


def _mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """[B,T,R,A] to [B,T,A]: the mean over those of R that are valid bool [B,T,R]; 0 of none."""
    kept = torch.where(valid.unsqueeze(-1), values, 0.0)
    return kept.sum(2) / valid.sum(2, keepdim=True).clamp_min(1)

"""Actions by flow matching: straight lines from noise to actions.

Shapes: B batch, K chunk, D action. Time runs from 0, noise, to 1, actions.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.features import Features
from teamvla.models.heads.base import HeadLoss, hold_last
from teamvla.models.heads.denoisers import DenoisingConfig, DenoisingHead
from teamvla.models.losses import masked_mean

#: times after it are never trained at: nothing is left there to be done
_LATEST = 0.999


class FlowHeadConfig(DenoisingConfig):
    """Settings of :class:`FlowMatchingActionHead`."""

    type: Literal["flow"] = Field(default="flow", description="Flow matching.")
    target: Literal["sample", "velocity"] = Field(
        default="sample",
        description="What the network estimates: the actions, or actions minus noise. sample "
        "learns faster.",
    )
    time_distribution: Literal["uniform", "beta"] = Field(
        default="uniform", description="Of the times in training; beta has more of the noisy ones."
    )
    beta_alpha: float = Field(
        default=1.5, ge=1, description="beta: 1 - time is Beta(beta_alpha, 1); 1 is uniform."
    )


class FlowMatchingActionHead(DenoisingHead):
    """Flow matching with straight lines, rectified flow: can choose between several ways.

        training:  (1 - t) noise + t actions, t -> denoiser -> actions | actions - noise
        sampling:  noise [B,K,D] -> (denoiser -> x + velocity / steps) x num_inference_steps

    Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003. The beta
    distribution of times is that of Black et al. 2024, arXiv 2410.24164.
    """

    Config = FlowHeadConfig
    config: FlowHeadConfig

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Mean square of the network's error, at ``times_per_sample`` random times."""
        target, repeats = hold_last(target, is_pad), self.config.times_per_sample
        clean, dice = target.repeat_interleave(repeats, 0), self.dice(target)
        pad = is_pad.repeat_interleave(repeats, 0)
        times = self.times(target.shape[0], dice)
        noise = self.noise_like(clean, dice)
        noisy = torch.lerp(noise, clean, times[:, None, None])
        seen = self.denoiser.condition(features)
        estimate = self.denoiser(noisy, self.denoiser.embed(1 - times), seen, pad)
        wanted = clean if self.config.target == "sample" else clean - noise
        error = masked_mean(functional.mse_loss(estimate, wanted, reduction="none"), pad)
        return HeadLoss(error, {"denoising": error})

    def times(self, rows: int, dice: Generator | None) -> Tensor:
        """Random times [rows * times_per_sample] to train at."""
        noisiness = self.random_times(rows, self.config.times_per_sample, dice)
        if self.config.time_distribution == "beta":
            # The inverse of the distribution function of Beta(alpha, 1), u^alpha.
            noisiness = noisiness.pow(1 / self.config.beta_alpha)
        return (1 - noisiness) * _LATEST

    def denoise(self, features: Features, num_steps: int, generator: Generator | None) -> Tensor:
        """See :meth:`DenoisingHead.denoise`; steps of Euler.

        Raises:
            ConfigError: ``num_steps`` is below 1.
        """
        if num_steps < 1:
            raise ConfigError("num_steps", "at least 1", str(num_steps))
        actions = self.noise(features, generator)[0]
        left = torch.arange(num_steps, 0, -1, device=actions.device)
        seen, times = self.denoiser.condition(features), self.denoiser.embed(left / num_steps)
        for place in range(num_steps):
            estimate = self.denoiser(actions, times[place : place + 1], seen)
            end = self._end(actions, estimate, 1 - place / num_steps)
            # A step of 1 / num_steps, as a share of what is left of the way.
            actions = torch.lerp(actions, end, 1 / (num_steps - place))
        return actions

    def _end(self, actions: Tensor, estimate: Tensor, left: float) -> Tensor:
        """Where the line through ``actions`` ends, from the network's estimate."""
        end = estimate if self.config.target == "sample" else actions + left * estimate
        return end.clamp(-1, 1) if self.config.clip_sample else end

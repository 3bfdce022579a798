"""Actions by denoising diffusion, with the noise schedules and samplers of diffusers.

Shapes: B batch, K chunk, D action.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.features import Features
from teamvla.models.heads.base import HeadLoss, hold_last
from teamvla.models.heads.denoisers import DenoisingConfig, DenoisingHead
from teamvla.models.losses import masked_mean

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

_LOG = logging.getLogger(__name__)
#: share of the actions' variance that may be left at the last step
_MOST_LEFT = 0.05
_SCHEDULES = {"squaredcos": "squaredcos_cap_v2", "linear": "linear"}


class DiffusionHeadConfig(DenoisingConfig):
    """Settings of :class:`DiffusionActionHead`."""

    type: Literal["diffusion"] = Field(default="diffusion", description="Denoising diffusion.")
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = Field(
        default="sample",
        description="What the network estimates: the actions, the noise, or the velocity "
        "between them. sample learns fastest by far.",
    )
    schedule: Literal["squaredcos", "linear"] = Field(
        default="squaredcos",
        description="How noise grows; linear needs num_diffusion_steps 1000, or actions remain.",
    )
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="linear: first variance.")
    beta_end: float = Field(default=0.02, gt=0, lt=1, description="linear: last variance.")
    sampler: Literal["ddim", "ddpm"] = Field(
        default="ddim", description="ddim adds no noise on the way back, ddpm does at each step."
    )
    num_diffusion_steps: int = Field(
        default=100,
        ge=1,
        validation_alias=AliasChoices("num_diffusion_steps", "diffusion_steps"),
        description="Noise levels in training; num_inference_steps divides it.",
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.num_diffusion_steps % self.num_inference_steps:
            raise ValueError(
                f"num_diffusion_steps {self.num_diffusion_steps} is not divisible by "
                f"num_inference_steps {self.num_inference_steps}"
            )
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        return self


class DiffusionActionHead(DenoisingHead):
    """Diffusion policy (Chi et al. 2023, arXiv 2303.04137): can choose between several ways.

        training:  sqrt(a_t) actions + sqrt(1 - a_t) noise, t -> denoiser -> actions | noise | v
        sampling:  noise [B,K,D] -> (denoiser -> DDIM or DDPM step) x num_inference_steps

    a_t is the product of 1 - beta up to t (Ho et al. 2020, arXiv 2006.11239); steps by DDIM
    (Song et al. 2021, arXiv 2010.02502) over evenly spread t that begin at the last ("trailing",
    Lin et al. 2024, arXiv 2305.08891); v as Salimans and Ho 2022, arXiv 2202.00512; squaredcos
    as Nichol and Dhariwal 2021, arXiv 2102.09672. DDPM is DDIM with eta 1, which is the same.

    The linear schedule from 1e-4 to 0.02 is made for 1,000 steps: with 100 a third of the
    actions' variance is left at the last, which sampling, starting from pure noise, does not
    know of. Such settings are taken, with a warning.
    """

    Config = DiffusionHeadConfig
    config: DiffusionHeadConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self._schedulers: dict[int, DDIMScheduler] = {}
        left = float(self._scheduler(self.config.num_inference_steps).alphas_cumprod[-1])
        if left > _MOST_LEFT:
            _LOG.warning(
                "diffusion head: %.0f %% of the actions' variance is left at the last of %d steps, "
                "but sampling starts from pure noise: take schedule squaredcos, or %s",
                100 * left,
                self.config.num_diffusion_steps,
                "num_diffusion_steps 1000",
            )

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Mean square of the network's error, at ``times_per_sample`` random noise levels."""
        target, repeats = hold_last(target, is_pad), self.config.times_per_sample
        clean, dice = target.repeat_interleave(repeats, 0), self.dice(target)
        pad = is_pad.repeat_interleave(repeats, 0)
        levels = self.random_times(target.shape[0], repeats, dice)
        steps = (levels * self.config.num_diffusion_steps).long()
        noise = self.noise_like(clean, dice)
        scheduler = self._scheduler(self.config.num_inference_steps)
        noisy = scheduler.add_noise(clean, noise, steps)
        seen = self.denoiser.condition(features)
        estimate = self.denoiser(noisy, self._embed(steps), seen, pad)
        wanted = self.wanted(clean, noise, steps)
        error = masked_mean(functional.mse_loss(estimate, wanted, reduction="none"), pad)
        return HeadLoss(error, {"denoising": error})

    def wanted(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """What the network is to estimate, [B,K,D], at steps [B]."""
        kind = self.config.prediction_type
        if kind == "v_prediction":
            scheduler = self._scheduler(self.config.num_inference_steps)
            velocity: Tensor = scheduler.get_velocity(clean, noise, steps)
            return velocity
        return clean if kind == "sample" else noise

    def denoise(self, features: Features, num_steps: int, generator: Generator | None) -> Tensor:
        """See :meth:`DenoisingHead.denoise`.

        Raises:
            ConfigError: ``num_steps`` does not divide ``num_diffusion_steps``.
        """
        scheduler, eta = self._scheduler(num_steps), float(self.config.sampler == "ddpm")
        draws = self.noise(features, generator, 1 + (num_steps if eta else 0))
        seen, times = self.denoiser.condition(features), self._embed(scheduler.timesteps)
        actions = draws[0]
        for place, step in enumerate(scheduler.timesteps.tolist()):
            estimate = self.denoiser(actions, times[place : place + 1], seen)
            actions = scheduler.step(
                estimate,
                step,
                actions,
                eta=eta,
                # The noise that is left belongs to the actions that were kept in their range.
                use_clipped_model_output=True,
                variance_noise=draws[1 + place] if eta else None,
                return_dict=False,
            )[0]
        return actions

    def _embed(self, steps: Tensor) -> Tensor:
        # (t + 1) / T, so that the last is pure noise, 1.
        times = (steps + 1) / self.config.num_diffusion_steps
        return self.denoiser.embed(times.to(self.grippers.device))

    def _scheduler(self, num_steps: int) -> DDIMScheduler:
        """The schedule, ready for so many steps; made once."""
        if num_steps not in self._schedulers:
            self._schedulers[num_steps] = _make_scheduler(self.config, num_steps)
        return self._schedulers[num_steps]


def _make_scheduler(config: DiffusionHeadConfig, num_steps: int) -> DDIMScheduler:
    from diffusers import DDIMScheduler

    total = config.num_diffusion_steps
    if num_steps < 1 or total % num_steps:
        raise ConfigError("num_steps", f"a divisor of num_diffusion_steps {total}", str(num_steps))
    with torch.device("cpu"), torch.inference_mode(False):
        scheduler = DDIMScheduler(
            num_train_timesteps=total,
            beta_schedule=_SCHEDULES[config.schedule],
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            prediction_type=config.prediction_type,
            clip_sample=config.clip_sample,
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(num_steps)
    return scheduler

"""Diffusion policy over continuous actions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from teamvla.config.bytype import ByType
from teamvla.models.composed import ComposedConfig, ComposedPolicy
from teamvla.models.heads.base import HeadConfig
from teamvla.models.heads.diffusion import DiffusionHeadConfig
from teamvla.models.registries import ACTION_HEAD_REGISTRY


class DiffusionPolicyConfig(ComposedConfig):
    """Settings of :class:`ContinuousDiffusionPolicy`."""

    type: Literal["diffusion_policy"] = Field(
        default="diffusion_policy", description="Chunks by denoising diffusion."
    )
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "diffusion")] = DiffusionHeadConfig()


class ContinuousDiffusionPolicy(ComposedPolicy):
    """Diffusion policy (Chi et al. 2023, arXiv 2303.04137) with images and words.

        pictures, text, state -> vectors side by side -> residual MLP -> features [B,D]
        noise [B,K,D] -> (denoiser that is told the features -> DDIM step) x 10 -> chunk

    Where a demonstrator does one of several things, it does one of them too, where regression
    does the mean. The noise is the same for every prediction: overlapping chunks agree on which
    of them it is, and can be averaged (``execution.mode: ensemble``).

    Args:
        config, contract, statistics, loss, encoders: see
            :class:`teamvla.models.composed.SensingPolicy`.
    """

    Config = DiffusionPolicyConfig

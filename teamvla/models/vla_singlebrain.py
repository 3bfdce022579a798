"""One network that sees both arms and moves both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from teamvla.models.composed import ComposedConfig, ComposedPolicy


class SingleBrainConfig(ComposedConfig):
    """Settings of :class:`SingleBrainVLA`."""

    type: Literal["single_brain"] = Field(
        default="single_brain", description="One network for both arms."
    )


class SingleBrainVLA(ComposedPolicy):
    """Vision-language-action policy with one trunk for both arms.

    All cameras go through one small convolutional encoder that keeps places apart, the
    instruction through a transformer; their vectors and the state, side by side, through a
    residual MLP. One head moves both arms, or one each (``separate_heads``).
    """

    Config = SingleBrainConfig

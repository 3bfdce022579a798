"""Action chunking with transformers, the whole policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from teamvla.config.bytype import ByType
from teamvla.models.composed import ComposedConfig, ComposedPolicy
from teamvla.models.encoders.base import EncoderConfig
from teamvla.models.encoders.resnet import ResNetConfig
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.transformer import TransformerFusionConfig
from teamvla.models.heads.act import ACTHeadConfig
from teamvla.models.heads.base import HeadConfig
from teamvla.models.registries import ACTION_HEAD_REGISTRY, ENCODER_REGISTRY, FUSION_REGISTRY


class ACTConfig(ComposedConfig):
    """Settings of :class:`ACTPolicy`."""

    type: Literal["act"] = Field(default="act", description="Action chunking with transformers.")
    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "resnet", optional=True)] = (
        Field(default=ResNetConfig(), description="Encoder of pictures; null: no look at them.")
    )
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "transformer")] = (
        TransformerFusionConfig()
    )
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "act")] = ACTHeadConfig()


class ACTPolicy(ComposedPolicy):
    """ACT (Zhao et al. 2023, arXiv 2304.13705), which reads the instruction besides.

        [summary | resnet cells of every camera | characters | state] -> transformer blocks
        -> tokens -> decoder with a latent for the manner -> chunk

    All cells of all pictures stay tokens until the decoder looks at them. It is executed by
    averaging overlapping chunks, as in the paper; with as many demonstrations as here the
    plain mean.

    Args:
        config, contract, statistics, loss, encoders: see
            :class:`teamvla.models.composed.SensingPolicy`.
    """

    Config = ACTConfig

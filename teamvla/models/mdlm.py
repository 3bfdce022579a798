"""Masked diffusion over sequences of discrete actions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from teamvla.config.bytype import ByType
from teamvla.models.chunking import ExecutionConfig
from teamvla.models.composed import ComposedConfig, ComposedPolicy, OfSensor
from teamvla.models.encoders.base import EncoderConfig
from teamvla.models.encoders.grid import GridConfig
from teamvla.models.encoders.sensors import SensorConfig
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.pooled import PooledConfig
from teamvla.models.heads.base import HeadConfig
from teamvla.models.heads.masked import MaskedHeadConfig
from teamvla.models.registries import (
    ACTION_HEAD_REGISTRY,
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)

#: the sensor that has an encoder unless it is said otherwise
GRID = "grid"


class DiffusionPolicyConfig(ComposedConfig):
    """Settings of :class:`DiffusionPolicy`."""

    type: Literal["mdlm"] = Field(
        default="mdlm", description="Sequences of moves by masked diffusion."
    )
    chunk_size: int = Field(
        default=49,
        ge=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="K: how many actions are predicted at once.",
    )
    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "cnn", optional=True)] = Field(
        default=None, description="Encoder of pictures; null: no look at them."
    )
    language: Annotated[
        EncoderConfig | None, ByType(TEXT_ENCODER_REGISTRY, "words", optional=True)
    ] = Field(default=None, description="Encoder of instructions; null: they are not read.")
    sensors: dict[str, OfSensor] | None = Field(
        default=None, description="Field -> encoder of a sensor; null: grid, if it is there."
    )
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "pooled")] = PooledConfig()
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "masked")] = MaskedHeadConfig()
    execution: ExecutionConfig = ExecutionConfig(
        mode="receding", n_action_steps=4, fresh_noise=True
    )


class DiffusionPolicy(ComposedPolicy):
    """What to do next in a grid world, a sequence of moves at a time.

        grid [B,H,W,3], direction [B] -> StateEncoder -> tokens [B,N,128] -> mean [B,128]
        instruction (model.language) --> tokens [B,L,64] ---+
        [MASK] x K -> (DiT, steered by time and mean -> some become known) x steps -> moves [B,K]

    Each prediction draws anew (``execution.fresh_noise``): who walked into a wall would do it for
    ever otherwise, as nothing that it sees has changed.

    The moves that lead somewhere are several orders of the same: a sequence drawn whole keeps to
    one of them. Parts are chosen by configuration as of any other policy, so that with the head
    ``transformer`` (``output: binned``) it is autoregressive instead. Without a grid it acts on
    whatever else it is told to look at; a two-arm policy with a discrete head is
    ``single_brain`` with the head ``masked``.

    Args:
        config, contract, statistics, loss, vision, language, sensor_encoders: see
            :class:`teamvla.models.composed.ComposedPolicy`.
    """

    Config = DiffusionPolicyConfig
    config: DiffusionPolicyConfig

    def wanted_sensors(self) -> dict[str, SensorConfig | None]:
        """See :meth:`ComposedPolicy.wanted_sensors`."""
        if self.config.sensors is not None:
            return super().wanted_sensors()
        return {GRID: GridConfig()} if GRID in self.spaces.sensors else {}

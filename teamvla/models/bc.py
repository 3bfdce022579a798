"""Behaviour cloning: what is felt, and if wanted what is seen, to actions.

Shapes: B batch, V cameras, N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from teamvla.config.bytype import ByType
from teamvla.models.chunking import ChunkSize, ExecutionConfig
from teamvla.models.composed import ComposedConfig, ComposedPolicy
from teamvla.models.encoders.base import EncoderConfig
from teamvla.models.encoders.vision import ConvConfig
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.concat import ConcatConfig
from teamvla.models.heads.base import HeadConfig
from teamvla.models.heads.mlp import MLPHeadConfig
from teamvla.models.registries import (
    ACTION_HEAD_REGISTRY,
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.models.spellings import Spellings, Switches, spread

_LOG = logging.getLogger(__name__)
_SPELLINGS: Spellings = {
    "hidden_dim": ("fusion.hidden_dim",),
    "n_layers": ("fusion.num_blocks",),
    "dropout": ("fusion.dropout",),
    "image_embed_dim": ("vision.features",),
    "loss_type": ("head.loss_type",),
}
_SWITCHES: Switches = {"use_image": ("vision", ConvConfig())}


class BCConfig(ComposedConfig):
    """Settings of :class:`BCPolicy`.

    Flat spellings of nested settings: ``hidden_dim``, ``n_layers`` and ``dropout`` (of
    ``fusion``), ``use_image`` and ``image_embed_dim`` (of ``vision``), ``loss_type`` (of
    ``head``).
    """

    type: Literal["bc"] = Field(default="bc", description="State, and if wanted pictures.")
    chunk_size: ChunkSize = 1
    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "cnn", optional=True)] = Field(
        default=None, description="Encoder of pictures; null: no look at them."
    )
    language: Annotated[
        EncoderConfig | None, ByType(TEXT_ENCODER_REGISTRY, "characters", optional=True)
    ] = Field(default=None, description="Encoder of instructions; null: they are not read.")
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "concat")] = ConcatConfig(
        hidden_dim=256, dropout=0.1
    )
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "mlp")] = MLPHeadConfig(
        loss_type="mse"
    )
    execution: ExecutionConfig = ExecutionConfig(replan_every=1)

    FLAT: ClassVar[Mapping[str, tuple[str, ...]]] = {**_SPELLINGS, "use_image": ("vision",)}

    @model_validator(mode="before")
    @classmethod
    def _flat_spellings(cls, data: Any) -> Any:
        return spread(data, cls, _SPELLINGS, _SWITCHES)


class BCPolicy(ComposedPolicy):
    """Behaviour cloning, the plainest policy: regression of one action.

        state [B,S] -------------------------+
        image -> cnn -> vectors (use_image) -+-> linear -> residual MLP -> head

    It reads no instruction. Without pictures in an observation their tokens are zeros, which is
    said once: a policy that was trained with them then acts on the state alone.

    Args:
        config, contract, statistics, loss, encoders: see
            :class:`teamvla.models.composed.SensingPolicy`.
    """

    Config = BCConfig
    SIZES: ClassVar[Mapping[str, int]] = {"state_dim": 20, "action_dim": 4, "image_size": 128}
    _warned = False

    def _seen(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        if self.vision is None or "image" in observations:
            return super()._seen(observations)
        if not self._warned:
            self._warned = True
            _LOG.warning("no 'image' in the observations: acting without pictures")
        some = next(iter(observations.values()))
        shape = (len(self.spaces.cameras), self.vision.num_tokens, self.vision.dim)
        return torch.zeros(some.shape[0], *shape, device=some.device)

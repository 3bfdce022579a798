"""Vision-language-action policy of transformers throughout.

Shapes: B batch, V cameras, N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from teamvla.config.bytype import ByType
from teamvla.models.chunking import ChunkSize, ExecutionConfig
from teamvla.models.composed import ComposedConfig, ComposedPolicy
from teamvla.models.encoders.base import EncoderConfig
from teamvla.models.encoders.language import CharacterConfig
from teamvla.models.encoders.vit import ViTConfig
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.transformer import TransformerFusionConfig
from teamvla.models.registries import (
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.models.spellings import Spellings, Switches, spread

_LOG = logging.getLogger(__name__)
_LANGUAGE = CharacterConfig(embed_dim=256, mlp_ratio=4.0, max_text_len=64)
_SPELLINGS: Spellings = {
    "patch_size": ("vision.patch_size",),
    "embed_dim": ("vision.embed_dim", "language.embed_dim", "fusion.embed_dim"),
    "num_heads": ("vision.num_heads", "language.num_heads", "fusion.num_heads"),
    "num_layers": ("vision.num_layers",),
    "fusion_num_layers": ("fusion.num_layers",),
    "mlp_ratio": ("vision.mlp_ratio", "language.mlp_ratio", "fusion.mlp_ratio"),
    "dropout": ("vision.dropout", "language.dropout", "fusion.dropout"),
    "vocab_size": ("language.vocab_size",),
    "max_text_len": ("language.max_text_len",),
    "lang_num_layers": ("language.num_layers",),
    "action_head_type": ("head.type",),
}
_SWITCHES: Switches = {"use_language": ("language", _LANGUAGE)}


class VLAConfig(ComposedConfig):
    """Settings of :class:`VLAPolicy`.

    Flat spellings of nested settings: ``patch_size`` and ``num_layers`` (of ``vision``; the
    fusion gets half as many layers, at least 2, or ``fusion_num_layers``), ``embed_dim``,
    ``num_heads`` and ``mlp_ratio`` (of all three transformers), ``dropout`` (of ``vision`` and
    ``fusion``: the encoders of instructions have none), ``use_language``, ``lang_num_layers``,
    ``max_text_len`` and ``vocab_size`` (of ``language``; only words have a vocabulary),
    ``action_head_type`` (of ``head``) and ``action_horizon`` (``chunk_size``).
    """

    type: Literal["vla"] = Field(default="vla", description="Transformers throughout.")
    chunk_size: ChunkSize = 1
    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "vit", optional=True)] = Field(
        default=ViTConfig(), description="Encoder of pictures; null: no look at them."
    )
    language: Annotated[
        EncoderConfig | None, ByType(TEXT_ENCODER_REGISTRY, "characters", optional=True)
    ] = Field(default=_LANGUAGE, description="Encoder of instructions; null: they are not read.")
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "transformer")] = (
        TransformerFusionConfig()
    )
    execution: ExecutionConfig = ExecutionConfig(replan_every=1)

    FLAT: ClassVar[Mapping[str, tuple[str, ...]]] = {**_SPELLINGS, "use_language": ("language",)}

    @model_validator(mode="before")
    @classmethod
    def _flat_spellings(cls, data: Any) -> Any:
        return spread(_completed(data), cls, _SPELLINGS, _SWITCHES)


class VLAPolicy(ComposedPolicy):
    """Vision-language-action transformer, after RT-2 and OpenVLA, small.

        image [B,V,C,H,W] -> ViT -> [CLS, patches] of every camera --+
        language [B] ------> characters -> tokens -------------------+-> transformer
        state [B,S] -------> linear -> one token --------------------+      |
                                                    summary (the CLS tokens') -> head

    RT-2: Brohan et al. 2023, arXiv 2307.15818. OpenVLA: Kim et al. 2024, arXiv 2406.09246.
    Everything is trained from scratch.

    Args:
        config, contract, statistics, loss, encoders: see
            :class:`teamvla.models.composed.SensingPolicy`.
    """

    Config = VLAConfig
    SIZES: ClassVar[Mapping[str, int]] = {"image_size": 128, "action_dim": 4}


def _completed(data: Any) -> Any:
    """Settings with the depth of the fusion, and without a vocabulary that nobody has."""
    if not isinstance(data, dict):
        return data
    completed = dict(data)
    layers, fusion = data.get("num_layers"), data.get("fusion")
    nested = isinstance(fusion, dict) and ("num_layers" in fusion or "type" in fusion)
    if isinstance(layers, int) and not nested and not isinstance(fusion, FusionConfig):
        completed.setdefault("fusion_num_layers", max(2, layers // 2))
    language = data.get("language", _LANGUAGE)
    kind = language.get("type") if isinstance(language, dict) else getattr(language, "type", None)
    if "vocab_size" in data and kind in (None, "characters"):
        _LOG.warning("vocab_size %s changes nothing: only words have one", data["vocab_size"])
        del completed["vocab_size"]
    return completed

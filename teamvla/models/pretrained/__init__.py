"""Parts whose weights somebody else trained, through transformers (the extra ``pretrained``).

``VisionEncoder`` and ``VisionEncoderConfig`` are the specification's names of
:class:`~teamvla.models.encoders.pretrained.PretrainedVisionEncoder` and of its settings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teamvla.models.encoders.pretrained import PretrainedVisionConfig, PretrainedVisionEncoder
    from teamvla.models.encoders.pretrained import PretrainedVisionConfig as VisionEncoderConfig
    from teamvla.models.encoders.pretrained import PretrainedVisionEncoder as VisionEncoder
    from teamvla.models.pretrained.llm import LLMBackbone, LLMConfig
    from teamvla.models.pretrained.settings import weights_follow

_HOME = {
    "LLMBackbone": "pretrained.llm:LLMBackbone",
    "LLMConfig": "pretrained.llm:LLMConfig",
    "PretrainedVisionConfig": "encoders.pretrained:PretrainedVisionConfig",
    "PretrainedVisionEncoder": "encoders.pretrained:PretrainedVisionEncoder",
    "VisionEncoder": "encoders.pretrained:PretrainedVisionEncoder",
    "VisionEncoderConfig": "encoders.pretrained:PretrainedVisionConfig",
    "weights_follow": "pretrained.settings:weights_follow",
}

__all__ = [
    "LLMBackbone",
    "LLMConfig",
    "PretrainedVisionConfig",
    "PretrainedVisionEncoder",
    "VisionEncoder",
    "VisionEncoderConfig",
    "weights_follow",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, entry = _HOME[name].partition(":")
    return getattr(importlib.import_module(f"teamvla.models.{module}"), entry)

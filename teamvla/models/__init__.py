"""Policies and what they are built from. Names load torch only when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teamvla.models.base import MODELS, Policy, PolicyConfig, build_policy
    from teamvla.models.chunking import ActionChunker, ExecutionConfig
    from teamvla.models.losses import LossConfig
    from teamvla.models.registry import ModelRegistry, register_model
    from teamvla.models.vla_singlebrain import SingleBrainConfig, SingleBrainVLA

_HOME = {
    "MODELS": "base",
    "Policy": "base",
    "PolicyConfig": "base",
    "build_policy": "base",
    "ActionChunker": "chunking",
    "ExecutionConfig": "chunking",
    "LossConfig": "losses",
    "ModelRegistry": "registry",
    "register_model": "registry",
    "SingleBrainConfig": "vla_singlebrain",
    "SingleBrainVLA": "vla_singlebrain",
}

__all__ = [
    "MODELS",
    "ActionChunker",
    "ExecutionConfig",
    "LossConfig",
    "ModelRegistry",
    "Policy",
    "PolicyConfig",
    "SingleBrainConfig",
    "SingleBrainVLA",
    "build_policy",
    "register_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

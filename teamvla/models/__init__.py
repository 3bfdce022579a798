"""Policies and what they are built from. Names load torch only when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teamvla.models.act_policy import ACTConfig, ACTPolicy
    from teamvla.models.base import Policy, PolicyConfig
    from teamvla.models.bc import BCConfig, BCPolicy
    from teamvla.models.building import build_policy
    from teamvla.models.chunking import ActionChunker, ExecutionConfig
    from teamvla.models.diffusion_policy import ContinuousDiffusionPolicy, DiffusionPolicyConfig
    from teamvla.models.features import Features, Tokens
    from teamvla.models.heads.base import ActionHead
    from teamvla.models.losses import LossConfig
    from teamvla.models.multi_sensor import MultiSensorConfig, MultiSensorVLA
    from teamvla.models.registries import (
        ACTION_HEAD_REGISTRY,
        ENCODER_REGISTRY,
        FUSION_REGISTRY,
        MODELS,
        PROJECTOR_REGISTRY,
        SENSOR_ENCODER_REGISTRY,
        TEMPORAL_REGISTRY,
        TEXT_ENCODER_REGISTRY,
    )
    from teamvla.models.registry import ModelRegistry, register_model
    from teamvla.models.spaces import Spaces
    from teamvla.models.vla import VLAConfig, VLAPolicy
    from teamvla.models.vla_model import VLAModel, VLAModelConfig
    from teamvla.models.vla_msgpassing import MsgPassingConfig, MsgPassingVLA
    from teamvla.models.vla_singlebrain import SingleBrainConfig, SingleBrainVLA

_HOME = {
    "BCPolicy": "bc",
    "BCConfig": "bc",
    "VLAPolicy": "vla",
    "VLAConfig": "vla",
    "VLAModel": "vla_model",
    "VLAModelConfig": "vla_model",
    "MsgPassingVLA": "vla_msgpassing",
    "MsgPassingConfig": "vla_msgpassing",
    "MultiSensorVLA": "multi_sensor",
    "MultiSensorConfig": "multi_sensor",
    "ACTPolicy": "act_policy",
    "ACTConfig": "act_policy",
    "ContinuousDiffusionPolicy": "diffusion_policy",
    "DiffusionPolicyConfig": "diffusion_policy",
    "ActionHead": "heads.base",
    "Features": "features",
    "Tokens": "features",
    "Spaces": "spaces",
    "ACTION_HEAD_REGISTRY": "registries",
    "ENCODER_REGISTRY": "registries",
    "FUSION_REGISTRY": "registries",
    "MODELS": "registries",
    "PROJECTOR_REGISTRY": "registries",
    "SENSOR_ENCODER_REGISTRY": "registries",
    "TEMPORAL_REGISTRY": "registries",
    "TEXT_ENCODER_REGISTRY": "registries",
    "Policy": "base",
    "PolicyConfig": "base",
    "build_policy": "building",
    "ActionChunker": "chunking",
    "ExecutionConfig": "chunking",
    "LossConfig": "losses",
    "ModelRegistry": "registry",
    "register_model": "registry",
    "SingleBrainConfig": "vla_singlebrain",
    "SingleBrainVLA": "vla_singlebrain",
}

__all__ = [
    "ACTION_HEAD_REGISTRY",
    "ENCODER_REGISTRY",
    "FUSION_REGISTRY",
    "MODELS",
    "PROJECTOR_REGISTRY",
    "SENSOR_ENCODER_REGISTRY",
    "TEMPORAL_REGISTRY",
    "TEXT_ENCODER_REGISTRY",
    "ACTConfig",
    "ACTPolicy",
    "ActionChunker",
    "ActionHead",
    "BCConfig",
    "BCPolicy",
    "ContinuousDiffusionPolicy",
    "DiffusionPolicyConfig",
    "ExecutionConfig",
    "Features",
    "LossConfig",
    "ModelRegistry",
    "MsgPassingConfig",
    "MsgPassingVLA",
    "MultiSensorConfig",
    "MultiSensorVLA",
    "Policy",
    "PolicyConfig",
    "SingleBrainConfig",
    "SingleBrainVLA",
    "Spaces",
    "Tokens",
    "VLAConfig",
    "VLAModel",
    "VLAModelConfig",
    "VLAPolicy",
    "build_policy",
    "register_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

"""Pretrained families have the sizes that were published, counted without any memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretrained_models import LLMS, VISION

from teamvla.models.encoders.pretrained import FAMILIES as TOWERS
from teamvla.models.pretrained import (
    LLMBackbone,
    LLMConfig,
    VisionEncoder,
    VisionEncoderConfig,
    hub,
    weights_follow,
)
from teamvla.models.pretrained.llm import FAMILIES

transformers = pytest.importorskip("transformers")

_QWEN2: dict[str, Any] = {"model_type": "qwen2", "vocab_size": 151936}
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128}
#: architecture as it is published, and all parameters of the causal model by the hub's count
LANGUAGE = {
    "qwen2-0.5b": (
        {**_QWEN2, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
        494_032_768,
    ),
    "qwen2-1.5b": (
        {**_QWEN2, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
         "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
        1_543_714_304,
    ),
    "qwen2-7b": (
        {**_QWEN2, "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
         "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        7_615_616_512,
    ),
    "qwen3-0.6b": (
        {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
        596_049_920,
    ),
    "llama3-8b": (
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
         "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
        8_030_261_248,
    ),
    "phi-3-mini": (
        {"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "num_hidden_layers": 32,
         "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32},
        3_821_079_552,
    ),
    "gemma3-1b": (
        {"model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "head_dim": 256,
         "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
         "num_key_value_heads": 1, "sliding_window": 512},
        999_885_952,
    ),
}  # fmt: skip


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_have_their_published_size(name):
    architecture, published = LANGUAGE[name]
    assert name in hub.SHORT_NAMES
    config = LLMConfig(model_name=name, architecture=architecture, tokenizer_bytes=10)
    with torch.device("meta"), weights_follow():
        llm = LLMBackbone(config)
    # The layer that guesses words is left out; where it is tied it has no weights of its own.
    tied = architecture.get("tie_word_embeddings", architecture["model_type"] == "gemma3_text")
    guessing = 0 if tied else architecture["vocab_size"] * architecture["hidden_size"]
    assert count(llm) + guessing == published


def test_every_family_has_a_tiny_model_and_a_published_one():
    tiny = {values.get("model_type") for values, _ in LANGUAGE.values()}
    assert tiny == set(FAMILIES)
    assert len(LLMS) == len(FAMILIES)


_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096,
}  # fmt: skip
_CLIP_B = {"model_type": "clip_vision_model", "patch_size": 16}
#: architecture as it is published, what we leave out of it, and the published count
PICTURES: dict[str, tuple[dict[str, Any], int, int]] = {
    # 92,884,224 of the hub's vision tower, of which 7,087,104 are its pooling
    "siglip-base": ({"model_type": "siglip_vision_model"}, 7_087_104, 92_884_224),
    "clip-vit-b": (_CLIP_B, 0, 85_799_424),
    "clip-vit-l": ({**_CLIP_B, **_LARGE, "patch_size": 14}, 0, 303_179_776),
    "dinov2-base": ({"model_type": "dinov2", "image_size": 518}, 0, 86_580_480),
    "dinov2-large": (
        {"model_type": "dinov2", "image_size": 518, **_LARGE}, 0, 304_368_640,
    ),
    "dinov3-base": (
        {"model_type": "dinov3_vit", "hidden_size": 768, "intermediate_size": 3072,
         "num_attention_heads": 12, "num_register_tokens": 4}, 0, 85_660_416,
    ),
    "dinov3-large": (
        {"model_type": "dinov3_vit", **_LARGE, "num_register_tokens": 4}, 0, 303_129_600,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_vision_towers_have_their_published_size(name):
    given, left_out, published = PICTURES[name]
    assert name in hub.SHORT_NAMES
    settings = transformers.CONFIG_MAPPING[given["model_type"]](
        **{key: value for key, value in given.items() if key != "model_type"}
    )
    architecture = {**settings.to_dict(), "vision_use_head": False}
    config = VisionEncoderConfig(model_name=name, architecture=architecture, image_size=224)
    with torch.device("meta"), weights_follow():
        encoder = VisionEncoder(config)
    assert count(encoder) + left_out == published


def test_the_tiny_models_of_the_tests_are_of_every_family():
    kinds = {getattr(transformers, settings)().model_type for _, settings, _ in VISION.values()}
    towers = {kind if kind in TOWERS else f"{kind}_vision_model" for kind in kinds}
    assert towers == set(TOWERS)

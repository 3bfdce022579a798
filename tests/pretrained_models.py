"""Tiny models of every pretrained family, saved as their makers save theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS, HEADS = 32, 2, 4
SIDE, PATCH = 32, 8
WORDS = ["<unk>", "<s>", "lift", "the", "tray", "hold", "lower", "cube", "red"]
_BODY = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": 64,
}  # fmt: skip
_PICTURES = {**_BODY, "image_size": SIDE, "patch_size": PATCH}
_TEXT = {**_BODY, "vocab_size": 40, "max_position_embeddings": 16}
#: name -> class of the model that is saved, of its settings, and what makes it small
VISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "siglip": ("SiglipModel", "SiglipConfig", {"vision_config": _PICTURES, "text_config": _TEXT}),
    "siglip_tower": ("SiglipVisionModel", "SiglipVisionConfig", _PICTURES),
    "siglip2": (
        "Siglip2Model", "Siglip2Config",
        {
            "vision_config": {**_BODY, "num_patches": 16, "patch_size": PATCH},
            "text_config": _TEXT,
        },
    ),
    "clip": ("CLIPModel", "CLIPConfig", {"vision_config": _PICTURES, "text_config": _TEXT}),
    "clip_tower": ("CLIPVisionModel", "CLIPVisionConfig", _PICTURES),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_PICTURES, "mlp_ratio": 2}),
    "dinov2_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig",
        {**_PICTURES, "mlp_ratio": 2, "num_register_tokens": 4},
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_PICTURES, "num_register_tokens": 4}),
}  # fmt: skip
_LLM = {
    **_BODY, "vocab_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
LLMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_LLM, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LLM, "head_dim": 8}),
    "llama3": ("LlamaForCausalLM", "LlamaConfig", _LLM),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_LLM, "sliding_window": 8}),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {
            **_LLM, "head_dim": 8, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}  # fmt: skip


def save_model(kind: str, settings: str, values: dict[str, Any], folder: Path) -> Path:
    """A model with random weights in ``folder``."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, settings)(**values)).eval()
        # As they are made many weights are 0 or 1, and would hide what is done to them.
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def save_vision(name: str, folder: Path) -> Path:
    return save_model(*VISION[name], folder)


def save_tokenizer(folder: Path, *, begin: str | None = None) -> Path:
    """A tokenizer of a few words; ``begin`` stands before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, numbers[begin])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_llm(name: str, folder: Path, *, begin: str | None = None) -> Path:
    return save_tokenizer(save_model(*LLMS[name], folder), begin=begin)

"""Parameter counts over the specification's scaling table, without allocating anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from teamvla.models.registry import ModelRegistry

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "scaling.py"
#: millions of parameters with characters, and with 1,000 words
MILLIONS = {
    "Debug": (0.37, 0.43),
    "Small": (1.72, 1.84),
    "Medium": (11.32, 11.56),
    "Large": (63.57, 64.06),
    "XL": (479.70, 480.68),
}


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(width: int, layers: int, vocabulary: int) -> int:
    """Blocks of vision, words and fusion, and what lies around them."""
    block = 12 * width**2 + 13 * width
    vision = 3 * 16 * 16 + 1 + 64 + 1 + 2  # patches, their bias, places, CLS, norm
    words = vocabulary + 2 + 64 + 2  # padding and unknown beside them, places, norm
    fusion = 1 + 1 + 65 + 1 + 2  # summary, camera, places, words, norm
    blocks = layers + 2 + max(2, layers // 2)
    return blocks * block + width * (vision + words + fusion) + 4 * width + 4


@pytest.mark.parametrize("name", MILLIONS)
def test_vla_has_the_parameters_of_its_parts(scaling, name):
    width, heads, layers, _ = scaling.TABLE[name]
    for language, vocabulary, millions in zip(
        ("characters", "words"), (43, 1000), MILLIONS[name], strict=True
    ):
        count = scaling.parameters(width, heads, layers, language)
        assert count == expected(width, layers, vocabulary)
        assert round(count / 1e6, 2) == millions


def test_the_flat_settings_of_the_specification_make_the_same_sizes(scaling):
    width, heads, layers, _ = scaling.TABLE["Small"]
    with torch.device("meta"):
        policy = ModelRegistry.create("vla", embed_dim=width, num_heads=heads, num_layers=layers)
    parameters = list(policy.parameters())
    assert {parameter.device.type for parameter in parameters} == {"meta"}
    assert sum(p.numel() for p in parameters) == scaling.parameters(width, heads, layers)

"""Parameter counts over the specification's scaling table, without allocating anything."""

from __future__ import annotations

import pytest
import torch

from teamvla.models.registry import ModelRegistry

#: width, heads, layers -> millions of parameters
TABLE = {
    (64, 2, 2): 0.37,
    (128, 4, 4): 1.72,
    (256, 8, 8): 11.32,
    (512, 16, 12): 63.57,
    (1024, 16, 24): 479.70,
}


def expected(width: int, layers: int) -> int:
    """Blocks of vision, words and fusion, and what lies around them."""
    block = 12 * width**2 + 13 * width
    vision = 3 * 16 * 16 + 1 + 64 + 1 + 2  # patches, their bias, places, CLS, norm
    words = 45 + 64 + 2  # characters, places, norm
    fusion = 1 + 1 + 65 + 1 + 2  # summary, camera, places, words, norm
    blocks = layers + 2 + max(2, layers // 2)
    return blocks * block + width * (vision + words + fusion) + 4 * width + 4


@pytest.mark.parametrize(("width", "heads", "layers"), TABLE)
def test_vla_has_the_parameters_of_its_parts(width, heads, layers):
    with torch.device("meta"):
        policy = ModelRegistry.create(
            "vla", embed_dim=width, num_heads=heads, num_layers=layers, dropout=0.1
        )
    parameters = list(policy.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert {parameter.device.type for parameter in parameters} == {"meta"}
    assert count == expected(width, layers)
    assert round(count / 1e6, 2) == TABLE[width, heads, layers]

"""Projectors: from an encoder's tokens to a language model's."""

from __future__ import annotations

import pytest
import torch

from teamvla.errors import ConfigError
from teamvla.models.features import Tokens
from teamvla.models.projectors import (
    AttentionPoolingProjector,
    MLPProjector,
    PerceiverProjector,
    build_projector,
)
from teamvla.models.registries import PROJECTOR_REGISTRY

VISION, LLM, KEPT = 12, 32, 5
KINDS = {
    "mlp": {},
    "attention_pooling": {"num_queries": KEPT, "num_heads": 4},
    "perceiver": {"num_latents": KEPT, "num_heads": 2, "hidden_dim": 16},
}
every_kind = pytest.mark.parametrize("name", KINDS)
resampling = pytest.mark.parametrize("name", ["attention_pooling", "perceiver"])


def make(name):
    torch.manual_seed(0)
    config = PROJECTOR_REGISTRY.get(name).Config(**KINDS[name])
    projector = build_projector(config, VISION, LLM).eval()
    for parameter in projector.parameters():  # small as they are made, they hide differences
        parameter.data += 0.2 * torch.randn_like(parameter)
    return projector


def tokens(count=9, rows=3):
    return torch.randn(rows, count, VISION, generator=torch.Generator().manual_seed(1))


def test_all_that_are_registered_are_tested():
    assert set(KINDS) == set(PROJECTOR_REGISTRY)


@every_kind
def test_a_finite_gradient_reaches_every_parameter(name):
    projector = make(name)
    projector(tokens()).square().sum().backward()
    for path, parameter in projector.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        # Softmax does not see what is added to all keys.
        assert bool(parameter.grad.abs().max() > 1e-3) != path.endswith("k_proj.bias"), path


@every_kind
def test_padding_changes_nothing(name):
    projector, seen = make(name), tokens()
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    projected = projector.project(Tokens(seen, mask))
    other = projector.project(Tokens(torch.where(mask[..., None], seen, 1e3), mask))
    assert torch.equal(other.mask, projected.mask)
    assert torch.equal(other.values[other.mask], projected.values[projected.mask])


@every_kind
def test_a_row_without_its_padding_gives_the_same(name):
    projector, seen = make(name), tokens()
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    together = projector.project(Tokens(seen, mask))
    alone = projector(seen[1:2, :4])
    torch.testing.assert_close(together.values[1][together.mask[1]], alone[0], rtol=0, atol=1e-5)


@resampling
@pytest.mark.parametrize("count", [1, 9, 300])
def test_any_number_of_tokens_becomes_that_of_the_settings(name, count):
    assert make(name)(tokens(count)).shape == (3, KEPT, LLM)


@resampling
def test_the_order_of_the_tokens_does_not_count_and_each_of_them_does(name):
    projector, seen = make(name), tokens()
    projected = projector(seen)
    torch.testing.assert_close(projector(seen.flip(1)), projected, rtol=0, atol=1e-5)
    for place in range(seen.shape[1]):
        changed = seen.clone()
        changed[:, place, 0] += 1
        assert not torch.allclose(projector(changed), projected, atol=1e-4)


@resampling
def test_what_is_kept_of_a_picture_is_not_all_the_same(name):
    projected = make(name)(tokens())
    assert torch.pdist(projected[0]).min() > 1e-2


def test_mlp_projects_each_token_by_itself():
    projector, seen = make("mlp"), tokens()
    changed = seen.clone()
    changed[:, 3] += 1
    differs = (projector(changed) != projector(seen)).any(-1)
    assert torch.equal(differs, (torch.arange(9) == 3).expand(3, 9))


def test_the_sizes_of_the_specification():
    pictures = torch.randn(2, 196, 768)
    assert MLPProjector(768, 896)(pictures).shape == (2, 196, 896)
    assert AttentionPoolingProjector(768, 896, num_queries=64)(pictures).shape == (2, 64, 896)
    perceiver = PerceiverProjector(768, 896, num_latents=64, num_layers=2)
    assert perceiver(pictures).shape == (2, 64, 896)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"divisor of .* width 30, got 8. The nearest is 6"):
        AttentionPoolingProjector(VISION, 30)
    with pytest.raises(ValueError, match="num_heads 8 must divide hidden_dim 20"):
        PerceiverProjector(VISION, LLM, hidden_dim=20)

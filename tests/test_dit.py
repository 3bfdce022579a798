"""Transformer blocks that a condition steers, and what tells them the time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from teamvla.models.dit import AdaptiveNorm, DiTBlock, SinusoidalPositionEmbedding

ROWS, TOKENS, WIDTH = 3, 5, 16


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fresh(**settings: float) -> DiTBlock:
    torch.manual_seed(0)
    return DiTBlock(WIDTH, **settings)


def steered() -> DiTBlock:
    """As if trained: what a condition decides is no longer 0."""
    block = fresh().eval()
    with torch.no_grad():
        for weight in block.modulation.parameters():
            weight.copy_(0.5 * torch.randn_like(weight))
    return block


TOLD, CONDITION = given(ROWS, TOKENS, WIDTH), given(ROWS, WIDTH, seed=1)


def test_a_fresh_block_is_the_identity():
    assert torch.equal(fresh()(TOLD, CONDITION), TOLD)


def test_the_gates_of_a_fresh_block_learn_and_open_it():
    block = fresh()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(TOLD, CONDITION).square().sum().backward()
    slopes = block.modulation.linear.bias.grad.view(6, WIDTH).abs().amax(1) > 0
    # Of attention: scale, shift, gate; of the MLP the same. Behind closed gates none shows.
    assert slopes.tolist() == [False, False, True, False, False, True]
    optimizer.step()
    optimizer.zero_grad()
    changed = block(TOLD, CONDITION)
    assert not torch.allclose(changed, TOLD)
    changed.square().sum().backward()
    for name, weight in block.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax does not see what is added to all keys
            assert weight.grad.abs().max() > 1e-8, name


def test_the_condition_of_a_row_changes_that_row_alone():
    block, other = steered(), CONDITION.clone()
    other[1] += 1.0
    changed = (block(TOLD, other) - block(TOLD, CONDITION)).abs().amax((1, 2))
    assert (changed > 1e-3).tolist() == [False, True, False]


def test_masked_tokens_are_not_looked_at():
    block, other = steered(), TOLD.clone()
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    mask[:, -2:] = False
    other[:, -2:] = given(ROWS, 2, WIDTH, seed=2)
    before, after = block(TOLD, CONDITION, mask), block(other, CONDITION, mask)
    assert torch.equal(before[:, :-2], after[:, :-2])
    assert not torch.allclose(block(TOLD, CONDITION)[:, :-2], block(other, CONDITION)[:, :-2])


@pytest.mark.parametrize("place", [0, 3])
def test_the_context_is_looked_at_and_what_is_masked_of_it_is_not(place: int):
    block = steered()
    context = given(ROWS, 4, WIDTH, seed=3)
    other = context.clone()
    other[:, place] += 2.0
    mask = torch.ones(ROWS, 4 + TOKENS, dtype=torch.bool)
    mask[:, 3] = False
    before, after = (
        block(TOLD, CONDITION, mask, block.attention.keys_values(tokens))
        for tokens in (context, other)
    )
    assert torch.equal(before, after) == (place == 3)
    assert not torch.allclose(before, block(TOLD, CONDITION))


def test_the_norm_is_steered_by_scale_and_shift():
    plain = torch.nn.functional.layer_norm(TOLD, (WIDTH,))
    norm, nothing = AdaptiveNorm(WIDTH), torch.zeros(ROWS, 1, WIDTH)
    torch.testing.assert_close(norm(TOLD, nothing, nothing), plain)
    torch.testing.assert_close(norm(TOLD, nothing + 1, nothing + 3), 2 * plain + 3)


def test_near_times_are_told_apart_and_far_ones_more_so():
    torch.manual_seed(0)
    embed = SinusoidalPositionEmbedding(128)
    with torch.no_grad():
        start, near, far = embed(torch.tensor([0.5, 0.5025, 0.75]))
    scale = start.norm()
    assert (near - start).norm() > 0.02 * scale
    assert (far - start).norm() > 1.5 * (near - start).norm()


def test_a_network_reads_the_time_from_its_embedding():
    torch.manual_seed(0)
    embed, read = SinusoidalPositionEmbedding(32), torch.nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*embed.parameters(), *read.parameters()], lr=3e-3)
    times = torch.linspace(0, 1, 101)
    for _ in range(300):
        optimizer.zero_grad()
        (read(embed(times))[:, 0] - times).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(read(embed(times))[:, 0], times, atol=0.1, rtol=0)


def test_sizes_that_do_not_fit_are_refused_where_they_are_given():
    with pytest.raises(ValueError, match="num_heads 4 must divide hidden_dim 30"):
        DiTBlock(30, 4)
    with pytest.raises(ValueError, match="hidden_dim 33 must be even"):
        SinusoidalPositionEmbedding(33)

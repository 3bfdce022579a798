"""The head that denoises masked actions: what it makes of the chances that it learned."""

from __future__ import annotations

import pytest
import torch
from head_cases import look, train
from masked_cases import SMALL, WIDTH, make
from torch import Generator

from teamvla.models.features import Features


def test_where_demonstrations_scatter_about_the_edge_of_two_blurred_bins_it_acts_between():
    head = make(chunk_size=1, bin_blur=1.0, temperature=0.0)
    sides = torch.tensor([-0.05, 0.05])
    target = torch.cartesian_prod(sides, sides, sides).unsqueeze(1)
    assert head.bins.of(target)[..., 2].unique().tolist() == [2, 3]  # centres: -1/6 and 1/6
    features = Features.of(torch.zeros(len(target), WIDTH))
    train(head.train(), features, target, steps=80, rate=1e-2)
    numbers = head.sample(features)[..., [0, 2]]
    torch.testing.assert_close(numbers, torch.zeros_like(numbers), atol=0.09, rtol=0)


def test_moves_are_given_as_they_are_where_bins_are_blurred():
    drawn = make(bin_blur=1.0).sample(look(50), Generator().manual_seed(0))
    moves = {round(move, 4) for move in drawn[..., 1].flatten().tolist()}
    assert moves == {-1.0, -0.3333, 0.3333, 1.0}


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.0, 1.0), (0.1, 1.0), (0.5, 0.9), (1.0, 0.75), (2.0, 0.634)]
)
def test_the_temperature_sharpens_or_flattens_how_long_chunks_are(temperature, expected):
    head = make(temperature=temperature)
    with torch.no_grad():
        head.length.weight.zero_()
        head.length.bias.copy_(torch.tensor([0.0, 0.75, 0.0, 0.0, 0.25]).log())
    seen = torch.zeros(4000, SMALL["hidden_dim"])
    lengths = head._there(seen, Generator().manual_seed(0)).sum(1)
    assert {*lengths.tolist()} <= {2, 5}
    assert (lengths == 2).float().mean() == pytest.approx(expected, abs=0.03)

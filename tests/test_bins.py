"""Normalised actions as numbers of bins, and choices as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teamvla.models.heads.bins import Bins

CHOICES = {1: 3, 2: 7}


@given(st.integers(2, 300), st.data())
def test_every_bin_and_choice_comes_back(count, data):
    bins = Bins(3, count, CHOICES)
    tops = [count, 3, 7]
    told = torch.tensor([data.draw(st.integers(0, top - 1)) for top in tops])
    assert torch.equal(bins.of(bins.centres(told)), told)


@given(st.integers(2, 300), st.floats(-1, 1, width=32))
def test_a_number_comes_back_within_half_a_bin(count, number):
    bins = Bins(1, count, {})
    again = bins.centres(bins.of(torch.tensor([number])))
    assert abs(float(again) - number) <= 1 / count + 1e-6


def test_choices_lie_evenly_from_end_to_end():
    centres = Bins(1, 256, {0: 3}).centres(torch.arange(3)[:, None])
    assert centres.flatten().tolist() == [-1, 0, 1]


def test_a_single_choice_is_always_taken():
    bins = Bins(1, 256, {0: 1})
    assert bins.count == 1
    assert bins.of(torch.tensor([[-1.0], [0.7]])).tolist() == [[0], [0]]


def test_bins_that_a_number_does_not_have_get_no_chance():
    bins = Bins(3, 5, CHOICES)
    chances = bins.legal(torch.zeros(3, bins.count)).softmax(-1)
    assert (chances > 0).sum(-1).tolist() == [5, 3, 7]


@pytest.mark.parametrize("deviation", [0.3, 2.0])
@given(st.data())
def test_blurred_targets_are_chances_with_their_peak_at_the_bin(deviation, data):
    bins = Bins(3, 6, CHOICES)
    told = torch.tensor([data.draw(st.integers(0, top - 1)) for top in (6, 3, 7)])
    chances = bins.blurred(told, deviation)
    torch.testing.assert_close(chances.sum(-1), torch.ones(3))
    assert torch.equal(chances.argmax(-1), told)
    assert chances[0, 6] == 0, "the number has 6 bins"
    exact = torch.nn.functional.one_hot(told, 7).float()
    assert torch.equal(chances[1:], exact[1:])


def test_blur_spreads_to_the_nearest_bins():
    chances = Bins(1, 9, {}).blurred(torch.tensor([4]), 1.0)[0]
    assert chances[4] == pytest.approx(0.3829, abs=1e-3)  # a normal's share within half a deviation
    assert chances[3] == pytest.approx(float(chances[5]))
    assert bool((chances[4:].diff() < 0).all())

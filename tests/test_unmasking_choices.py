"""Which tokens a sampler makes known next, and by which chances: where chance has a part in it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from test_unmasking import SAMPLERS, C, D, Network, drawn, everything, unsure
from torch import Tensor

from teamvla.models.heads.unmasking import UnmaskingConfig, unmask

ROWS = 4000


def one_at_a_time(ways: list[int], temperature: float) -> tuple[list[Tensor], Tensor]:
    """Which tokens [B,N] were masked at each call, of N with so many bins that are alike.

    Besides how likely [N] what is chosen of them is, whichever it is.
    """
    bins, sure = torch.arange(max(ways)), 1 / torch.tensor(ways)
    network = Network(torch.zeros(len(bins)).where(bins < torch.tensor(ways)[:, None], -torch.inf))
    there = torch.ones(ROWS, 1, dtype=torch.bool)
    config = UnmaskingConfig(
        schedule="linear", num_inference_steps=len(ways), temperature=temperature
    )
    unmask(network, there, len(ways), config, drawn())
    return [masked[:, 0] for _, masked, _ in network.asked], sure


def test_by_confidence_a_token_is_known_first_as_often_as_it_is_sure():
    (_, masked, *_), sure = one_at_a_time([1] + 7 * [4], temperature=1.0)
    shares = (~masked).float().mean(0)
    torch.testing.assert_close(shares, sure / sure.sum(), atol=0.025, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_later_the_less_does_chance_decide_what_is_known_next(temperature):
    calls, sure = one_at_a_time([1, 1, 4, 4], temperature)
    for step, (before, after) in enumerate(pairwise(calls)):
        noise = temperature * (1 - step / len(calls))
        chances = before * sure ** (1 / noise)
        chances = chances / chances.sum(1, keepdim=True)
        either = before[:, :2].any(1) & before[:, 2:].any(1)
        known = (before & ~after)[either].float().mean(0)
        torch.testing.assert_close(known, chances[either].mean(0), atol=0.03, rtol=0)


def test_when_all_is_taken_back_that_may_be_what_was_masked_makes_room():
    network = unsure()
    config = UnmaskingConfig(
        schedule="linear", sampler="remasking", remasking=1.0, num_inference_steps=4
    )
    unmask(network, everything(100), D, config, drawn())
    half, quarter = (masked for _, masked, _ in network.asked[2:])
    assert bool(quarter.any())
    assert not bool((half & quarter).any())


class Wavering(Network):
    """Says something else at each call, of all tokens alike: logits [calls,C]."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.calls = logits

    def __call__(self, bins: Tensor, masked: Tensor, times: Tensor) -> Tensor:
        self.logits = self.calls[len(self.asked)]
        return super().__call__(bins, masked, times)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_chances_told_are_those_by_which_each_token_was_last_chosen(sampler):
    network, steps = Wavering(torch.randn(4, C, generator=drawn())), 4
    config = UnmaskingConfig(sampler=sampler, num_inference_steps=steps, remasking=0.5)
    _, chances = unmask(network, everything(), D, config, drawn())
    masked = torch.stack([masked for _, masked, _ in network.asked])
    last = (masked * torch.arange(steps).view(-1, 1, 1, 1)).amax(0)
    assert last.unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(chances, network.calls.softmax(-1)[last])

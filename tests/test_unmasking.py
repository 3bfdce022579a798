"""Samplers of masked diffusion, with networks whose chances are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from teamvla.models.heads.unmasking import (
    UnmaskingConfig,
    elbo_weight,
    mask_ratio,
    time_of,
    unmask,
)

K, D, C = 10, 2, 4
SAMPLERS = ("ancestral", "confidence", "remasking")
SCHEDULES = ("cosine", "linear")


class Network:
    """Fixed logits [K,D,C] or [B,K,D,C]; remembers what it was asked."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, bins: Tensor, masked: Tensor, times: Tensor) -> Tensor:
        self.asked.append((bins.clone(), masked.clone(), times.clone()))
        return self.logits.expand(*bins.shape, -1)

    @property
    def known(self) -> list[list[int]]:
        """How many tokens of each row were known at each call."""
        return [(~masked).flatten(1).sum(1).tolist() for _, masked, _ in self.asked]


def unsure(seed: int = 0) -> Network:
    return Network(torch.randn(K, D, C, generator=Generator().manual_seed(seed)))


def everything(rows: int = 3, length: int = K) -> Tensor:
    return (torch.arange(K) < length).expand(rows, K)


def drawn(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_is_masked_at_one_nothing_at_zero_and_never_less_later(schedule):
    ratios = mask_ratio(schedule, torch.linspace(0, 1, 101))
    assert (ratios[0], ratios[-1]) == (0, 1)
    assert bool((ratios.diff() > 0).all())


def test_the_schedules_are_the_documented_ones():
    assert mask_ratio("linear", torch.tensor(0.3)) == pytest.approx(0.3)
    # The specification's cos(pi / 2 * (1 - t)).
    expected = math.cos(math.pi / 2 * (1 - 0.3))
    assert mask_ratio("cosine", torch.tensor(0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_time_of_a_ratio_is_the_inverse(schedule):
    times = torch.linspace(0, 1, 21)
    torch.testing.assert_close(
        time_of(schedule, mask_ratio(schedule, times)), times, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_of_the_bound_is_the_slope_of_the_logarithm_of_the_ratio(schedule):
    times = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    mask_ratio(schedule, times).log().sum().backward()
    torch.testing.assert_close(elbo_weight(schedule, times.detach()), times.grad)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_of_the_bound_is_finite_at_time_zero(schedule):
    assert bool(elbo_weight(schedule, torch.zeros(1)).isfinite())


# how many tokens become known ---------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_by_confidence_as_many_are_known_as_the_schedule_says(schedule, temperature):
    network, steps = unsure(), 5
    config = UnmaskingConfig(schedule=schedule, num_inference_steps=steps, temperature=temperature)
    unmask(network, everything(), D, config, drawn())
    shares = mask_ratio(schedule, 1 - torch.arange(steps) / steps)
    expected = [K * D - math.floor(share * K * D + 1e-4) for share in shares.tolist()]
    assert network.known == [[count] * 3 for count in expected]


def test_rows_that_are_not_there_are_no_part_of_the_schedule():
    network = unsure()
    config = UnmaskingConfig(schedule="linear", num_inference_steps=2)
    there = torch.cat([everything(1, 4), everything(1, 10)])
    bins, _ = unmask(network, there, D, config)
    assert [masked.flatten(1).sum(1).tolist() for _, masked, _ in network.asked] == [
        [8, 20],
        [4, 10],
    ]
    assert not bool(bins[0, 4:].any())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_network_is_told_the_time_at_which_so_many_are_masked(schedule):
    network = unsure()
    unmask(network, everything(), D, UnmaskingConfig(schedule=schedule, num_inference_steps=4))
    assert len(network.asked) == 4
    for _, masked, times in network.asked:
        share = masked.flatten(1).float().mean(1)
        torch.testing.assert_close(mask_ratio(schedule, times), share, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ancestral_sampler_knows_as_many_on_average(schedule):
    network, steps = unsure(), 4
    config = UnmaskingConfig(schedule=schedule, sampler="ancestral", num_inference_steps=steps)
    unmask(network, everything(2000), D, config, drawn())
    for step, (_, masked, _) in enumerate(network.asked):
        share = mask_ratio(schedule, torch.tensor(1 - step / steps))
        assert masked.float().mean() == pytest.approx(float(share), abs=0.01)


@pytest.mark.parametrize("most", [0.3, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_however_much_is_taken_back_remasking_knows_as_many_on_average_too(schedule, most):
    network, steps = unsure(), 4
    config = UnmaskingConfig(
        schedule=schedule, sampler="remasking", remasking=most, num_inference_steps=steps
    )
    unmask(network, everything(2000), D, config, drawn())
    for step, (_, masked, _) in enumerate(network.asked):
        share = mask_ratio(schedule, torch.tensor(1 - step / steps))
        assert masked.float().mean() == pytest.approx(float(share), abs=0.01)


@pytest.mark.parametrize("sampler", ["ancestral", "confidence"])
def test_what_is_known_stays_as_it_is(sampler):
    network = unsure()
    bins, _ = unmask(network, everything(50), D, UnmaskingConfig(sampler=sampler), drawn())
    for (_, before, _), (told, after, _) in zip(network.asked, network.asked[1:], strict=False):
        assert not bool((after & ~before).any())
        assert torch.equal(told[~after], bins[~after])


def test_remasking_takes_back_at_its_rate_and_ends_with_all_known():
    network = unsure()
    config = UnmaskingConfig(
        sampler="remasking", remasking=0.2, schedule="linear", num_inference_steps=5
    )
    bins, _ = unmask(network, everything(2000), D, config, drawn())
    (_, before, _), (_, after, _) = network.asked[2:4]
    assert (after & ~before)[~before].float().mean() == pytest.approx(0.2, abs=0.02)
    likely = network.logits.argmax(-1)
    # Where some were still masked, bins would be 0 far more often than the chances say.
    chances = network.logits.softmax(-1).gather(-1, likely.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close((bins == likely).float().mean(0), chances, atol=0.05, rtol=0)


def test_without_a_share_remasking_is_ancestral():
    plain = UnmaskingConfig(sampler="ancestral", num_inference_steps=4)
    never = UnmaskingConfig(sampler="remasking", remasking=0.0, num_inference_steps=4)
    found = [unmask(unsure(), everything(20), D, config, drawn())[0] for config in (plain, never)]
    assert torch.equal(*found)


# what they become ---------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_temperature_tokens_are_the_likeliest(sampler):
    network = unsure()
    config = UnmaskingConfig(sampler=sampler, temperature=0)
    bins, _ = unmask(network, everything(), D, config, drawn())
    assert torch.equal(bins, network.logits.argmax(-1).expand_as(bins))


def test_the_surest_become_known_first():
    network = unsure()
    unmask(network, everything(1), D, UnmaskingConfig(temperature=0, num_inference_steps=5))
    sure = network.logits.softmax(-1).amax(-1)
    for _, masked, _ in network.asked[1:]:
        assert sure[~masked[0]].min() > sure[masked[0]].max()


@pytest.mark.parametrize("sampler", ["ancestral", "remasking"])
def test_independent_tokens_are_drawn_by_their_chances(sampler):
    network = unsure()
    config = UnmaskingConfig(sampler=sampler, num_inference_steps=3)
    bins, _ = unmask(network, everything(4000), D, config, drawn())
    shares = torch.nn.functional.one_hot(bins, C).float().mean(0)
    torch.testing.assert_close(shares, network.logits.softmax(-1), atol=0.04, rtol=0)


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 4 / 5), (1.0, 2 / 3), (2.0, 0.5858)])
def test_the_temperature_sharpens_or_flattens_the_chances(temperature, expected):
    network = Network(torch.tensor([2.0, 1.0]).log().expand(K, D, 2))
    config = UnmaskingConfig(temperature=temperature, sampler="ancestral")
    bins, _ = unmask(network, everything(1000), D, config, drawn())
    assert (bins == 0).float().mean() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 3.0])
def test_a_bin_without_a_chance_is_never_drawn(temperature):
    logits = torch.zeros(K, D, C)
    logits[..., [0, 3]] = -torch.inf
    config = UnmaskingConfig(temperature=temperature)
    bins, _ = unmask(Network(logits), everything(500), D, config, drawn())
    assert {*bins.unique().tolist()} == {1, 2}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_without_a_generator_every_row_and_time_is_alike(sampler):
    config = UnmaskingConfig(sampler=sampler)
    (first, _), (again, _) = (unmask(unsure(), everything(rows), D, config) for rows in (4, 1))
    assert torch.equal(first, again.expand_as(first))
    others = {tuple(unmask(unsure(), everything(1), D, config, drawn(seed))[0].flatten().tolist())
              for seed in range(4)}  # fmt: skip
    assert len(others) == 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_a_generator_rows_differ_and_its_seed_repeats(sampler):
    config = UnmaskingConfig(sampler=sampler)
    first, again = (unmask(unsure(), everything(4), D, config, drawn(1))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 4


# adaptive steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ancestral", "confidence"])
def test_a_sure_network_is_asked_less_often_and_says_the_same(sampler):
    logits = 20.0 * torch.nn.functional.one_hot(torch.arange(K * D).view(K, D) % C, C)
    asked, found = [], []
    for threshold in (None, 0.9):
        network = Network(logits)
        config = UnmaskingConfig(sampler=sampler, confidence_threshold=threshold)
        found.append(unmask(network, everything(), D, config, drawn())[0])
        asked.append(len(network.asked))
    assert asked == [8, 1]
    assert torch.equal(*found)


def test_what_a_network_is_unsure_of_waits_for_its_turn():
    logits = torch.zeros(K, D, C)
    logits[:4, :, 1] = 20.0
    network = Network(logits)
    config = UnmaskingConfig(
        confidence_threshold=0.9, schedule="linear", num_inference_steps=5, temperature=0
    )
    unmask(network, everything(1), D, config)
    # 8 are sure at once; then the schedule, which would know 4, 8, 12, 16, but one at least.
    assert network.known == [[0], [8], [9], [12], [16]]

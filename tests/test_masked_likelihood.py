"""The bound of masked diffusion against the likelihood of small distributions that are known.

Shapes: R maskings, K chunk, D action, C choices, S all chunks that there are.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from teamvla.models.features import Features
from teamvla.models.heads.masked import MaskedDiffusionHead

SMALL = {"hidden_dim": 16, "n_layers": 1, "num_heads": 2, "dropout": 0.0}
C = 3
#: K and D of three tokens
SHAPES = ((3, 1), (1, 3))
ALL = torch.tensor([*itertools.product(range(C), repeat=3)])
#: chances [S] of all three tokens, far from independent
JOINT = (1.2 * torch.randn(len(ALL), generator=torch.Generator().manual_seed(4))).softmax(0)


class KnowingHead(MaskedDiffusionHead):
    """The best denoiser of :data:`JOINT`: the chances of each token given the known ones."""

    JOINT = JOINT

    def logits(
        self, bins: Tensor, masked: Tensor, times: Tensor, *told: Any, **besides: Any
    ) -> Tensor:
        rows = bins.shape[0]
        open_to = (masked.reshape(rows, 1, 3) | (bins.reshape(rows, 1, 3) == ALL)).all(-1)
        ways = torch.nn.functional.one_hot(ALL, C).float()
        chances = torch.einsum("rs,skc->rkc", open_to * self.JOINT, ways)
        return chances.clamp_min(1e-30).log().view(*bins.shape, C)


class GuessingHead(MaskedDiffusionHead):
    """Knows nothing: all choices are alike to it."""

    def logits(
        self, bins: Tensor, masked: Tensor, times: Tensor, *told: Any, **besides: Any
    ) -> Tensor:
        return torch.zeros(*bins.shape, C)


def made(kind: type[MaskedDiffusionHead], shape: tuple[int, int], **settings: Any) -> Any:
    torch.manual_seed(0)
    chunk, width = shape
    choices = dict.fromkeys(range(width), C)
    options = {"loss_weighting": "elbo", **SMALL, **settings}
    return kind(4, width, chunk, choices=choices, **options).eval()


def bound(head: MaskedDiffusionHead, places: list[int]) -> float:
    """The loss of a chunk times its tokens, without that of its length."""
    bins = torch.tensor(places).view(1, head.chunk_size, head.action_dim)
    is_pad = torch.zeros(bins.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        lost = head.loss(Features.of(torch.zeros(1, 4)), head.bins.centres(bins), is_pad)
    length = float(lost.parts.get("length", torch.zeros(())))
    return 3 * float(lost.total) - length


def surprise(places: list[int]) -> float:
    return -float(JOINT[(torch.tensor(places) == ALL).all(-1)].log())


@pytest.mark.parametrize("places", [[0, 0, 0], [2, 1, 0], [1, 1, 2]])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_of_the_best_denoiser_the_bound_is_the_likelihood(schedule, shape, places):
    head = made(KnowingHead, shape, schedule=schedule, times_per_sample=200_000)
    assert bound(head, places) == pytest.approx(surprise(places), rel=0.02)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_wrong_denoiser_is_above_the_likelihood_on_average(schedule):
    head = made(GuessingHead, (3, 1), schedule=schedule, times_per_sample=20_000)
    found = torch.tensor([bound(head, places.tolist()) for places in ALL])
    entropy = -(JOINT * JOINT.log()).sum()
    # All choices are alike to it: it is the likelihood of that, whatever stands there.
    expected = torch.full((len(ALL),), 3 * float(torch.tensor(C).log()))
    torch.testing.assert_close(found, expected, atol=0.15, rtol=0)
    assert (JOINT * found).sum() > entropy + 0.2


def test_the_likelihood_of_a_chunk_that_ends_early_is_that_of_its_rows():
    head = made(GuessingHead, (3, 1), times_per_sample=50_000)
    target = head.bins.centres(torch.tensor([[[0], [2], [2]]]))
    is_pad = torch.tensor([[False, False, True]])
    with torch.no_grad():
        lost = head.loss(Features.of(torch.zeros(1, 4)), target, is_pad)
    told = 2 * float(lost.total) - float(lost.parts["length"])
    assert told == pytest.approx(2 * float(torch.tensor(C).log()), abs=0.06)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_over_many_batches_the_validation_loss_is_the_bound(schedule):
    """Not that of one batch: each draws masks of its own."""
    head = made(GuessingHead, (3, 1), schedule=schedule, times_per_sample=25)
    bins = torch.randint(0, C, (200, 16, 3, 1), generator=torch.Generator().manual_seed(0))
    seen, is_pad = Features.of(torch.zeros(16, 4)), torch.zeros(16, 3, dtype=torch.bool)
    with torch.no_grad():
        parts = [head.loss(seen, head.bins.centres(some), is_pad) for some in bins]
    lost = torch.stack([each.total - each.parts["length"] / 3 for each in parts])
    expected = float(torch.tensor(C).log())
    assert lost.mean() == pytest.approx(expected, rel=0.01)
    assert lost[0] != pytest.approx(expected, rel=0.01)


def test_the_length_is_part_of_the_bound():
    head = made(GuessingHead, (3, 1), times_per_sample=2)
    with torch.no_grad():
        head.length.weight.zero_()
        head.length.bias.copy_(torch.tensor([0.1, 0.2, 0.7]).log())
    features, target = Features.of(torch.zeros(2, 4)), torch.zeros(2, 3, 1)
    is_pad = torch.tensor([[False, True, True], [False, False, False]])
    lost = head.loss(features, target, is_pad)
    expected = -torch.tensor([0.1, 0.7]).log().mean()
    torch.testing.assert_close(lost.parts["length"], expected)


@pytest.fixture(scope="module")
def learned() -> tuple[MaskedDiffusionHead, Tensor]:
    """A head trained on two tokens whose chances are in sixteenths, and the tokens."""
    torch.manual_seed(0)
    pairs = [(0, 0)] * 6 + [(1, 1)] * 4 + [(2, 2)] * 3 + [(0, 1)] * 2 + [(2, 0)]
    bins = torch.tensor(pairs).unsqueeze(-1)
    settings = {**SMALL, "hidden_dim": 32, "padding": "last_action", "times_per_sample": 8}
    head = MaskedDiffusionHead(4, 1, 2, choices={0: C}, **settings)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    features, is_pad = Features.of(torch.zeros(16, 4)), torch.zeros(16, 2, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(features, head.bins.centres(bins), is_pad).total.backward()
        optimizer.step()
        schedule.step()
    bounding = MaskedDiffusionHead(4, 1, 2, choices={0: C}, loss_weighting="elbo", **settings)
    bounding.load_state_dict(head.state_dict())
    return bounding.eval(), bins


@torch.no_grad()
def test_the_bound_of_a_trained_head_comes_near_the_entropy(learned):
    head, bins = learned
    many = bins.repeat(400, 1, 1)
    features, is_pad = Features.of(torch.zeros(6400, 4)), torch.zeros(6400, 2, dtype=torch.bool)
    lost = 2 * float(head.loss(features, head.bins.centres(many), is_pad).total)
    shares = torch.tensor([6, 4, 3, 2, 1]) / 16
    entropy = -float((shares * shares.log()).sum())
    assert entropy - 0.02 < lost < entropy + 0.08


def test_what_a_trained_head_draws_has_the_chances_that_it_learned(learned):
    head, _ = learned
    # Who goes by confidence draws what is likely more often than it is.
    told = {"sampler": "ancestral", "num_inference_steps": 32}
    head.adjust(head.config.model_copy(update=told))
    features = Features.of(torch.zeros(4000, 4))
    drawn = head.bins.of(head.sample(features, torch.Generator().manual_seed(1)))[..., 0]
    shares = torch.zeros(C, C)
    shares.index_put_((drawn[:, 0], drawn[:, 1]), torch.tensor(1 / 4000), accumulate=True)
    expected = torch.tensor([[6, 2, 0], [0, 4, 0], [1, 0, 3]]) / 16
    torch.testing.assert_close(shares, expected, atol=0.06, rtol=0)


def drawn_by_the_best(**settings: Any) -> Tensor:
    """Chances [S] of what the best denoiser draws."""
    head = made(KnowingHead, (3, 1), padding="last_action", **settings)
    features = Features.of(torch.zeros(6000, 4))
    bins = head.bins.of(head.sample(features, torch.Generator().manual_seed(0)))[..., 0]
    return (bins[:, None] == ALL).all(-1).float().mean(0)


def astray(shares: Tensor) -> float:
    """Half the sum of differences to the chances that there are."""
    return float((shares - JOINT).abs().sum() / 2)


def test_one_step_draws_each_token_by_its_own_chances():
    ways = torch.nn.functional.one_hot(ALL, C).float()
    alone = torch.einsum("s,skc->kc", JOINT, ways)
    expected = (alone[torch.arange(3), ALL]).prod(-1)
    shares = drawn_by_the_best(num_inference_steps=1)
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_more_steps_draw_more_of_how_tokens_hang_together():
    far = [
        astray(drawn_by_the_best(sampler="ancestral", num_inference_steps=steps))
        for steps in (1, 4, 64)
    ]
    assert far[0] > far[1] + 0.1
    assert far[1] > far[2]
    assert far[2] < 0.05


class TwinsHead(KnowingHead):
    """The best denoiser of three tokens that are always equal, whichever."""

    JOINT = (ALL[:, :1] == ALL).all(-1) / C


def twins(**settings: Any) -> float:
    """How often it draws three that are equal."""
    head = made(TwinsHead, (3, 1), padding="last_action", **settings)
    features = Features.of(torch.zeros(2000, 4))
    drawn = head.sample(features, torch.Generator().manual_seed(0))
    return float((drawn == drawn[:, :1]).all(1).float().mean())


def test_what_is_drawn_at_once_does_not_hang_together():
    assert twins(num_inference_steps=1) == pytest.approx(1 / 9, abs=0.02)
    assert twins(sampler="ancestral", num_inference_steps=2) > 2 / 9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_at_a_time_always_does(temperature):
    settings = {"schedule": "linear", "num_inference_steps": 3, "temperature": temperature}
    assert twins(sampler="confidence", **settings) == 1

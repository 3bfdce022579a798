"""Heads that give a distribution: what all of them promise, and the Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from head_cases import ACTION, CHUNK, TRANSFORMER, WIDTH, chunks, look, make, padding, row, train
from pydantic import ValidationError
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from teamvla.models.features import Features
from teamvla.models.heads.gaussian import GaussianMLPActionHead

HEADS = [
    ("gaussian", {}),
    ("gaussian", {"squashed": True}),
    ("diffusion", {}),
    ("diffusion", {"prediction_type": "epsilon", "sampler": "ddpm"}),
    ("diffusion", {"prediction_type": "v_prediction", **TRANSFORMER}),
    ("flow", {}),
    ("flow", {"target": "velocity", "time_distribution": "beta", **TRANSFORMER}),
]
DENOISING = HEADS[2:]
each_head = pytest.mark.parametrize(("name", "settings"), HEADS)
each_denoising = pytest.mark.parametrize(("name", "settings"), DENOISING)


@each_head
def test_padding_has_no_influence(name, settings):
    head, features, is_pad = make(name, settings), look(4), padding(4)
    grads = []
    for fill in (0.0, 1e3, float("nan")):
        torch.manual_seed(5)
        head.zero_grad()
        target = chunks(4).masked_fill(is_pad.unsqueeze(-1), fill)
        lost = head.loss(features, target, is_pad)
        lost.total.backward()
        grads.append([lost.total.detach(), *(p.grad.clone() for p in head.parameters())])
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


@each_head
def test_what_is_not_padding_has_influence(name, settings):
    head, features, is_pad = make(name, settings).eval(), look(4), padding(4)
    before = head.loss(features, chunks(4), is_pad).total
    assert head.loss(features, chunks(4, seed=8), is_pad).total != before


@each_head
def test_every_parameter_gets_a_finite_gradient_under_bf16(name, settings):
    head = make(name, settings)
    with torch.autocast("cpu", torch.bfloat16):
        lost = head.loss(look(4), chunks(4), padding(4))
    assert lost.total.dtype == torch.float32
    lost.total.backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@each_head
def test_a_batch_gets_what_its_rows_get_alone(name, settings):
    head, features = make(name, settings).eval(), look(4)
    together = head.sample(features)
    alone = torch.cat([head.sample(row(features, place)) for place in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.dtype == torch.float32
    assert (together[0] - together[1]).abs().max() > 1e-3


@each_head
def test_sampling_repeats_itself_without_a_generator(name, settings):
    head, features = make(name, settings).eval(), look(3)
    first = head.sample(features)
    torch.manual_seed(99)
    assert torch.equal(head.sample(features), first)


@each_head
def test_a_generator_decides_what_is_drawn(name, settings):
    head, features = make(name, settings).eval(), look(3)
    drawn = [head.sample(features, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    same = Features.of(torch.ones(2, WIDTH))
    pair = head.sample(same, torch.Generator().manual_seed(1))
    assert not torch.equal(pair[0], pair[1])


@each_head
def test_weights_are_all_there_is_to_keep(name, settings):
    head, other = make(name, settings).eval(), make(name, settings).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.sample(look(2)), other.sample(look(2)))


@each_denoising
def test_a_loss_of_validation_is_a_function_of_the_weights(name, settings):
    head, arguments = make(name, settings).eval(), (look(4), chunks(4), padding(4))
    with torch.inference_mode():
        first = head.loss(*arguments).total
        assert head.loss(*arguments).total == first
    head.train()
    assert head.loss(*arguments).total != head.loss(*arguments).total


@each_denoising
def test_training_after_sampling_in_inference_mode(name, settings):
    head = make(name, settings)
    with torch.inference_mode():
        head.sample(look(2))
    head.loss(look(2), chunks(2), padding(2)).total.backward()


@pytest.mark.parametrize(("name", "settings"), [HEADS[1], *DENOISING])
def test_bounded_heads_stay_within_what_was_seen(name, settings):
    head = make(name, settings).eval()
    assert head.bounded
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(10)
    assert head.sample(look(3), torch.Generator().manual_seed(0)).abs().max() <= 1


@pytest.mark.parametrize("name", ["diffusion", "flow"])
def test_unclipped_heads_are_not_bounded(name):
    head = make(name, {"clip_sample": False}).eval()
    assert not head.bounded
    with torch.no_grad():
        head.denoiser.outputs[-1].bias.fill_(3.0)
    assert head.sample(look(1)).mean() > 1.5


TOY = {"hidden_dim": 64, "n_layers": 2, "times_per_sample": 8}


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("diffusion", {}, 300),
        ("diffusion", {"sampler": "ddpm"}, 300),
        ("diffusion", {"hidden_dim": 16, **TRANSFORMER}, 250),
        ("flow", {}, 300),
        ("flow", {"target": "velocity"}, 450),
    ],
)
def test_two_ways_are_learned_and_never_the_middle(name, settings, steps):
    head = make(name, {**TOY, **settings}, input_dim=2, action_dim=2, chunk_size=2)
    sides = torch.tensor([1.0, -1.0]).repeat(32)
    target = 0.7 * sides[:, None, None].expand(-1, 2, 2)
    train(head, Features.of(torch.ones(64, 2)), target, steps)
    seen = Features.of(torch.ones(200, 2))
    drawn = head.sample(seen, torch.Generator().manual_seed(4))
    assert (drawn.abs() - 0.7).abs().mean() < 0.1
    assert ((drawn.abs() - 0.7).abs().amax((1, 2)) < 0.35).float().mean() > 0.95
    left = (drawn.mean((1, 2)) < 0).float().mean()
    assert 0.3 < left < 0.7


# Gaussian.


def test_forward_gives_means_and_deviations_as_the_specification_spells_it():
    head = GaussianMLPActionHead(WIDTH, ACTION, min_log_std=-20)
    mean, log_std = head(look(4).summary * 1e4)
    assert mean.shape == log_std.shape == (4, ACTION)
    assert log_std.min() >= -20
    assert log_std.max() <= 2
    mean, log_std = make("gaussian", {})(look(4))
    assert mean.shape == log_std.shape == (4, CHUNK, ACTION)


def test_the_bounds_of_the_deviation_are_soft():
    head = make("gaussian", {"n_layers": 0})
    with torch.no_grad():
        head.log_std_head.weight.zero_()
        head.log_std_head.bias.copy_(torch.linspace(-12, 8, CHUNK * ACTION))
    log_std = head.normals(look(1))[1]
    log_std.sum().backward()
    assert log_std.min() >= -4
    assert log_std.max() <= 2
    assert (head.log_std_head.bias.grad > 0).all()


def test_the_density_is_that_of_a_normal():
    head, actions = make("gaussian", {}), chunks(4)
    mean, log_std = head(look(4))
    expected = Independent(Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(head.log_prob(look(4), actions), expected.log_prob(actions))
    torch.testing.assert_close(head.entropy(look(4)), expected.entropy())


def test_the_squashed_density_is_that_of_tanh_of_a_normal():
    head, actions = make("gaussian", {"squashed": True}), chunks(4)
    mean, log_std = head(look(4))
    expected = TransformedDistribution(
        Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1)
    )
    torch.testing.assert_close(
        head.log_prob(look(4), actions), expected.log_prob(actions), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -2.0), (0.9, -1.0), (-0.4, 0.3)])
def test_the_squashed_density_and_entropy_by_a_numeric_integral(mean, log_std):
    head = make("gaussian", {"squashed": True, "n_layers": 0}, action_dim=1, chunk_size=1)
    with torch.no_grad():
        for layer, value in ((head.mean_head, mean), (head.log_std_head, log_std)):
            layer.weight.zero_()
            layer.bias.fill_(value)
    head.double()
    # In u with a = tanh(u), so that the edges are reached: da = (1 - a^2) du.
    places = torch.linspace(-3.8, 3.8, 20_001, dtype=torch.float64)
    actions = places.tanh().unsqueeze(-1)
    seen = torch.zeros(len(places), WIDTH, dtype=torch.float64)
    log_density = head.log_prob(seen, actions).detach()
    share = log_density.exp() * (1 - actions.squeeze(-1).square())
    assert torch.trapezoid(share, places) == pytest.approx(1, abs=5e-3)
    expected = -torch.trapezoid(share * log_density, places)
    assert float(head.entropy(seen[:1]).detach()) == pytest.approx(float(expected), abs=2e-2)


def test_a_gaussian_learns_mean_and_deviation():
    head = make("gaussian", {"n_layers": 0}, input_dim=2, action_dim=1, chunk_size=1)
    side = torch.tensor([1.0, -1.0]).repeat(500)
    features = Features.of(torch.stack([side, 1 - side.abs()], 1))
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    target = 0.5 * side + torch.where(side > 0, 0.05, 0.3) * noise
    train(head, features, target[:, None, None], 600, rate=5e-2)
    mean, log_std = head(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.5, -0.5]), atol=0.03, rtol=0)
    deviations = log_std.exp().flatten()
    torch.testing.assert_close(deviations, torch.tensor([0.05, 0.3]), atol=0, rtol=0.15)
    drawn = head.sample(Features.of(features.summary), torch.Generator().manual_seed(1)).flatten()
    assert float(drawn.detach()[side > 0].std()) == pytest.approx(0.05, rel=0.2)


def test_demonstrations_without_noise_do_not_shrink_it_forever():
    head = make("gaussian", {"n_layers": 0})
    lost = train(head, look(8), chunks(8), 600, rate=2e-2).loss(
        look(8), chunks(8), torch.zeros(8, CHUNK, dtype=torch.bool)
    )
    assert lost.parts["std"] >= math.exp(-4)
    assert (lost.predicted - chunks(8)).abs().max() < 0.05


def test_squashed_takes_actions_at_the_very_edge():
    head = make("gaussian", {"squashed": True})
    edge = torch.ones(2, CHUNK, ACTION)
    lost = head.loss(look(2), edge, torch.zeros(2, CHUNK, dtype=torch.bool))
    lost.total.backward()
    assert torch.isfinite(lost.total)
    assert torch.isfinite(head.mean_head.weight.grad).all()


def test_a_draw_lets_gradients_through():
    head = make("gaussian", {})
    head.sample(look(2), torch.Generator().manual_seed(0)).sum().backward()
    assert head.mean_head.weight.grad.abs().sum() > 0
    assert head.log_std_head.weight.grad.abs().sum() > 0


def test_beta_one_moves_the_mean_as_mean_squares_do():
    target, is_pad = chunks(4), torch.zeros(4, CHUNK, dtype=torch.bool)
    head = make("gaussian", {"beta": 1.0, "n_layers": 0})
    head.loss(look(4), target, is_pad).total.backward()
    given = head.mean_head.weight.grad.clone()
    head.zero_grad()
    (0.5 * (head(look(4))[0] - target).square().mean()).backward()
    torch.testing.assert_close(given, head.mean_head.weight.grad)


def test_bounds_of_the_deviation_must_leave_room():
    with pytest.raises(ValidationError, match="is not below max_log_std -5"):
        GaussianMLPActionHead(WIDTH, ACTION, max_log_std=-5)

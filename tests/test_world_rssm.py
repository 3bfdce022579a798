"""The state-space model: its distributions, and what depends on what."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from teamvla.models.world.latents import CategoricalLatent, GaussianLatent
from teamvla.models.world.predictors import (
    PredictorConfig,
    RewardPredictor,
    symexp,
    symlog,
    two_hot,
)
from teamvla.models.world.rssm import RSSM, RSSMConfig

KINDS = ["categorical", "gaussian"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> RSSM:
    torch.manual_seed(0)
    config = RSSMConfig(deterministic=12, hidden_dim=10, latent=kind, variables=3, classes=4)
    return RSSM(config, action_dim=2, seen_dim=5)


def sequence(rows: int = 3, steps: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    seen = torch.randn(rows, steps, 5, generator=random)
    return seen, torch.randn(rows, steps, 2, generator=random)


# ---- distributions ----


def test_divergence_of_classes_is_torchs():
    latent = CategoricalLatent(3, 4, unimix=0.0)
    one, other = torch.randn(2, 5, 12)
    told = kl_divergence(
        Categorical(logits=one.view(5, 3, 4)), Categorical(logits=other.view(5, 3, 4))
    )
    torch.testing.assert_close(latent.kl(one, other), told.sum(-1))


def test_divergence_of_numbers_is_torchs():
    latent = GaussianLatent(3)
    one, other = torch.randn(2, 5, 6)

    def normal(raw: torch.Tensor) -> Normal:
        return Normal(raw[:, :3], torch.nn.functional.softplus(raw[:, 3:]) + 0.1)

    told = kl_divergence(normal(one), normal(other)).sum(-1)
    torch.testing.assert_close(latent.kl(one, other), told)


def test_classes_are_drawn_as_often_as_they_are_likely():
    latent = CategoricalLatent(1, 3, unimix=0.01)
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    drawn = latent.sample(logits.expand(20_000, 3), torch.Generator().manual_seed(0))
    told = torch.tensor([0.6, 0.3, 0.1]) * 0.99 + 0.01 / 3
    torch.testing.assert_close(drawn.mean(0), told, atol=0.01, rtol=0)


def test_no_class_is_ever_impossible():
    latent = CategoricalLatent(1, 4, unimix=0.01)
    sure, other = torch.tensor([[60.0, 0, 0, 0]]), torch.tensor([[0, 60.0, 0, 0]])
    assert float(latent.kl(sure, other)) < 6.1  # ln(1 / 0.0025)


def test_a_draw_is_one_hot_and_its_gradient_is_the_probabilities():
    latent = CategoricalLatent(2, 3, unimix=0.0)
    logits = torch.randn(6, requires_grad=True)
    weights = torch.arange(6.0)
    drawn = latent.sample(logits, torch.Generator().manual_seed(0))
    assert drawn.detach().round().view(2, 3).sum(-1).tolist() == [1, 1]
    (slope,) = torch.autograd.grad(drawn @ weights, logits)
    (told,) = torch.autograd.grad(logits.view(2, 3).softmax(-1).flatten() @ weights, logits)
    torch.testing.assert_close(slope, told)


# ---- rewards ----


def test_large_numbers_come_back():
    values = torch.tensor([-1e4, -1.0, 0.0, 0.3, 1e4])
    torch.testing.assert_close(symexp(symlog(values)), values)


def test_two_hot_shares_have_the_values_mean():
    places = torch.linspace(-2, 2, 9)
    values = torch.tensor([-5.0, -2.0, -0.3, 0.0, 1.26, 2.0, 7.0])
    shares = two_hot(values, places)
    torch.testing.assert_close(shares @ places, values.clamp(-2, 2))
    assert (shares > 0).sum(-1).max() == 2


@pytest.mark.parametrize("reward", ["two_hot", "mse"])
def test_a_reward_is_learned(reward):
    torch.manual_seed(0)
    head = RewardPredictor(2, PredictorConfig(reward=reward, hidden_dim=32))
    features = torch.randn(256, 2)
    target = features[:, 0] * 3
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(features, target).mean().backward()
        optimizer.step()
    assert (head(features) - target).abs().mean() < 0.25


# ---- the model ----


@every_kind
def test_what_comes_later_changes_no_earlier_belief(kind):
    model, (seen, actions) = make(kind).eval(), sequence()
    before = model.observe(seen, actions)[0].features
    seen[:, 4:], actions[:, 4:] = 0.0, 0.0
    after = model.observe(seen, actions)[0].features
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


@every_kind
def test_expectations_follow_from_the_belief_and_command_before(kind):
    model, (seen, actions) = make(kind).eval(), sequence()
    believed, expected = model.observe(seen, actions)
    assert expected.features.shape[1] == seen.shape[1] + 1
    step = model.imagine_step(believed.map(lambda part: part[:, 2]), actions[:, 2])
    torch.testing.assert_close(step.features, expected.features[:, 3])


@every_kind
def test_imagining_is_a_step_after_the_other_and_by_commands(kind):
    model, (_, actions) = make(kind).eval(), sequence()
    states = model.imagine(model.initial(3), actions)
    one = model.imagine_step(model.initial(3), actions[:, 0])
    two = model.imagine_step(one, actions[:, 1])
    torch.testing.assert_close(states.features[:, 1], two.features)
    other = model.imagine(model.initial(3), -actions)
    assert not torch.allclose(states.features, other.features)


@every_kind
def test_nothing_is_left_to_chance_unless_a_generator_is_given(kind):
    model, (_, actions) = make(kind).eval(), sequence()
    start = model.initial(3)
    assert torch.equal(
        model.imagine(start, actions).features, model.imagine(start, actions).features
    )
    drawn = [
        model.imagine(start, actions, torch.Generator().manual_seed(seed)).features
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@every_kind
@pytest.mark.parametrize("part", [0, 1])
def test_each_side_of_the_divergence_answers_for_itself(kind, part):
    model, (seen, _) = make(kind), sequence()
    expected = model.initial(3)
    believed = model.observe_step(expected, seen[:, 0])
    both = model.divergence(believed, expected)
    torch.testing.assert_close(both[0], both[1])
    both[part].sum().backward()
    moved = [any(p.grad is not None and p.grad.any() for p in net.parameters())
             for net in (model.prior, model.posterior)]  # fmt: skip
    assert moved == [part == 0, part == 1]

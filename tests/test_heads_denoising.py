"""Heads that clean noise: the arithmetic of diffusion and flow matching, and their networks."""

from __future__ import annotations

import logging
import math
import subprocess
import sys

import pytest
import torch
from head_cases import ACTION, CHUNK, TRANSFORMER, WIDTH, chunks, look, make, padding, row
from pydantic import ValidationError

from teamvla.errors import ConfigError
from teamvla.models.features import Features, Tokens
from teamvla.models.heads.diffusion import DiffusionActionHead, DiffusionHeadConfig


def test_the_head_as_the_specification_spells_it():
    head = DiffusionActionHead(
        input_dim=32, action_dim=4, hidden_dim=64, n_layers=4, num_diffusion_steps=100,
        num_inference_steps=10, beta_start=1e-4, beta_end=0.02,
    )  # fmt: skip
    output = head(torch.randn(8, 32), target_actions=torch.randn(8, 4))
    assert output["loss"].dim() == 0
    assert output["loss"].requires_grad
    assert output["predicted_actions"].shape == (8, 4)
    chunky = DiffusionActionHead(32, 4, horizon=16, diffusion_steps=50)
    assert chunky.config.num_diffusion_steps == 50
    assert chunky.predict(torch.randn(2, 32), 5).shape == (2, 16, 4)


class Truth:
    """The best denoiser of actions that are normal with this mean and deviation."""

    def __init__(self, head, mean=0.3, std=0.2):
        self.head, self.mean, self.std = head, mean, std

    def condition(self, features):
        return features

    def embed(self, times):
        return times.unsqueeze(-1)

    def __call__(self, noisy, times, seen, is_pad=None):
        settings = self.head.config
        if settings.type == "flow":
            data, noise = 1 - times.unsqueeze(-1), times.unsqueeze(-1)
        else:
            step = (times * settings.num_diffusion_steps).round().long() - 1
            kept = self.head._scheduler(10).alphas_cumprod[step].unsqueeze(-1)
            data, noise = kept.sqrt(), (1 - kept).sqrt()
        gain = data * self.std**2 / (data**2 * self.std**2 + noise**2)
        clean = self.mean + gain * (noisy - data * self.mean)
        added = (noisy - data * clean) / noise
        if settings.type == "flow":
            return clean if settings.target == "sample" else clean - added
        velocity = data * added - noise * clean
        kinds = {"sample": clean, "epsilon": added, "v_prediction": velocity}
        return kinds[settings.prediction_type]


def sampled_by_truth(name, settings, rows=4000, steps=50):
    head = make(name, {"clip_sample": False, **settings}, chunk_size=1, action_dim=1)
    del head.denoiser
    head.denoiser = Truth(head)
    seen = Features.of(torch.zeros(rows, WIDTH))
    return head.predict(seen, steps, torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("diffusion", {"sampler": sampler, "prediction_type": kind})
        for sampler in ("ddim", "ddpm")
        for kind in ("sample", "epsilon", "v_prediction")
    ]
    + [("flow", {"target": kind}) for kind in ("sample", "velocity")],
)
def test_the_true_denoiser_gives_the_distribution_back(name, settings):
    if settings.get("sampler") == "ddpm":  # which is exact in the limit of many steps alone
        drawn = sampled_by_truth(name, {**settings, "num_diffusion_steps": 1000}, steps=500)
    else:
        drawn = sampled_by_truth(name, settings)
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_what_the_network_estimates_makes_no_difference_to_the_best_one(sampler):
    kinds = ("sample", "epsilon", "v_prediction")
    drawn = [
        sampled_by_truth("diffusion", {"sampler": sampler, "prediction_type": kind}, 50, 10)
        for kind in kinds
    ]
    for other in drawn[1:]:
        torch.testing.assert_close(drawn[0], other, atol=2e-3, rtol=0)


def test_the_best_network_has_the_targets_that_the_loss_asks_for():
    clean, noise = chunks(3), torch.randn(3, CHUNK, ACTION)
    steps = torch.tensor([0, 40, 99])
    wanted = {}
    for kind in ("sample", "epsilon", "v_prediction"):
        head = make("diffusion", {"prediction_type": kind})
        wanted[kind] = head.wanted(clean, noise, steps)
    kept = head._scheduler(10).alphas_cumprod[steps][:, None, None]
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    assert torch.equal(wanted["sample"], clean)
    assert torch.equal(wanted["epsilon"], noise)
    torch.testing.assert_close(
        kept.sqrt() * noisy - (1 - kept).sqrt() * wanted["v_prediction"], clean
    )


def test_ddpm_takes_the_steps_of_the_ancestral_sampler(monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    head = make("diffusion", {"sampler": "ddpm"}).eval()
    with torch.no_grad():
        head.denoiser.outputs[-1].weight.mul_(5)  # so that clipping has something to do
    draws = head.noise(look(2), torch.Generator().manual_seed(2), 11)
    scheduler = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
        timestep_spacing="trailing", variance_type="fixed_small",
    )  # fmt: skip
    scheduler.set_timesteps(10)
    given = iter(draws[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(given))
    seen, actions = head.denoiser.condition(look(2)), draws[0]
    for step in scheduler.timesteps:
        times = head.denoiser.embed(((step + 1) / 100).reshape(1))
        estimate = head.denoiser(actions, times, seen).detach()
        actions = scheduler.step(estimate, step, actions).prev_sample
    found = head.predict(look(2), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, actions, atol=1e-4, rtol=0)


def test_actions_left_at_the_last_step_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        make("diffusion", {})
        make("diffusion", {"schedule": "linear", "num_diffusion_steps": 1000})
        assert not caplog.records
        make("diffusion", {"schedule": "linear"})
    assert "36 % of the actions' variance is left" in caplog.text
    assert "num_diffusion_steps 1000" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_inference_steps": 15}, "100 is not divisible by num_inference_steps 15"),
        ({"num_inference_steps": 0}, "greater than or equal to 1"),
        ({"beta_start": 0.5}, "beta_start 0.5 is above beta_end 0.02"),
        ({"denoiser": "transformer", "num_heads": 5}, "num_heads 5 must divide hidden_dim 128"),
        ({"prediction_type": "x0"}, "'sample', 'epsilon' or 'v_prediction'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        DiffusionHeadConfig(**settings)


@pytest.mark.parametrize(("name", "steps"), [("diffusion", 15), ("diffusion", 0), ("flow", 0)])
def test_a_number_of_steps_that_cannot_be_taken_is_refused(name, steps):
    with pytest.raises(ConfigError, match="num_steps"):
        make(name, {}).predict(look(1), steps)


def test_diffusers_loads_with_the_first_head_and_not_before():
    code = (
        "import sys, teamvla.models.heads.diffusion as d\n"
        "assert 'diffusers' not in sys.modules\n"
        "d.DiffusionActionHead(4, 2)\n"
        "assert 'diffusers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Times, and what the networks look at.


def test_noise_levels_of_one_observation_are_spread_evenly():
    head = make("diffusion", {"times_per_sample": 4})
    levels = head.random_times(500, 4, None).reshape(500, 4)
    assert torch.equal((levels * 4).long(), torch.arange(4).expand(500, 4))
    assert float((levels * 4 % 1).std()) == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_times_of_flow_matching_follow_their_distribution():
    head = make("flow", {"time_distribution": "beta", "beta_alpha": 1.5})
    times = head.times(2000, None) / 0.999
    # 1 - t is Beta(1.5, 1), of mean 1.5 / 2.5 and variance 1.5 / (2.5^2 * 3.5).
    assert float(times.mean()) == pytest.approx(0.4, abs=0.01)
    assert float(times.var()) == pytest.approx(1.5 / (2.5**2 * 3.5), rel=0.05)
    assert float(make("flow", {}).times(2000, None).mean()) == pytest.approx(0.4995, abs=0.005)


def test_one_step_of_flow_gives_the_estimate_of_the_actions():
    head = make("flow", {"clip_sample": False}).eval()
    noise = head.noise(look(2), None)[0]
    condition, times = head.denoiser.condition(look(2)), head.denoiser.embed(torch.ones(1))
    expected = head.denoiser(noise, times, condition)
    torch.testing.assert_close(head.predict(look(2), 1), expected)


@pytest.mark.parametrize("settings", [{}, TRANSFORMER])
def test_chunks_of_one_observation_do_not_mix(settings):
    head, features, noisy = make("diffusion", settings).eval(), look(2), chunks(6)
    times = head.denoiser.embed(torch.linspace(0.1, 1, 6))
    is_pad = padding(6)
    together = head.denoiser(noisy, times, head.denoiser.condition(features), is_pad)
    for place in range(6):
        seen, one = head.denoiser.condition(row(features, place // 3)), slice(place, place + 1)
        alone = head.denoiser(noisy[one], times[one], seen, is_pad[one])
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)


def test_the_transformer_looks_at_tokens_and_not_at_masked_ones():
    head, features = make("flow", TRANSFORMER).eval(), look(1)  # one of four tokens counts
    before = head.sample(features)
    values = features.tokens.values.clone()
    values[:, 1:] = 7.0
    assert torch.equal(
        head.sample(Features(features.summary, Tokens(values, features.tokens.mask))), before
    )
    values[:, 0] = 7.0 * torch.arange(WIDTH) % 5
    after = head.sample(Features(features.summary, Tokens(values, features.tokens.mask)))
    assert not torch.allclose(after, before)
    other = head.sample(Features(features.summary + 1, features.tokens))
    assert not torch.allclose(other, before)


def test_positions_tell_the_actions_of_a_chunk_apart():
    head = make("diffusion", TRANSFORMER).eval()
    same = torch.ones(1, CHUNK, ACTION)
    times = head.denoiser.embed(torch.ones(1))
    estimate = head.denoiser(same, times, head.denoiser.condition(look(1)))
    assert (estimate[0, 0] - estimate[0, 1]).abs().max() > 1e-4


def test_only_the_loss_without_the_padding_is_counted():
    head, features = make("diffusion", {"prediction_type": "sample"}).eval(), look(2)
    with torch.no_grad():
        head.denoiser.outputs[-1].weight.zero_()
        head.denoiser.outputs[-1].bias.zero_()
    is_pad = padding(2)
    expected = chunks(2)[~is_pad].square().mean()
    torch.testing.assert_close(head.loss(features, chunks(2), is_pad).total, expected)


def test_without_velocity_nothing_moves():
    head = make("flow", {"target": "velocity", "clip_sample": False})
    with torch.no_grad():
        for parameter in head.denoiser.outputs[-1].parameters():
            parameter.zero_()
    start = head.noise(look(2), None)[0]
    torch.testing.assert_close(head.sample(look(2)), start)

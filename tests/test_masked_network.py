"""The head that denoises masked actions: what it looks at, and draws."""

from __future__ import annotations

from typing import Any

import pytest
import small_policies
import torch
from head_cases import look, row
from masked_cases import ACTION, CHUNK, ROWS, SMALL, asked, chunks, learn, make
from torch import Generator, Tensor
from torch.nn import functional

from teamvla.models import SingleBrainConfig, build_policy
from teamvla.models.features import Features, Tokens

# what the network is told -------------------------------------------------------------------


@pytest.mark.parametrize("corruption", ["mask", "noise"])
def test_of_masked_tokens_the_network_knows_nothing(corruption):
    head = make(corruption=corruption)
    told, seen = asked(head), head.condition(look(ROWS))
    noise = head._noise(ROWS, Generator().manual_seed(0))
    before = head.logits(**told, seen=seen, noise=noise)
    hidden = told | {"bins": torch.where(told["masked"], 3 - told["bins"], told["bins"])}
    torch.testing.assert_close(head.logits(**hidden, seen=seen, noise=noise), before)
    shown = told | {"bins": torch.where(told["masked"], told["bins"], 3 - told["bins"])}
    assert not torch.allclose(head.logits(**shown, seen=seen, noise=noise), before, atol=1e-2)


def test_what_stands_for_a_masked_token_is_learned_for_each_number():
    head = make().train()
    target, _ = chunks()
    head.loss(look(ROWS), target, torch.zeros(ROWS, CHUNK, dtype=torch.bool)).total.backward()
    slopes = head.tokens.grad.view(ACTION, -1, SMALL["hidden_dim"])
    assert bool((slopes[:, -1].abs().amax(1) > 1e-4).all())


def test_noise_stands_for_masked_tokens_in_the_variant():
    head = make(corruption="noise")
    told, seen = asked(head), head.condition(look(ROWS))

    def scatter(told: dict[str, Tensor]) -> Tensor:
        """How far chances [B,K,D] go apart under two noises."""
        first, other = (
            head.logits(**told, seen=seen, noise=head._noise(ROWS, Generator().manual_seed(seed)))
            for seed in (0, 1)
        )
        return (first.softmax(-1) - other.softmax(-1)).abs().amax(-1)

    assert bool((scatter(told).amax((1, 2)) > 1e-2).all())
    known = told | {"masked": torch.zeros_like(told["masked"])}
    assert bool((scatter(known) < 1e-5).all())


def test_the_variant_learns_too():
    head, (target, is_pad) = make(corruption="noise", padding="last_action"), chunks()
    is_pad[:] = False
    learn(head, target, is_pad)
    # Which of the tokens are noise it can only guess.
    assert float(head.loss(look(ROWS), target, is_pad).parts["accuracy"]) > 0.5


@pytest.mark.parametrize("conditioning", ["pooled", "tokens"])
def test_tokens_are_looked_at_only_as_context_and_never_those_masked(conditioning):
    head, features = make(conditioning=conditioning), look(ROWS)
    told, there = asked(head), features.tokens.mask.unsqueeze(-1)
    values = features.tokens.values
    before, hidden, shown = (
        head.logits(**told, seen=head.condition(_with_tokens(features, tokens)))
        for tokens in (values, values + ~there, values + 3.0 * there * values)
    )
    assert torch.equal(before, hidden)
    assert torch.equal(before, shown) == (conditioning == "pooled")


def _with_tokens(features: Features, values: Tensor) -> Features:
    return Features(features.summary, Tokens(values, features.tokens.mask))


def test_the_time_and_the_summary_change_what_it_says():
    head, features = make(), look(ROWS)
    told = asked(head)
    before = head.logits(**told, seen=head.condition(features))
    later = told | {"times": 1 - told["times"]}
    assert not torch.allclose(head.logits(**later, seen=head.condition(features)), before)
    other = head.condition(look(ROWS, seed=9))
    assert not torch.allclose(head.logits(**told, seen=other), before)


# what it draws ------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", ["mask", "noise"])
@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "remasking"])
def test_a_batch_gets_what_its_rows_would_get_alone(sampler, corruption):
    head = make(sampler=sampler, corruption=corruption, conditioning="tokens")
    together = head.sample(look(ROWS))
    alone = torch.cat([head.sample(row(look(ROWS), place)) for place in range(ROWS)])
    assert len({tuple(chunk.flatten().tolist()) for chunk in together}) > 1
    assert torch.equal(together, alone)


@pytest.mark.parametrize("corruption", ["mask", "noise"])
def test_only_rows_before_the_end_are_computed_and_drawn_as_if_all_were(corruption, monkeypatch):
    head = make(corruption=corruption)
    with torch.no_grad():
        head.length.weight.zero_()
        head.length.bias.copy_(torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0]).log())
    logits, computed = head.logits, []

    def whole(bins, masked, times, seen, counted, noise):
        """Of all rows, whichever were asked for."""
        computed.append(bins.shape[1])
        behind = (0, 0, 0, head.chunk_size - bins.shape[1])
        bins, masked = (functional.pad(each, behind) for each in (bins, masked))
        counted = functional.pad(counted, behind[2:])
        return logits(bins, masked, times, seen, counted, noise)[:, : computed[-1]]

    drawn = head.sample(look(ROWS), Generator().manual_seed(0))
    monkeypatch.setattr(head, "logits", whole)
    torch.testing.assert_close(head.sample(look(ROWS), Generator().manual_seed(0)), drawn)
    assert set(computed) == {3}


@pytest.mark.parametrize("corruption", ["mask", "noise"])
def test_a_generator_draws_afresh_and_its_seed_repeats(corruption):
    head = make(corruption=corruption)
    first, again, other = (
        head.sample(look(ROWS), Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(head.sample(look(ROWS)), head.sample(look(ROWS)))


def test_what_is_drawn_are_moves_and_centres_of_bins():
    head = make()
    drawn = head.sample(look(50), Generator().manual_seed(0))
    torch.testing.assert_close(head.bins.centres(head.bins.of(drawn)), drawn)
    moves = {round(move, 4) for move in drawn[..., 1].flatten().tolist()}
    assert moves <= {-1.0, -0.3333, 0.3333, 1.0}
    assert len(moves) > 1


def two_ways(rows: int) -> dict[str, Any]:
    """The same is felt, and demonstrations go to one side or the other, never between."""
    side = torch.tensor([-0.6, 0.6]).repeat(rows // 2)[:, None, None]
    actions = side.repeat(1, small_policies.CHUNK, small_policies.DIM)
    actions[..., [6, 13]] = (side > 0).float()
    return {"observations": {"state": torch.zeros(rows, small_policies.DIM)}, "actions": actions}


def test_two_arms_keep_to_one_of_two_ways():
    # One number at a time: those that become known at once do not know of each other.
    settings = {"schedule": "linear", "num_inference_steps": 56}
    settings |= {"num_bins": 8, "times_per_sample": 4}
    head = small_policies.small_head("masked") | settings
    sizes = small_policies.shrunk(SingleBrainConfig, chunk_size=small_policies.CHUNK)
    config = SingleBrainConfig.model_validate(
        sizes | {"head": head, "vision": None, "language": None}
    )
    policy = build_policy(config, small_policies.CONTRACT, small_policies.STATISTICS)
    torch.manual_seed(0)
    small_policies.train(policy, two_ways(16), steps=150, lr=4e-3)
    seen = two_ways(64)["observations"]
    drawn = policy.predict_action_chunk(seen, generator=Generator().manual_seed(0))
    joints = drawn.unflatten(-1, (2, 7))[..., :6].flatten(1)
    sides = joints.mean(1, keepdim=True).sign()
    assert 0.25 < float((sides > 0).float().mean()) < 0.75
    kept = (joints - 0.6 * sides).abs().amax(1) < 0.125 + 1e-3  # half a bin
    assert float(kept.float().mean()) > 0.9

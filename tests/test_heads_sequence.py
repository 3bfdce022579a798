"""The heads that read chunks as sequences: autoregressive transformer, and ACT."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from teamvla.errors import ConfigError
from teamvla.models.attention import TransformerBlock
from teamvla.models.features import Features, Tokens
from teamvla.models.heads.act import ACTActionHead, kl_to_normal
from teamvla.models.heads.base import ActionHead
from teamvla.models.heads.transformer import TransformerActionHead
from teamvla.models.registries import ACTION_HEAD_REGISTRY

INPUT, ACTIONS, CHUNK, GRIPPERS = 12, 3, 5, (2,)
SMALL = {"hidden_dim": 16, "num_heads": 2}
HEADS = {
    "continuous": {"type": "transformer", **SMALL},
    "binned": {"type": "transformer", "output": "binned", "num_bins": 8, **SMALL},
    "act": {"type": "act", "latent_dim": 4, **SMALL},
}


def make(name: str, chunk_size: int = CHUNK, **settings: object) -> ActionHead:
    torch.manual_seed(0)
    options = {**HEADS[name], **settings}
    kind = ACTION_HEAD_REGISTRY.get(str(options["type"]))
    head = kind(INPUT, ACTIONS, chunk_size, grippers=GRIPPERS, **options)
    with torch.no_grad():  # as if trained: initial weights hardly let rows look at each other
        for weight in head.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return head.eval()


def seen(rows: int = 4, tokens: int = 6) -> Features:
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[0, -2:] = False
    values = torch.randn(rows, tokens, INPUT, generator=draw)
    return Features(torch.randn(rows, INPUT, generator=draw), Tokens(values, mask))


def chunks(rows: int = 4, chunk_size: int = CHUNK) -> tuple[Tensor, Tensor]:
    target = torch.rand((rows, chunk_size, ACTIONS), generator=torch.Generator().manual_seed(2))
    is_pad = torch.zeros(rows, chunk_size, dtype=torch.bool)
    is_pad[0, 3:] = True
    return target * 2 - 1, is_pad


def one_of(features: Features, row: int) -> Features:
    rows = slice(row, row + 1)
    tokens = Tokens(features.tokens.values[rows], features.tokens.mask[rows])
    return Features(features.summary[rows], tokens)


def transformer(name: str = "continuous", **settings: object) -> TransformerActionHead:
    head = make(name, **settings)
    assert isinstance(head, TransformerActionHead)
    return head


def act(**settings: object) -> ACTActionHead:
    head = make("act", **settings)
    assert isinstance(head, ACTActionHead)
    return head


# every head ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_no_bit_of_loss_or_gradient(name: str) -> None:
    results = []
    for padding in (0.0, 5.0, float("nan")):
        head = make(name).train()
        target, is_pad = chunks()
        target[is_pad] = padding
        torch.manual_seed(3)
        lost = head.loss(seen(), target, is_pad)
        lost.total.backward()
        results.append((lost.total.detach(), [weight.grad for weight in head.parameters()]))
    for total, gradients in results[1:]:
        assert torch.equal(total, results[0][0])
        assert all(map(torch.equal, gradients, results[0][1]))


@pytest.mark.parametrize("chunk_size", [1, CHUNK])
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_finite_gradient(name: str, chunk_size: int) -> None:
    head = make(name, chunk_size).train()
    target, _ = chunks(chunk_size=chunk_size)
    head.loss(seen(), target, torch.zeros(target.shape[:2], dtype=torch.bool)).total.backward()
    for label, weight in head.named_parameters():
        assert weight.grad is not None, label
        assert weight.grad.isfinite().all(), label


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_gives_what_its_rows_give_alone(name: str) -> None:
    head = make(name)
    together = head.sample(seen())
    alone = torch.cat([head.sample(one_of(seen(), row)) for row in range(4)])
    assert together.dtype == torch.float32
    assert together.std(0).min() > 0, "rows that are all alike would pass by chance"
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_masked_tokens_are_not_looked_at_and_others_are(name: str) -> None:
    head, features = make(name), seen()
    values = features.tokens.values.clone()
    values[0, -2:] += 1.0
    moved = Features(features.summary, Tokens(values, features.tokens.mask))
    assert torch.equal(head.sample(moved), head.sample(features))
    values[:, 0] += 3.0
    assert not torch.equal(head.sample(moved)[0], head.sample(features)[0])


@pytest.mark.parametrize("name", HEADS)
def test_bf16_training_is_near_float32(name: str) -> None:
    head = make(name).train()
    totals = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            lost = head.loss(seen(), *chunks())
        assert lost.total.dtype == torch.float32
        totals.append(lost.total)
    torch.testing.assert_close(totals[1], totals[0], rtol=0.05, atol=0.0)
    totals[1].backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in head.parameters())


@pytest.mark.parametrize("name", ["binned", "act"])
def test_a_generator_draws_and_its_seed_repeats(name: str) -> None:
    head = make(name)
    first, again, other = (
        head.sample(seen(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(head.sample(seen()), head.sample(seen()))


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_do_not_divide_the_width_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="num_heads 5 must divide hidden_dim 16"):
        make(name, num_heads=5)


# transformer --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["continuous", "binned"])
@pytest.mark.parametrize("changed", range(CHUNK))
def test_a_row_tells_only_those_after_it(name: str, changed: int) -> None:
    head, (target, _) = transformer(name), chunks()
    other = target.clone()
    other[:, changed] += 0.7
    before, after = head.teacher_forced(seen(), target), head.teacher_forced(seen(), other)
    assert torch.equal(before[:, : changed + 1], after[:, : changed + 1])
    if changed < CHUNK - 1:
        assert (before - after)[:, changed + 1 :].abs().amax((0, 2, *range(3, before.dim()))).all()


def test_continuous_rows_are_what_teacher_forcing_gives_for_them() -> None:
    head = transformer()
    sampled = head.sample(seen())
    forced = head.finish(head.teacher_forced(seen(), sampled))
    torch.testing.assert_close(sampled, forced, atol=1e-5, rtol=1e-5)


def test_binned_rows_are_the_likeliest_that_teacher_forcing_gives_for_them() -> None:
    head = transformer("binned")
    sampled = head.sample(seen())
    forced = head.bins.centres(head.teacher_forced(seen(), sampled).argmax(-1))
    assert torch.equal(sampled, forced)


def test_steps_with_kept_keys_equal_the_whole_sequence() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, context_width=6)
    tokens, context = torch.randn(3, 5, 8), Tokens.full(torch.randn(3, 4, 6))
    context.mask[1, 2:] = False
    assert block.cross is not None
    looked_at, keys = block.cross.keys_values(context.values), context.mask[:, None, None]
    before, stepped = None, []
    for place in range(5):
        row, before = block.step(tokens[:, place : place + 1], before, looked_at, keys)
        stepped.append(row)
    whole = block(tokens, context=context, causal=True)
    torch.testing.assert_close(torch.cat(stepped, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 7, 256])
def test_bins_invert_within_half_a_bin(count: int) -> None:
    head = transformer("binned", num_bins=count)
    numbers = torch.linspace(-1, 1, 1001)[:, None].expand(-1, ACTIONS)
    assert (head.bins.centres(head.bins.of(numbers)) - numbers).abs().max() <= 1 / count + 1e-6
    places = torch.arange(count)[:, None].expand(-1, ACTIONS)
    assert torch.equal(head.bins.of(head.bins.centres(places)), places)


def test_what_is_out_of_range_falls_into_the_end_bins() -> None:
    head = transformer("binned")
    numbers = torch.tensor([-1e9, -1.0, 1.0, 3.0, float("inf")])[:, None].expand(-1, ACTIONS)
    assert head.bins.of(numbers)[:, 0].tolist() == [0, 0, 7, 7, 7]


def test_binned_is_bounded_and_continuous_is_not() -> None:
    assert transformer("binned").bounded
    assert not transformer().bounded


def test_binned_loss_is_the_mean_surprise_of_the_bins() -> None:
    head, (target, is_pad) = transformer("binned"), chunks()
    lost = head.loss(seen(), target, is_pad)
    chances = head.teacher_forced(seen(), head.bins.centres(head.bins.of(target))).log_softmax(-1)
    surprise = -chances.gather(-1, head.bins.of(target).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(lost.total, surprise[~is_pad].mean())
    assert lost.predicted is None


def test_a_number_that_is_none_does_not_pass_for_a_bin() -> None:
    target, is_pad = chunks()
    target[1, 2, 0] = float("nan")
    assert transformer("binned").loss(seen(), target, is_pad).total.isnan()


@pytest.mark.parametrize(
    "settings",
    [{"input_noise": 0.5, "input_dropout": 0.0}, {"input_noise": 0.0, "input_dropout": 0.5}],
)
def test_what_blurs_the_rows_before_is_for_training_only(settings: dict[str, float]) -> None:
    head, (target, _) = transformer(**settings), chunks()
    clean = head.teacher_forced(seen(), target)
    assert torch.equal(clean, head.teacher_forced(seen(), target))
    noisy = head.train().teacher_forced(seen(), target)
    assert torch.equal(noisy[:, 0], clean[:, 0]), "the first row has none before it"
    assert not torch.equal(noisy[:, 1:], clean[:, 1:])


def test_a_chunk_longer_than_the_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_seq_len"):
        transformer(max_seq_len=CHUNK - 1)


def test_the_specified_call() -> None:
    head = TransformerActionHead(32, 4, max_seq_len=100, num_layers=4)
    assert len(head.blocks) == 4
    assert head(torch.randn(2, 32))["predicted_actions"].shape == (2, 4)


def test_drawn_rows_follow_the_way_that_the_first_took() -> None:
    """Demonstrations go left or right; a chunk must not mix them."""
    torch.manual_seed(0)
    told = {"input_dropout": 0.0, "num_layers": 1, **SMALL}  # hidden rows can't be followed
    head = TransformerActionHead(2, 1, 4, output="binned", num_bins=4, **told)
    ways = torch.tensor([-0.75, 0.75]).repeat(16)[:, None, None].expand(-1, 4, 1)
    fit(head, torch.ones(32, 2), ways, steps=150)
    drawn = head.sample(Features.of(torch.ones(200, 2)), torch.Generator().manual_seed(0))
    assert ((drawn - drawn[:, :1]).abs().amax((1, 2)) == 0).float().mean() > 0.95
    assert 0.3 < (drawn[:, 0] > 0).float().mean() < 0.7


# ACT ----------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_distributions() -> None:
    mean, log_variance = torch.randn(6, 4), torch.randn(6, 4)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(kl_to_normal(mean, log_variance), expected)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    lost = act(kl_weight=3.0, gripper_weight=0.5).train().loss(seen(), *chunks())
    parts = lost.parts
    assert set(parts) == {"action", "gripper", "kl"}
    torch.testing.assert_close(
        lost.total, parts["action"] + 0.5 * parts["gripper"] + 3 * parts["kl"]
    )


def test_the_latent_is_drawn_in_training_and_zero_in_evaluation() -> None:
    head = act()
    lost = head.loss(seen(), *chunks())
    raw = head.decode(seen(), torch.zeros(4, 4))
    assert torch.equal(lost.total, head.regression(raw, *chunks()).total)
    assert "kl" in lost.parts
    head.train()
    trained = [head.loss(seen(), *chunks()) for _ in range(2)]
    assert not torch.equal(trained[0].total, trained[1].total)
    assert torch.equal(trained[0].parts["kl"], trained[1].parts["kl"])


def test_without_a_generator_the_latent_is_zero() -> None:
    head = act()
    expected = head.finish(head.decode(seen(), torch.zeros(4, 4)))
    assert torch.equal(head.sample(seen()), expected)


@pytest.fixture(scope="module")
def two_ways() -> ACTActionHead:
    """Trained where the same is seen and demonstrations go left or right."""
    torch.manual_seed(0)
    head = ACTActionHead(2, 1, 4, kl_weight=0.02, latent_dim=2, **SMALL)
    fit(head, torch.ones(32, 2), ways(32), steps=150)
    return head


def test_the_latent_of_a_way_decodes_to_that_way(two_ways: ACTActionHead) -> None:
    features, target = Features.of(torch.ones(2, 2)), ways(2)
    mean, _ = two_ways.encoder(features.summary, target, torch.zeros(2, 4, dtype=torch.bool))
    decoded = two_ways.finish(two_ways.decode(features, mean))
    torch.testing.assert_close(decoded, target, atol=0.15, rtol=0.0)


def test_drawn_latents_go_both_ways(two_ways: ACTActionHead) -> None:
    features = Features.of(torch.ones(200, 2))
    drawn = two_ways.sample(features, torch.Generator().manual_seed(0))
    assert 0.25 < (drawn > 0.5).float().mean() < 0.75
    assert (drawn.abs() > 0.5).float().mean() > 0.7


def ways(rows: int) -> Tensor:
    """Chunks that go left and right by turns."""
    return torch.tensor([-0.8, 0.8]).repeat(rows // 2)[:, None, None].repeat(1, 4, 1)


def fit(head: ActionHead, summary: Tensor, target: Tensor, steps: int) -> None:
    """Train on one batch; leaves the head evaluating."""
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    is_pad = torch.zeros(target.shape[:2], dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(Features.of(summary), target, is_pad).total.backward()
        optimizer.step()
    head.eval()

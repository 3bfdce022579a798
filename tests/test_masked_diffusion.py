"""The head that denoises masked actions: what it learns from."""

from __future__ import annotations

import pytest
import torch
from head_cases import look
from masked_cases import ACTION, CHUNK, ROWS, SMALL, WIDTH, asked, chunks, learn, make
from pydantic import ValidationError
from torch import Generator

from teamvla.errors import ConfigError

# padding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
@pytest.mark.parametrize("junk", [5.0, float("nan"), float("inf")])
@pytest.mark.parametrize("padding", ["left_out", "last_action"])
def test_what_stands_in_padding_changes_neither_loss_nor_gradient(padding, junk, weighting):
    results = []
    for value in (0.0, junk):
        head = make(padding=padding, loss_weighting=weighting, conditioning="tokens").train()
        target, is_pad = chunks()
        target[is_pad] = value
        torch.manual_seed(3)
        lost = head.loss(look(ROWS), target, is_pad)
        lost.total.backward()
        results.append((lost, [weight.grad for weight in head.parameters()]))
    (first, slopes), (other, others) = results
    assert torch.equal(first.total, other.total)
    assert all(torch.equal(first.parts[name], other.parts[name]) for name in first.parts)
    assert all(map(torch.equal, slopes, others))
    assert first.total.isfinite()


@pytest.mark.parametrize("padding", ["left_out", "last_action"])
def test_rows_of_padding_are_looked_at_only_as_last_actions(padding):
    head, told = make(padding=padding), asked(make())
    _, is_pad = chunks()
    seen, counted = head.condition(look(ROWS)), head._counted(is_pad)
    other = told | {"masked": told["masked"] | is_pad.unsqueeze(-1)}
    before, after = (head.logits(**t, seen=seen, counted=counted)[0, :3] for t in (told, other))
    assert torch.equal(before, after) == (padding == "left_out")


def test_left_out_is_learned_by_length_and_last_action_by_itself():
    target, is_pad = chunks()
    left_out = make(padding="left_out").loss(look(ROWS), target, is_pad)
    held = make(padding="last_action").loss(look(ROWS), target, is_pad)
    assert "length" in left_out.parts
    assert "length" not in held.parts
    moved = is_pad.clone()
    moved[1, 4] = True
    again = make(padding="left_out").loss(look(ROWS), target, moved)
    assert not torch.equal(again.parts["length"], left_out.parts["length"])


def test_the_last_action_is_learned_where_the_episode_has_ended():
    target, is_pad = torch.zeros(ROWS, CHUNK, ACTION), torch.zeros(ROWS, CHUNK, dtype=torch.bool)
    is_pad[:, 1:] = True
    target[:, 0] = make().bins.centres(torch.tensor([5, 3, 0]))
    head = make(padding="last_action")
    learn(head, target, is_pad)
    torch.testing.assert_close(head.sample(look(ROWS)), target[:, :1].expand(-1, CHUNK, -1))


@pytest.mark.parametrize("lengths", [(1, 2, 5, 3), (2, 2, 2, 2)])
def test_chunks_end_where_it_was_learned_and_hold_their_last_action(lengths):
    """In the second case K is longer than all episodes."""
    head, (target, _) = make(temperature=0.0, times_per_sample=8), chunks()
    is_pad = torch.arange(CHUNK) >= torch.tensor(lengths)[:, None]
    learn(head, target.masked_fill(is_pad.unsqueeze(-1), torch.nan), is_pad)
    found = head.sample(look(ROWS))
    for place, length in enumerate(lengths):
        torch.testing.assert_close(found[place, :length], target[place, :length])
        last = target[place, length - 1].expand(CHUNK - length, -1)
        torch.testing.assert_close(found[place, length:], last)


def test_a_generator_draws_the_length():
    head = make()
    with torch.no_grad():
        head.length.weight.zero_()
        head.length.bias.copy_(torch.tensor([0.0, 0.75, 0.0, 0.0, 0.25]).log())
    seen = torch.zeros(400, SMALL["hidden_dim"])
    drawn = head._there(seen, Generator().manual_seed(0)).sum(1)
    assert {*drawn.tolist()} == {2, 5}
    assert (drawn == 2).float().mean() == pytest.approx(0.75, abs=0.06)
    assert {*head._there(seen, None).sum(1).tolist()} == {2}


def test_a_single_row_has_no_length_to_learn():
    head = make(chunk_size=1)
    target, is_pad = chunks(1)
    is_pad[:] = False
    assert "length" not in head.loss(look(ROWS), target, is_pad).parts
    assert head(torch.randn(2, WIDTH))["predicted_actions"].shape == (2, ACTION)


# the loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
def test_a_number_that_is_none_does_not_pass_for_a_bin(weighting):
    target, is_pad = chunks()
    target[1, 2] = float("nan")
    head = make(loss_weighting=weighting, times_per_sample=8)
    assert head.loss(look(ROWS), target, is_pad).total.isnan()


def test_a_validation_loss_is_a_function_of_weights_and_data_alone():
    head, given = make(), (look(ROWS), *chunks())
    assert torch.equal(head.loss(*given).total, head.loss(*given).total)
    head.train()
    assert not torch.equal(head.loss(*given).total, head.loss(*given).total)


@pytest.mark.parametrize(("schedule", "expected"), [("linear", 1 / 2), ("cosine", 0.6366)])
def test_the_share_of_masked_tokens_is_that_of_the_schedule(schedule, expected):
    head = make(schedule=schedule, times_per_sample=500)
    parts = head.loss(look(ROWS), *chunks()).parts
    assert float(parts["mask_ratio"].detach()) == pytest.approx(expected, abs=0.01)


def test_accuracy_and_cross_entropy_are_of_masked_tokens():
    head, (target, is_pad) = make(), chunks()
    is_pad[:] = False
    learn(head, target, is_pad)
    parts = head.loss(look(ROWS), target, is_pad).parts
    assert parts["accuracy"] > 0.9
    assert parts["cross_entropy"] < 0.3


def test_near_bins_count_as_nearly_right_where_they_are_blurred():
    totals = []
    for off in (0, 1, 3):
        head = make(bin_blur=1.0, times_per_sample=20, padding="last_action")
        with torch.no_grad():
            head.output.weight.zero_()
            chances = head.bins.blurred(torch.tensor([1 + off, 1, 1 + off]), 1.0)
            head.output.bias.copy_(chances.clamp_min(1e-6).log().flatten())
        target = head.bins.centres(torch.ones(ROWS, CHUNK, ACTION, dtype=torch.long))
        is_pad = torch.zeros(ROWS, CHUNK, dtype=torch.bool)
        totals.append(float(head.loss(look(ROWS), target, is_pad).total.detach()))
    assert totals[0] < totals[1] < totals[2]


# refusals -----------------------------------------------------------------------------------


def test_a_chunk_longer_than_the_limit_is_refused():
    with pytest.raises(ConfigError, match="max_seq_len: expected at least chunk_size 5, got 4"):
        make(max_seq_len=4)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValidationError, match="num_heads 5 must divide hidden_dim 16"):
        make(num_heads=5)

"""The encoder of grid worlds: cells and a direction to tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from teamvla.errors import ConfigError
from teamvla.models.encoders.grid import GridConfig, StateEncoder
from teamvla.models.encoders.sensors import build_sensor_encoder
from teamvla.models.registries import SENSOR_ENCODER_REGISTRY

WALL, GOAL, AGENT = 2, 8, 10
FACING = torch.arange(4)


def make(shape: tuple[int, ...] = (7, 7, 3), **settings: Any) -> StateEncoder:
    torch.manual_seed(0)
    encoder = build_sensor_encoder(GridConfig(**settings), shape)
    assert isinstance(encoder, StateEncoder)
    return encoder.eval()


def empty(rows: int = 1, size: int = 7) -> Tensor:
    """Cells in which nothing stands."""
    cells = torch.zeros(rows, size, size, 3, dtype=torch.uint8)
    cells[..., 0] = 1
    return cells


def with_goal(x: int, y: int, size: int = 7) -> Tensor:
    cells = empty(size=size)
    cells[0, x, y] = torch.tensor([GOAL, 1, 0])
    return cells


def test_it_is_registered_and_gives_what_is_documented():
    assert SENSOR_ENCODER_REGISTRY.get("grid") is StateEncoder
    encoder = make()
    sensed = encoder.encode(empty(2), None, torch.tensor([0, 3]))
    assert sensed.tokens.values.shape == (2, 49, 128)
    assert bool(sensed.tokens.mask.all())
    assert sensed.vector.shape == (2, encoder.output_dim)


@pytest.mark.parametrize(("stride", "tokens"), [(1, 49), (2, 16), (3, 9)])
def test_a_stride_makes_one_token_of_several_cells(stride: int, tokens: int):
    encoder = make(stride=stride, token_dim=32)
    assert encoder.encode(empty()).tokens.values.shape == (1, tokens, 32)
    assert encoder.num_tokens == tokens


def test_the_four_directions_are_told_apart():
    vectors = make().encode(empty(4), None, FACING).vector
    apart = torch.cdist(vectors, vectors) + 10 * torch.eye(4)
    assert apart.min() > 1e-3


def test_the_mean_tells_where_a_thing_stands():
    encoder = make()
    vectors = torch.cat(
        [encoder.encode(with_goal(x, y), None, FACING[:1]).vector for x in range(7) for y in (0, 3)]
    )
    apart = torch.cdist(vectors, vectors) + 10 * torch.eye(len(vectors))
    assert apart.min() > 1e-4


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_each_channel_of_a_cell_is_told_apart(channel: int):
    encoder, other = make(), with_goal(2, 4)
    other[0, 2, 4, channel] += 1
    changed = encoder.encode(other).vector - encoder.encode(with_goal(2, 4)).vector
    assert changed.abs().max() > 1e-4


def test_the_same_number_means_another_thing_in_another_channel():
    encoder, ones = make(), empty(2)
    ones[0, 3, 3], ones[1, 3, 3] = torch.tensor([5, 1, 0]), torch.tensor([1, 5, 0])
    first, other = encoder.encode(ones).vector
    assert (first - other).abs().max() > 1e-4


def test_numbers_are_kinds_and_whatever_their_type_means_the_same():
    encoder, cells = make(), with_goal(1, 1)
    expected = encoder.encode(cells, None, FACING[:1]).vector
    given = encoder.encode(cells.float(), None, FACING[:1].float()[:, None]).vector
    assert torch.equal(given, expected)


def test_cells_need_not_be_as_many_down_as_across():
    assert make((5, 9, 3)).encode(torch.zeros(2, 5, 9, 3)).tokens.values.shape == (2, 45, 128)
    assert make((5, 9, 2)).encode(torch.zeros(2, 5, 9, 2)).tokens.values.shape == (2, 45, 128)


def test_a_linear_layer_learns_place_and_direction_from_the_vector():
    encoder = make(hidden_dim=16, token_dim=32, output_dim=32).train()
    place_of, way_of = torch.nn.Linear(32, 6), torch.nn.Linear(32, 4)
    cells = torch.cat([with_goal(x, y) for x in (1, 3, 5) for y in (1, 5) for _ in FACING])
    places, facing = torch.arange(6).repeat_interleave(4), FACING.repeat(6)
    parts = (encoder, place_of, way_of)
    optimizer = torch.optim.Adam([w for part in parts for w in part.parameters()], lr=3e-3)
    surprise = torch.nn.functional.cross_entropy
    for _ in range(200):
        optimizer.zero_grad()
        vector = encoder.encode(cells, None, facing).vector
        (surprise(place_of(vector), places) + surprise(way_of(vector), facing)).backward()
        optimizer.step()
    assert float((place_of(vector).argmax(1) == places).float().mean()) > 0.9
    assert float((way_of(vector).argmax(1) == facing).float().mean()) > 0.9


def test_where_the_agent_is_shown_cells_are_told_where_they_lie_from_it():
    """Two ahead and one to the right is the same, whichever way it faces."""
    encoder, cells = make(), empty(4)
    cells[:, 3, 3, 0] = AGENT
    told = encoder._from_agent(cells, FACING)
    # Right, down, left and up; x to the right, y down.
    same = torch.stack([told[0, 5, 4], told[1, 2, 5], told[2, 1, 2], told[3, 4, 1]])
    torch.testing.assert_close(same, same[:1].expand_as(same))
    assert (told[0, 5, 4] - told[0, 5, 2]).abs().max() > 1e-3
    assert not bool(encoder._from_agent(empty(4), FACING).any())


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ((49, 3), r"readings of 3 dimensions, got shape \(49, 3\)"),
        ((7,), r"readings of 3 dimensions, got shape \(7,\)"),
        ((-1, 7, 3), r"as many rows of cells in each step, got shape \(-1, 7, 3\)"),
    ],
)
def test_readings_that_are_no_grid_are_refused(shape: tuple[int, ...], got: str):
    with pytest.raises(ConfigError, match=f"^sensor encoder 'grid': expected {got}"):
        make(shape)

"""The encoder of grid worlds: cells and a direction to tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
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


def with_agent(*things: tuple[int, int, int], at: tuple[int, int] = (1, 2)) -> Tensor:
    """Cells [1,7,7,3] of an unknown world: the agent, and things at (x, y) of a kind."""
    cells = torch.zeros(1, 7, 7, 3, dtype=torch.uint8)
    for x, y, kind in ((*at, AGENT), *things):
        cells[0, x, y] = torch.tensor([kind, 1, 0])
    return cells


def centred(pooling: str = "mean", **settings: Any) -> StateEncoder:
    """One that is told the way it faces by the map alone."""
    encoder = make(centred=True, pooling=pooling, hidden_dim=16, **settings)
    torch.nn.init.zeros_(encoder.directions)
    return encoder


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_a_world_that_is_turned_and_moved_with_the_agent_is_the_same_where_it_is_centred(pooling):
    encoder = centred(pooling)
    world = with_agent((3, 3, GOAL), (0, 1, WALL))  # two ahead and one to the right, if it
    expected = encoder.encode(world, None, FACING[:1])  # faces to the right
    for quarter in range(4):
        turned = torch.rot90(world, quarter, (1, 2))
        found = encoder.encode(turned, None, FACING[quarter : quarter + 1])
        torch.testing.assert_close(found.vector, expected.vector)
        torch.testing.assert_close(found.tokens.values, expected.tokens.values)
    moved = with_agent((5, 5, GOAL), (2, 3, WALL), at=(3, 4))
    torch.testing.assert_close(encoder.encode(moved, None, FACING[:1]).vector, expected.vector)


@pytest.mark.parametrize(
    ("other", "facing"),
    [
        (with_agent((3, 3, GOAL), (0, 1, WALL)), 1),
        (with_agent((3, 1, GOAL), (0, 1, WALL)), 0),
        (with_agent((3, 3, WALL), (0, 1, GOAL)), 0),
        (with_agent((3, 3, GOAL), (0, 1, WALL), at=(1, 3)), 0),
    ],
)
def test_where_things_lie_from_the_agent_tells_centred_maps_apart(other, facing):
    encoder, world = centred("flatten"), with_agent((3, 3, GOAL), (0, 1, WALL))
    vector = encoder.encode(world, None, FACING[:1]).vector
    changed = encoder.encode(other, None, torch.tensor([facing])).vector
    assert (changed - vector).abs().max() > 1e-3


def test_a_map_is_not_centred_where_nobody_tells_the_direction():
    with pytest.raises(ValidationError, match="centred goes with a direction"):
        GridConfig(centred=True, direction=None)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_flattened_tokens_keep_where_a_thing_stands(pooling):
    """Without a place of its own, a mean of what all cells show is the same anywhere."""
    encoder = make(pooling=pooling, num_blocks=0, hidden_dim=16)
    torch.nn.init.zeros_(encoder.places)
    first, other = (encoder.encode(with_goal(x, y)).vector for x, y in ((2, 2), (4, 3)))
    apart = float((first - other).abs().max().detach())
    assert apart > 1e-3 if pooling == "flatten" else apart < 1e-6


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


def test_maps_without_the_agent_are_told_once_where_they_are_centred_on_it(caplog):
    encoder = make(centred=True).train()
    for cells in (empty(2), empty(2)):
        encoder.encode(cells, None, torch.tensor([0, 3]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "got 2 without" in caplog.text
    assert "FullyObsWrapper" in caplog.text


def test_of_maps_with_the_agent_nothing_is_told(caplog):
    cells = empty(2)
    cells[:, 2, 3, 0] = AGENT
    make(centred=True).train().encode(cells, None, torch.tensor([0, 3]))
    assert not caplog.records

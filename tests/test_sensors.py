"""Encoders of sensors: sets, padding, thinning, what each looks at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from teamvla.errors import ConfigError
from teamvla.models.encoders.imu import IMUEncoder
from teamvla.models.encoders.points import PointCloudEncoder, farthest_points
from teamvla.models.encoders.radar import RadarConfig, RadarEncoder
from teamvla.models.encoders.sensors import OwnSensor, as_sensor, build_sensor_encoder
from teamvla.models.encoders.thinning import cropped, thinned
from teamvla.models.encoders.vector import VectorConfig, VectorEncoder
from teamvla.models.registries import SENSOR_ENCODER_REGISTRY

SMALL = {"output_dim": 16, "centers": (12, 6), "group": 6, "width": 8, "radii": (8.0, 20.0)}


def cloud(rows: int = 3, count: int = 60, seed: int = 0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    spread = torch.tensor([20.0, 15.0, 1.0, 0.3])
    return torch.randn(rows, count, 4, generator=dice) * spread


def made(kind, **settings) -> nn.Module:
    torch.manual_seed(0)
    return kind(**settings).eval()


ENCODERS = {
    "pointnet": (lambda: made(PointCloudEncoder, **SMALL), 4),
    "radar": (lambda: made(RadarEncoder, output_dim=16, embed_dim=16, num_heads=2), 5),
    "imu": (lambda: made(IMUEncoder, output_dim=16), 6),
    "vector": (lambda: made(VectorEncoder, input_dim=3, output_dim=16), 3),
}
every_encoder = pytest.mark.parametrize("name", ENCODERS)
of_sets = pytest.mark.parametrize("name", [name for name in ENCODERS if name != "imu"])


def readings(channels: int, rows: int = 3, count: int = 40) -> torch.Tensor:
    dice = torch.Generator().manual_seed(1)
    return torch.randn(rows, count, channels, generator=dice) * 10


@pytest.mark.parametrize("junk", [7.0, float("nan")])
@every_encoder
def test_padding_changes_no_bit(name, junk):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    mask = torch.arange(40) < torch.tensor([40, 25, 1])[:, None]
    other = torch.where(mask.unsqueeze(-1), given, junk)
    plain, junked = encoder.encode(given, mask), encoder.encode(other, mask)
    assert torch.equal(plain.vector, junked.vector)
    assert torch.equal(plain.tokens.mask, junked.tokens.mask)
    there = plain.tokens.mask.unsqueeze(-1)
    assert torch.equal(plain.tokens.values * there, junked.tokens.values * there)


@every_encoder
def test_a_longer_padding_changes_nothing(name):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    mask = torch.ones(3, 40, dtype=torch.bool)
    longer = torch.cat([given, torch.full((3, 9, channels), 5.0)], 1)
    more = torch.cat([mask, torch.zeros(3, 9, dtype=torch.bool)], 1)
    torch.testing.assert_close(encoder(longer, more), encoder(given, mask), rtol=0, atol=1e-5)


@every_encoder
def test_rows_of_a_batch_do_not_mix(name):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    mask = torch.arange(40) < torch.tensor([40, 25, 6])[:, None]
    alone = torch.cat([encoder(given[row : row + 1], mask[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(encoder(given, mask), alone, rtol=0, atol=1e-5)


@of_sets
def test_the_order_of_a_set_changes_nothing(name):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(encoder(given[:, mixed]), encoder(given), rtol=0, atol=1e-5)


@every_encoder
def test_readings_without_rows_give_something_finite_and_their_gradients_are(name):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    mask = torch.arange(40) < torch.tensor([40, 0, 3])[:, None]
    sensed = encoder.encode(given, mask)
    (sensed.vector.square().sum() + sensed.tokens.values.square().mean()).backward()
    assert sensed.vector.isfinite().all()
    assert not sensed.tokens.mask[1].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@every_encoder
def test_every_channel_counts(name):
    make, channels = ENCODERS[name]
    encoder, given = make(), readings(channels)
    for channel in range(channels):
        other = given.clone()
        other[:, ::2, channel] += 3.0
        assert (encoder(other) - encoder(given)).abs().max() > 1e-5, channel


def test_the_specification_s_spellings_are_taken():
    assert PointCloudEncoder(input_dim=4, output_dim=512)(cloud(2)).shape == (2, 512)
    assert RadarEncoder()(torch.randn(2, 9, 5)).shape == (2, 128)
    assert IMUEncoder(output_dim=128)(torch.randn(2, 7, 6)).shape == (2, 128)


def test_farthest_points_cover_the_cloud_whatever_their_order():
    corners = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [10, 10, 0]])
    crowd = torch.cat([corners, corners[:1] + 0.1 * torch.rand(20, 3)])[None]
    mask = torch.ones(1, 24, dtype=torch.bool)
    numbers, there = farthest_points(crowd, mask, 4)
    chosen = {tuple(place) for place in crowd[0, numbers[0]].round().tolist()}
    assert there.all()
    assert chosen == {tuple(place) for place in corners.tolist()}


def test_fewer_points_than_centres_are_all_centres_and_no_more():
    numbers, there = farthest_points(cloud(1, 5)[..., :3], torch.ones(1, 5, dtype=torch.bool), 8)
    assert sorted(numbers[there].tolist()) == [0, 1, 2, 3, 4]


def test_moved_groups_are_told_apart_by_the_tokens():
    encoder = made(PointCloudEncoder, **SMALL)
    tokens = encoder.encode(cloud()).tokens
    moved = encoder.encode(cloud() + torch.tensor([5.0, 0, 0, 0])).tokens
    assert (tokens.values - moved.values).abs().max() > 0.01


def test_cropping_leaves_what_is_in_the_box():
    points = torch.tensor([[[0.0, 0, 0, 9], [5, 0, 0, 9], [0, -3, 0, 9], [0, 0, 2, 9]]])
    assert cropped(points, ((-1, 4), (-2, 2), (-1, 1)))[0].tolist() == [True, False, False, False]


def test_points_outside_the_crop_change_nothing():
    encoder = made(PointCloudEncoder, **SMALL, crop_m=((-10, 10), (-10, 10), (-9, 9)))
    points = cloud()
    far = torch.where((points[..., :3].abs() > 10).any(-1, keepdim=True), points * 2, points)
    assert torch.equal(encoder(points), encoder(far))
    assert not torch.equal(encoder(points), made(PointCloudEncoder, **SMALL)(points))


# In training what is thinned is thinned by chance.
@pytest.mark.parametrize(("max_points", "training"), [(None, False), (None, True), (200, False)])
def test_points_on_a_grid_which_are_as_far_as_each_other_may_come_in_any_order(
    max_points, training
):
    encoder = made(PointCloudEncoder, **SMALL, max_points=max_points)
    side = torch.arange(32.0)
    flat = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)[:800]
    dice = torch.Generator().manual_seed(3)
    grid = torch.cat([flat, torch.zeros(800, 1), torch.rand(800, 1, generator=dice)], 1)[None]
    encoder.train(training)
    mixed = torch.randperm(800, generator=dice)
    assert torch.equal(encoder(grid[:, mixed]), encoder(grid))


def test_thinning_in_evaluation_does_not_go_by_the_order_of_the_points():
    encoder, given = made(PointCloudEncoder, **SMALL, max_points=24), cloud()
    mixed = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(encoder(given[:, mixed]), encoder(given), rtol=0, atol=1e-5)


def test_thinning_in_evaluation_is_even_and_takes_exactly_so_many():
    points = torch.arange(20.0).reshape(1, 20, 1).repeat(3, 1, 3)
    mask = torch.arange(20) < torch.tensor([20, 10, 3])[:, None]
    few, there = thinned(points, mask, 5)
    assert few.shape == (3, 5, 3)
    assert few[0, :, 0].tolist() == [3, 7, 11, 15, 19]
    assert few[1, :, 0].tolist() == [1, 3, 5, 7, 9]
    assert few[2][there[2]][:, 0].tolist() == [0, 1, 2]
    assert there.sum(1).tolist() == [5, 5, 3]


def test_thinning_in_training_draws_from_those_that_are_there():
    points = torch.arange(200.0).reshape(1, 200, 1).repeat(2, 1, 3)
    mask = torch.arange(200) < torch.tensor([150, 4])[:, None]
    torch.manual_seed(0)
    first, there = thinned(points, mask, 10, random=True)
    second, _ = thinned(points, mask, 10, random=True)
    assert not torch.equal(first, second)
    assert there.sum(1).tolist() == [10, 4]
    assert len(set(first[0, :, 0].tolist())) == 10
    assert first[0].max() < 150
    assert sorted(first[1][there[1]][:, 0].tolist()) == [0, 1, 2, 3]


def test_an_encoder_thins_at_random_in_training_and_evenly_otherwise():
    encoder = made(PointCloudEncoder, **SMALL, max_points=20)
    points = cloud()
    assert torch.equal(encoder(points), encoder(points))
    encoder.train()
    assert not torch.equal(encoder(points), encoder(points))


def test_radar_takes_range_doppler_maps():
    encoder = build_sensor_encoder(RadarConfig(embed_dim=16, num_heads=2), (2, 32, 24))
    sensed = encoder.encode(torch.randn(3, 2, 32, 24))
    assert sensed.vector.shape == (3, 128)
    assert sensed.tokens.values.shape == (3, 4 * 3, 16)
    sensed.vector.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_an_inertial_sensor_s_order_counts_and_its_time_is_scaled():
    encoder = made(IMUEncoder, input_dim=7, output_dim=8)
    samples = torch.randn(2, 5, 7)
    assert (encoder(samples) - encoder(samples.flip(1))).abs().max() > 1e-4
    assert encoder.scale.tolist() == pytest.approx([0.05, 10, 10, 10, 1, 1, 1])


@pytest.mark.parametrize("shape", [(), (6,), (-1,), (5, 3), (-1, 3)])
def test_a_vector_encoder_takes_what_has_no_encoder_of_its_own(shape):
    encoder = build_sensor_encoder(VectorConfig(output_dim=8), shape)
    given = torch.randn(2, *(4 if size == -1 else size for size in shape))
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2]) if -1 in shape else None
    assert encoder(given, mask).shape == (2, 8)


def test_scales_for_other_channels_are_refused():
    with pytest.raises(ConfigError, match=r"scale of a radar: expected 5 numbers other than 0"):
        RadarEncoder(scale=(1.0, 2.0))


def test_readings_of_another_rank_are_refused():
    pointnet = SENSOR_ENCODER_REGISTRY["pointnet"]
    with pytest.raises(ConfigError, match="'pointnet': expected readings of 2 dimensions"):
        build_sensor_encoder(pointnet.Config(), (4,))
    with pytest.raises(ConfigError, match=r"expected points of x, y, z and more, got 2 channels"):
        build_sensor_encoder(pointnet.Config(), (-1, 2))


class Mine(nn.Module):
    def __init__(self, output_dim):
        super().__init__()
        self.output_dim, self.layer = output_dim, nn.Linear(3, output_dim)

    def forward(self, readings):
        return self.layer(readings)


def test_somebody_s_own_module_is_an_encoder_if_it_says_how_long_its_vector_is():
    sensor = as_sensor(Mine(7))
    assert isinstance(sensor, OwnSensor)
    assert sensor(torch.randn(2, 3)).shape == (2, 7)
    assert as_sensor(sensor) is sensor
    with pytest.raises(ConfigError, match=r"encoder Linear: expected its output_dim, got None"):
        as_sensor(nn.Linear(3, 4))

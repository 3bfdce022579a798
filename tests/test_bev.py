"""The map from above: what is looked up where, against the simulator's own cameras."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving_batches import SIZE, driving_env
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.bev import BEVConfig, BirdsEyeView, CameraPose, cell_points, lookup, project
from teamvla.models.encoders.vision import ConvConfig, build_vision_encoder
from teamvla.models.encoders.vit import ViTConfig
from teamvla.sim.driving.cameras import CAMERA_FIELDS, SurroundCameras

SMALL = BEVConfig(x_m=(-8, 24), y_m=(-16, 16), cell_m=4.0, width=8, features=8)
POSES = [SMALL.poses[field] for field in CAMERA_FIELDS]


def world_of(seed: int):
    env = driving_env(situation="clear")
    env.reset(seed=seed)
    return env.world


def in_the_vehicles_frame(world, points: np.ndarray) -> torch.Tensor:
    """World coordinates [N,3] to the ego's: x ahead, y left."""
    x, y, heading = world.vehicle.pose
    ahead, left = points[:, 0] - x, points[:, 1] - y
    cosine, sine = np.cos(heading), np.sin(heading)
    turned = [ahead * cosine + left * sine, left * cosine - ahead * sine, points[:, 2]]
    return torch.from_numpy(np.stack(turned, -1)).float()


def pixels(world) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pixel [V,H,W] what it shows: the geom's number, and where it was hit [...,3]."""
    fan = SurroundCameras(SIZE, SIZE)._fan
    origin, heading = world.site("cameras"), float(world.vehicle.pose[2])
    hits = fan.cast(world.model, world.data, origin, heading, 200.0, world.ego_body)
    geoms, points = np.empty_like(hits.geoms), np.empty_like(hits.rays)
    geoms[fan.order] = hits.geoms
    points[fan.order] = hits.origin + hits.rays * hits.distances[:, None]
    shape = (len(CAMERA_FIELDS), SIZE, SIZE)
    return geoms.reshape(shape), points.reshape(*shape, 3), np.isfinite(points[:, 0]).reshape(shape)


def test_what_a_pixel_shows_projects_onto_that_pixel():
    world = world_of(3)
    _, points, hit = pixels(world)
    rows, columns = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    assert hit.mean() > 0.3
    for camera, pose in enumerate(POSES):
        local = in_the_vehicles_frame(world, points[camera][hit[camera]])
        place, seen = project(local, pose)
        assert seen.all()
        found = ((place + 1) * SIZE / 2).numpy()
        np.testing.assert_allclose(found[:, 0], columns[hit[camera]], atol=0.02)
        np.testing.assert_allclose(found[:, 1], rows[hit[camera]], atol=0.02)


def test_vehicles_are_seen_on_the_pixels_that_their_places_project_onto():
    found = 0
    for seed in range(6):
        world = world_of(seed)
        geoms, points, _ = pixels(world)
        for name in [f"car{index}" for index in range(9)]:
            body = world.model.body(name)
            middle = in_the_vehicles_frame(world, world.data.geom_xpos[[body.geomadr[0]]])
            if middle.norm() > 30:
                continue
            own = range(body.geomadr[0], body.geomadr[0] + body.geomnum[0])
            for camera, pose in enumerate(POSES):
                place, seen = project(middle, pose)
                if not seen[0]:
                    continue
                column, row = ((place[0] + 1) * SIZE / 2).long().clamp(max=SIZE - 1).tolist()
                shown = geoms[camera, row, column]
                found += shown in own
                if shown not in own:  # then it stands in front
                    there = in_the_vehicles_frame(world, points[camera, row, column][None])
                    eye = torch.tensor(pose.position_m)
                    assert (there - eye).norm() < (middle - eye).norm()
    assert found >= 5


def test_looking_up_is_bilinear_sampling():
    dice = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 5, 6, 8, generator=dice)
    place = torch.rand(40, 2, generator=dice) * 2 - 1
    weights = lookup(place, torch.ones(40, dtype=torch.bool), (6, 8))
    sampled = functional.grid_sample(
        maps, place[None, :, None], padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(weights @ maps[0].flatten(1).T, sampled[0, :, :, 0].T)


def test_a_vehicle_s_colour_arrives_in_its_own_cell():
    """A picture that shows one place alone lights the cells along that line of sight."""
    vision = build_vision_encoder(ConvConfig(stride=4, grid=8), (3, SIZE, SIZE))
    vision.middle = 0.5
    bev = BirdsEyeView(SMALL, CAMERA_FIELDS, vision, (3, SIZE, SIZE))
    target = torch.tensor([[18.0, 6.0, 0.7]])
    tokens = torch.zeros(1, 6, *vision.side, vision.dim)
    place, seen = project(target, POSES[0])
    assert seen.all()
    column, row = ((place[0] + 1) * 4).long().tolist()
    tokens[0, 0, row, column] = 1.0
    lifted = bev.lifted(tokens.flatten(2, 3))[0].unflatten(-1, (3, -1))[..., 1, 0]
    lit = cell_points(SMALL)[..., 1, :].flatten(0, 1)[lifted > 0.2]
    bearing = torch.atan2(lit[:, 1], lit[:, 0] - 1.4)
    wanted = torch.atan2(target[0, 1], target[0, 0] - 1.4)
    assert ((lit - target).norm(dim=1) < 3.0).any()
    assert (bearing - wanted).abs().max() < 0.15


def test_cells_that_two_cameras_see_get_the_mean_of_both():
    poses = {"a": CameraPose(yaw_deg=0, fov_deg=90), "b": CameraPose(yaw_deg=45, fov_deg=90)}
    config = SMALL.model_copy(update={"cameras": poses})
    vision = build_vision_encoder(ConvConfig(), (3, SIZE, SIZE))
    bev = BirdsEyeView(config, ("a", "b"), vision, (3, SIZE, SIZE))
    tokens = torch.zeros(1, 2, vision.num_tokens, vision.dim)
    tokens[:, 0], tokens[:, 1] = 1.0, 3.0
    values = (bev.lifted(tokens) * 1e3).round().unique() / 1e3
    torch.testing.assert_close(values, torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_cells_that_no_camera_sees_are_masked_and_empty():
    vision = build_vision_encoder(ConvConfig(), (3, SIZE, SIZE))
    bev = BirdsEyeView(SMALL, CAMERA_FIELDS[:1], vision, (3, SIZE, SIZE))
    tokens = bev(torch.randn(2, 1, vision.num_tokens, vision.dim))
    behind = cell_points(SMALL)[..., 0, 0].flatten() < 0
    assert bev.lifted(torch.ones(1, 1, vision.num_tokens, vision.dim))[0, behind].abs().max() == 0
    mask = tokens.mask[0].reshape(4, 4)
    assert not mask[0].any()
    assert mask[1:, 1:3].all()
    everywhere = BirdsEyeView(SMALL, CAMERA_FIELDS, vision, (3, SIZE, SIZE))
    assert everywhere.mask.all()


def test_tokens_of_a_cnn_look_at_the_pixels_that_their_middle_says():
    """The pixels that move one, weighed by how much, lie around it."""
    for stride in (4, 8):
        vision = build_vision_encoder(ConvConfig(stride=stride, grid=16), (3, 64, 64))
        layers = [part for part in vision.convolutions if isinstance(part, torch.nn.Conv2d)]
        for layer in layers:
            torch.nn.init.ones_(layer.weight)
        image = torch.ones(1, 3, 64, 64, requires_grad=True)
        plain = image
        for layer in layers:
            plain = layer(plain)
        at = 64 // stride // 2
        (slope,) = torch.autograd.grad(plain[0, 0, at, at], image)
        weight = slope[0, 0].sum(0)
        middle = float((weight * (torch.arange(64) + 0.5)).sum() / weight.sum())
        assert middle / stride - at == pytest.approx(vision.middle, abs=1e-3)


def test_a_cls_token_is_no_cell():
    vision = build_vision_encoder(
        ViTConfig(patch_size=8, embed_dim=16, num_heads=2, num_layers=1), (3, SIZE, SIZE)
    )
    bev = BirdsEyeView(SMALL, CAMERA_FIELDS, vision, (3, SIZE, SIZE))
    tokens = torch.zeros(1, 6, vision.num_tokens, vision.dim)
    tokens[:, :, 0] = 1e3
    assert bev.lifted(tokens).abs().max() == 0


def test_a_camera_without_a_pose_is_named():
    vision = build_vision_encoder(ConvConfig(), (3, SIZE, SIZE))
    with pytest.raises(ConfigError, match=r"expected the pose of 'rgb_roof', got those of rgb_"):
        BirdsEyeView(SMALL, ["rgb_surround_front", "rgb_roof"], vision, (3, SIZE, SIZE))


def test_a_map_without_cells_is_refused():
    with pytest.raises(ValueError, match="a map from 0 to 2 m has no cell of 4"):
        BEVConfig(x_m=(0, 2))

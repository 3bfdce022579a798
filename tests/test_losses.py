"""Losses of imitation and the geometry beneath them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from teamvla.contract import Arm, Contract, Link
from teamvla.errors import ContractError
from teamvla.models.kinematics import ArmChains, link_gaps, segment_distance
from teamvla.models.losses import (
    GeometryLoss,
    LossConfig,
    collision_penalty,
    gripper_bce,
    huber_loss,
    require_geometry,
    sync_loss,
)
from teamvla.sim.scene import HOME, two_arm_contract

CONTRACT = two_arm_contract(64, 64)
#: both arms turned inwards until their forearms meet
CROSSED = ((-0.9, 0.3, 0.4, 0.0, 0.0, 0.0), (0.9, 0.4, 0.4, 0.0, 0.0, 0.0))

#: straight arms whose tools meet in the middle
TOUCHING = ((-0.55, 0.3, 0.0, 0.0, 0.0, 0.0), (0.55, 0.35, 0.0, 0.0, 0.0, 0.0))


def pad(rows: list[bool]) -> torch.Tensor:
    return torch.tensor([rows])


def test_huber_is_square_near_zero_and_straight_far_away():
    zeros = torch.zeros(1, 1, 2)
    assert huber_loss(torch.full((1, 1, 2), 0.5), zeros).item() == pytest.approx(0.125)
    assert huber_loss(torch.full((1, 1, 2), 3.0), zeros).item() == pytest.approx(2.5)
    assert huber_loss(torch.full((1, 1, 2), 3.0), zeros, delta=0.1).item() == pytest.approx(2.95)


def test_huber_means_over_the_rows_that_are_no_padding():
    predicted = torch.tensor([[[2.0], [4.0], [float("nan")]]])
    target = torch.zeros(1, 3, 1)
    loss = huber_loss(predicted, target, pad([False, False, True]), delta=1e-6)
    assert loss.item() == pytest.approx(3.0)


def test_a_batch_of_padding_alone_costs_nothing():
    assert huber_loss(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), pad([True, True])).item() == 0


def test_gripper_bce_is_the_cross_entropy_of_the_masked_rows():
    logits = torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])
    target = torch.tensor([[[1.0, 0.25], [0.0, 0.0]]])
    p = 1 / (1 + math.exp(-2.0))
    expected = (math.log(2) - 0.25 * math.log(p) - 0.75 * math.log(1 - p)) / 2
    assert gripper_bce(logits, target, pad([False, True])).item() == pytest.approx(expected)


def tools(*rows: float) -> torch.Tensor:
    """Arm 0 stays at the origin, arm 1 is at x = row: [1,S,2,3]."""
    places = torch.zeros(1, len(rows), 2, 3)
    places[0, :, 1, 0] = torch.tensor(rows)
    return places


def test_sync_is_zero_for_a_perfect_prediction():
    places, grips = tools(0.1, 0.4, 0.2), torch.rand(1, 3, 2)
    assert sync_loss(places, places, grips, grips).item() == 0


def test_sync_ignores_what_both_arms_do_wrong_alike():
    places, grips = tools(0.1, 0.4, 0.2), torch.full((1, 3, 2), 0.5)
    drift = torch.tensor([0.0, 0.1, 0.3]).view(1, 3, 1, 1)
    assert sync_loss(places + drift, places, grips + 0.2, grips).item() == pytest.approx(
        0, abs=1e-6
    )


def test_sync_measures_relative_motion_in_tenths_of_a_metre():
    grips = torch.zeros(1, 3, 2)
    # predicted steps 0.1 and 0.0 instead of 0.0 and 0.0, on one of three axes
    loss = sync_loss(tools(0.0, 0.1, 0.1), tools(0.0, 0.0, 0.0), grips, grips)
    assert loss.item() == pytest.approx(0.95 / 2 / 3)  # one of 2 steps


def test_sync_measures_the_timing_of_the_grippers():
    places, target = tools(0.0, 0.0, 0.0), torch.zeros(1, 3, 2)
    one_early = target.clone()
    one_early[0, 1, 0] = 0.6
    assert sync_loss(places, places, one_early, target).item() == pytest.approx(0.55 / 3)
    masked = sync_loss(places, places, one_early, target, pad([False, True, False]))
    assert masked.item() == 0


def test_sync_leaves_out_motion_into_padding():
    grips = torch.zeros(1, 3, 2)
    wrong = tools(0.0, 0.0, 5.0)
    assert sync_loss(wrong, tools(0.0, 0.0, 0.0), grips, grips, pad([False, False, True])) == 0


def test_collision_penalty_is_a_hinge_summed_over_pairs():
    gaps = torch.tensor([[[0.1, 0.01, -0.02]]])
    assert collision_penalty(gaps, margin=0.04).item() == pytest.approx(0.75 + 1.5)


SEGMENTS = {
    "crossing at a distance": ((-1, 0, 0), (1, 0, 0), (0, -1, 0.5), (0, 1, 0.5), 0.5),
    "end to end": ((0, 0, 0), (1, 0, 0), (3, 0, 0), (4, 0, 0), 2.0),
    "end against middle": ((0, 0, 0), (1, 0, 0), (2, -1, 0), (2, 1, 0), 1.0),
    "parallel": ((0, 0, 0), (1, 0, 0), (0.2, 1, 0), (0.7, 1, 0), 1.0),
    "points": ((0, 0, 0), (0, 0, 0), (3, 4, 0), (3, 4, 0), 5.0),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segment_distance(name):
    *ends, expected = SEGMENTS[name]
    distance = segment_distance(*(torch.tensor(end, dtype=torch.float32) for end in ends))
    assert distance.item() == pytest.approx(expected, abs=1e-4)


def test_segment_distance_is_the_least_over_all_pairs_of_places():
    ends = torch.rand(4, 50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    places = torch.linspace(0, 1, 101).view(-1, 1, 1)
    on_p = ends[0] + places * (ends[1] - ends[0])
    on_q = ends[2] + places * (ends[3] - ends[2])
    brute = (on_p[:, None] - on_q[None]).norm(dim=-1).amin((0, 1))
    torch.testing.assert_close(segment_distance(*ends), brute, atol=2e-2, rtol=0)
    assert (segment_distance(*ends) <= brute + 1e-4).all()


def test_gradient_of_the_segment_distance_is_that_of_finite_differences():
    ends = torch.rand(4, 20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ends.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: segment_distance(*e), (ends,), eps=1e-6, atol=1e-3)


def joints(*arms: tuple[float, ...]) -> list[torch.Tensor]:
    return [torch.tensor(arm).view(1, 1, -1) for arm in arms]


def test_tools_are_where_the_simulator_has_them():
    from teamvla.sim import make_env
    from teamvla.sim.kinematics import InverseKinematics

    env = make_env()
    env.reset(seed=0)
    solver = InverseKinematics(env.world)
    rng = np.random.default_rng(0)
    poses = rng.uniform(-1, 1, (2, 6))
    points = ArmChains(env.contract)(joints(*map(tuple, poses.tolist())))
    for place, arm in enumerate("ab"):
        expected, _ = solver.tool(arm, poses[place])
        np.testing.assert_allclose(points[0, 0, place, -1].numpy(), expected, atol=1e-5)


def test_an_arm_with_fewer_joints_keeps_its_tool():
    def arm(name: str, count: int) -> Arm:
        link = Link(joint="j", offset=(1, 0, 0), axis=(0, 0, 1), limits=(-3, 3), radius=0.1)
        return Arm(name=name, base=(0, 0, 0), links=(link,) * count, tool=(0.5, 0, 0))

    chains = ArmChains(Contract(arms=(arm("a", 1), arm("b", 3)), cameras=()))
    points = chains(joints((math.pi / 2,), (0.0, math.pi / 2, 0.0)))
    torch.testing.assert_close(points[0, 0, 0, -1], torch.tensor([1.0, 0.5, 0.0]))
    torch.testing.assert_close(points[0, 0, 1, -1], torch.tensor([2.0, 1.5, 0.0]))


def penalty_of(both: list[torch.Tensor], margin: float = 0.03) -> tuple[torch.Tensor, torch.Tensor]:
    chains = ArmChains(CONTRACT)
    gaps = link_gaps(chains(both), chains.radii, 0, 1).flatten(2)
    return collision_penalty(gaps, margin), gaps.min()


def test_arms_at_home_pay_nothing():
    assert penalty_of(joints(HOME, HOME))[0].item() == 0


def test_crossing_arms_pay():
    penalty, gap = penalty_of(joints(*CROSSED))
    assert gap.item() < 0
    assert penalty.item() > 1


def test_gradient_of_the_penalty_moves_the_arms_apart():
    both = [arm.requires_grad_() for arm in joints(*TOUCHING)]
    penalty, gap = penalty_of(both)
    penalty.backward()
    assert both[0].grad[0, 0, 0] < 0  # descending turns arm a's base back to the left,
    assert both[1].grad[0, 0, 0] > 0  # and arm b's to the right
    length = math.sqrt(sum(arm.grad.square().sum().item() for arm in both))
    moved = [(arm - 0.02 * arm.grad / length).detach() for arm in both]
    further, wider = penalty_of(moved)
    assert further.item() < penalty.item()
    assert wider.item() > gap.item()


def loss_inputs(padded: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    predicted = torch.tensor([*CROSSED[0], 0.5, *CROSSED[1], 0.5])
    is_pad = torch.zeros(3, 8, dtype=torch.bool)
    is_pad[:, 8 - padded :] = padded > 0
    return {
        "target": torch.rand(3, 8, 14, generator=random),
        "predicted": predicted + 0.05 * torch.randn(3, 8, 14, generator=random),
        "is_pad": is_pad,
    }


def test_total_is_the_weighted_sum_of_the_parts():
    criterion = GeometryLoss(LossConfig(sync=0.25, collision=3), CONTRACT)
    parts = criterion(**loss_inputs())
    assert set(parts) == {"sync", "collision"}
    assert parts["collision"] > 0
    expected = 0.25 * parts["sync"] + 3 * parts["collision"]
    assert float(criterion.total(parts)) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("left_out", ["sync", "collision"])
def test_a_part_of_weight_zero_is_left_out(left_out):
    config = LossConfig.model_validate({left_out: 0})
    parts = GeometryLoss(config, CONTRACT)(**loss_inputs())
    assert set(parts) == {"sync", "collision"} - {left_out}


def test_a_policy_adds_what_is_asked_of_both_arms_to_the_loss_of_its_head():
    from small_policies import STATISTICS, make_batch

    from teamvla.models import SingleBrainConfig, build_policy

    contract = two_arm_contract(32, 32)
    policy = build_policy(SingleBrainConfig(chunk_size=4), contract, STATISTICS, LossConfig(sync=3))
    parts = policy.loss(make_batch())
    weights = {"action": 1, "gripper": 0.05, "sync": 3, "collision": 0.01}
    assert set(parts) == {"loss", *weights}
    total = sum(weight * parts[name].item() for name, weight in weights.items())
    assert parts["loss"].item() == pytest.approx(total, rel=1e-5)


def test_no_part_looks_at_padding():
    clean, dirty = loss_inputs(padded=5), loss_inputs(padded=5)
    for name in ("predicted", "target"):
        dirty[name][:, 3:] += 7
    criterion = GeometryLoss(LossConfig(geometry_stride=1), CONTRACT)
    first, second = criterion(**clean), criterion(**dirty)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["sync"] > 0


def test_geometry_looks_at_the_last_row_of_a_chunk():
    inputs = loss_inputs()
    criterion = GeometryLoss(LossConfig(geometry_stride=3), CONTRACT)
    before = criterion(**inputs)["collision"]
    inputs["predicted"][:, -1] += 0.5
    assert criterion(**inputs)["collision"] != before


def bare(**changes: Any) -> Contract:
    """Two arms of six joints whose geometry is not known."""
    arms = tuple(Arm(name=arm.name, joints=arm.joint_names[:6]) for arm in CONTRACT.arms)
    return Contract(**{"arms": arms, "cameras": (), **changes})


DELTAS = Contract(**{**dict(CONTRACT), "action": "delta_joint_position"})


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(sync=0), LossConfig(collision=0)])
@pytest.mark.parametrize(
    ("contract", "said"),
    [
        (bare(), "arm a: expected links, for the losses sync and collision, got the names of 6"),
        (DELTAS, "action: expected absolute_joint_position, for the losses sync and collision"),
    ],
)
def test_what_needs_geometry_says_so(contract: Contract, said: str, config: LossConfig):
    criterion = GeometryLoss(config, contract)  # a policy that only acts has one, too
    for asks in (lambda: require_geometry(config, contract), lambda: criterion(**loss_inputs())):
        with pytest.raises(ContractError, match=said) as caught:
            asks()
        assert "--set loss.sync=0 --set loss.collision=0" in str(caught.value)


@pytest.mark.parametrize("contract", [bare(), DELTAS])
def test_without_weights_no_geometry_is_needed(contract: Contract):
    config = LossConfig(sync=0, collision=0)
    require_geometry(config, contract)
    criterion = GeometryLoss(config, contract)
    assert criterion(**loss_inputs()) == {}
    assert criterion.total({}) == 0


def test_one_arm_needs_no_geometry():
    alone = bare(embodiment="single_arm", arms=bare().arms[:1])
    require_geometry(LossConfig(), alone)
    inputs = loss_inputs()
    half = {name: inputs[name][..., :7] for name in ("predicted", "target")}
    assert GeometryLoss(LossConfig(), alone)(**half, is_pad=inputs["is_pad"]) == {}


def test_chains_need_links():
    with pytest.raises(ContractError, match="arm a: expected links, for forward kinematics"):
        ArmChains(bare())

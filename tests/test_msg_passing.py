"""Arms that hear of each other by messages alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_policies import ARM, assert_slopes, make, make_batch, train

from teamvla.errors import ConfigError, ContractError
from teamvla.models import MODELS, ModelRegistry, Policy, build_policy
from teamvla.models.spaces import Spaces
from teamvla.models.vla_msgpassing import MsgPassingConfig
from teamvla.sim.scene import two_arm_contract


def taught(**changes: Any) -> Policy:
    """A policy after a few steps: blocks start as the identity, messages as silence."""
    torch.manual_seed(0)
    return train(make("msg_passing", **changes), make_batch(), 3)


def actions_of(policy: Policy, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    chunk = policy.predict_action_chunk(batch["observations"], batch["language"])
    return chunk[..., :ARM], chunk[..., ARM:]


def changed(what: str, arm: int) -> dict[str, Any]:
    """The batch with another picture, or other joints, of one arm."""
    batch = make_batch()
    seen, other = batch["observations"], make_batch(seed=1)["observations"]
    if what == "image":
        seen["image"][:, arm] = other["image"][:, arm]
    else:
        part = slice(arm * ARM, (arm + 1) * ARM)
        seen["state"][:, part] = other["state"][:, part]
    return batch


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("what", ["image", "state"])
@pytest.mark.parametrize("silence", [{"messages": False}, {"rounds": 0}])
def test_without_messages_an_arm_knows_nothing_of_the_other(what, arm, silence):
    policy = taught(**silence)
    before, after = (actions_of(policy, b) for b in (make_batch(), changed(what, arm)))
    assert torch.equal(before[1 - arm], after[1 - arm])
    assert (before[arm] - after[arm]).abs().max() > 1e-3


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("what", ["image", "state"])
def test_messages_tell_an_arm_of_the_other(what, arm):
    policy = taught()
    before, after = (actions_of(policy, b) for b in (make_batch(), changed(what, arm)))
    assert (before[1 - arm] - after[1 - arm]).abs().max() > 1e-5


def test_both_arms_read_the_instruction():
    policy, other = taught(messages=False), make_batch()
    other["language"] = ["hold", "lower the tray", "lift the tray"]
    before, after = (actions_of(policy, b) for b in (make_batch(), other))
    for arm in (0, 1):
        assert (before[arm] - after[arm]).abs().max() > 1e-4


def test_what_only_the_other_arm_knows_is_learned_by_messages_alone():
    """Arm a's target is one of two, by the state of arm b, which a does not feel."""
    batch = make_batch(rows=4)
    seen = batch["observations"]
    seen["image"][:] = seen["image"][:1]
    seen["state"][:] = 0
    seen["state"][:, ARM] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    batch["language"] = ["hold"] * 4
    batch["actions"][:] = 0.5 * torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1)
    batch["actions"][..., [6, 13]] = 0
    wrong = {}
    for messages in (True, False):
        torch.manual_seed(0)
        policy = make("msg_passing", messages=messages, vision=None)
        train(policy, batch, 120, lr=3e-3)
        wrong[messages] = (actions_of(policy, batch)[0] - batch["actions"][..., :ARM]).abs().max()
    assert wrong[True] < 0.1
    assert wrong[False] > 0.4


def parameters(policy: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


def test_cutting_the_messages_leaves_the_weights_as_they_are():
    with_messages, without = make("msg_passing"), make("msg_passing", messages=False)
    ours, theirs = with_messages.state_dict(), without.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_has_as_many_parameters_as_a_single_brain():
    contract = two_arm_contract(64, 64)
    counts = [
        parameters(build_policy(MODELS.get(name).Config(), contract, None))
        for name in ("msg_passing", "single_brain")
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.03)
    assert counts[1] == pytest.approx(2.2e6, rel=0.03)


def test_a_gradient_reaches_every_parameter_with_messages_cut():
    assert_slopes(taught(messages=False), make_batch())


# Other robots than two arms with a camera each.


def sized(arms: int, cameras: tuple[tuple[int, ...], ...], **changes: Any) -> Policy:
    spaces = Spaces((3,) * arms, (2,) * arms, (), cameras, (3, 32, 32))
    data = {"type": "msg_passing", "hidden_dim": 32, "num_heads": 2, "chunk_size": 2}
    config = MsgPassingConfig.model_validate({**data, "execution": {"replan_every": 1}, **changes})
    return build_policy(config, spaces)


def batch_for(policy: Policy, seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    spaces = policy.spaces
    shape = (2, len(spaces.cameras), 3, 32, 32)
    seen = {"state": torch.randn(2, spaces.state_dim, generator=random)}
    if spaces.cameras:
        seen["image"] = torch.rand(shape, generator=random)
    actions = torch.rand(2, 2, spaces.action_dim, generator=random)
    return {"observations": seen, "actions": actions}


@pytest.mark.parametrize("arms", [1, 2, 3])
@pytest.mark.parametrize("messages", [True, False])
def test_any_number_of_arms_trains(arms, messages):
    policy = sized(arms, tuple((arm,) for arm in range(arms)), messages=messages)
    batch = batch_for(policy)
    first = policy.loss(batch)["loss"].item()
    train(policy, batch, 20, lr=3e-3)
    assert policy.loss(batch)["loss"].item() < 0.5 * first


def test_each_of_three_arms_hears_of_both_others():
    policy = sized(3, ((0,), (1,), (2,)))
    train(policy, batch_for(policy), 3)
    batch, other = batch_for(policy), batch_for(policy)
    other["observations"]["state"][:, :3] += 1
    before, after = (policy.predict_action_chunk(b["observations"]) for b in (batch, other))
    for arm in range(3):
        part = slice(2 * arm, 2 * arm + 2)
        assert (before[..., part] - after[..., part]).abs().max() > 1e-5


def test_a_shared_camera_is_seen_by_every_arm_and_an_own_one_by_its_arm():
    policy = sized(2, ((0, 1), (1,)), messages=False)
    train(policy, batch_for(policy), 3)
    batch = batch_for(policy)
    before = policy.predict_action_chunk(batch["observations"])
    for camera, arms in ((0, (0, 1)), (1, (1,))):
        other = batch_for(policy)
        other["observations"]["image"][:, camera] = batch_for(policy, seed=1)["observations"][
            "image"
        ][:, camera]
        after = policy.predict_action_chunk(other["observations"])
        moved = [not torch.equal(before[..., i : i + 2], after[..., i : i + 2]) for i in (0, 2)]
        assert moved == [arm in arms for arm in (0, 1)]


def test_it_works_without_pictures_and_words():
    policy = sized(2, (), language=None)
    batch = batch_for(policy)
    train(policy, batch, 3)
    assert policy.loss(batch)["loss"].isfinite()
    with pytest.raises(ContractError, match="expected 'state', which the model was made to use"):
        policy.predict_action_chunk({"image": torch.zeros(1, 3, 32, 32)})


def test_an_arm_without_a_camera_acts_on_its_joints_and_the_words():
    policy = sized(2, ((0,),))
    train(policy, batch_for(policy), 3)
    assert policy.predict(batch_for(policy)["observations"]).shape == (2, 2, 4)


def test_an_arm_without_anything_to_act_on_is_refused():
    with pytest.raises(ConfigError, match="for every arm to act on, got none for arm 1"):
        sized(2, ((0,),), language=None, use_state=False)


def test_arms_of_different_joints_are_told_apart():
    spaces = Spaces((2, 5), (1, 4), (4,), (), (3, 32, 32))
    policy = build_policy(MsgPassingConfig(hidden_dim=32), spaces)
    chunk = policy.predict_action_chunk({"state": torch.zeros(1, 7)})
    assert chunk.shape == (1, 16, 5)
    assert [head.action_dim for head in policy.heads] == [1, 4]


def test_the_registry_makes_one_for_plain_sizes():
    policy = ModelRegistry.create("msg_passing", state_dim=3, action_dim=2, image_size=32)
    assert policy.predict_action_chunk(
        {"state": torch.zeros(1, 3), "image": torch.zeros(1, 3, 32, 32)}
    ).shape == (1, 16, 2)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValidationError, match="num_heads 3 must divide hidden_dim 352"):
        MsgPassingConfig(num_heads=3)

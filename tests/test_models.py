"""Policies: their interface. test_policies.py has what all of them promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError, RegistryError
from teamvla.models import (
    MODELS,
    ExecutionConfig,
    LossConfig,
    ModelRegistry,
    PolicyConfig,
    SingleBrainConfig,
    build_policy,
    register_model,
)
from teamvla.models.encoders.vision import ConvConfig, build_vision_encoder
from teamvla.models.vla_singlebrain import SingleBrainVLA
from teamvla.sim.scene import two_arm_contract

SIZE = 32
CONTRACT = two_arm_contract(SIZE, SIZE)
DIM, K = 14, 16
#: built around weights from elsewhere, or for other batches: they have tests of their own
OTHERS = {"openvla", "smolvla", "vla_model", "world_model"}
NAMES = [name for name in MODELS.names() if name not in OTHERS]
STATISTICS = {
    "actions": {
        "min": np.linspace(-2, -0.1, DIM).tolist(),
        "max": np.linspace(0.2, 1.5, DIM).tolist(),
        "q01": np.linspace(-1, -0.1, DIM).tolist(),
        "q99": np.linspace(0.1, 1, DIM).tolist(),
    },
    "state": {"mean": np.linspace(-1, 1, DIM).tolist(), "std": np.linspace(0, 1, DIM).tolist()},
    "count": 100,
}


def make(name: str = "single_brain", **changes):
    return build_policy(settings_of(name, **changes), CONTRACT, STATISTICS)


def settings_of(name: str, **changes) -> PolicyConfig:
    return PolicyConfig.choose({"type": name}).model_validate({"type": name, **changes})


def make_batch(rows: int = 3, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (rows, 2, SIZE, SIZE, 3), dtype=np.uint8)
    is_pad = np.zeros((rows, K), dtype=bool)
    is_pad[0, K - 5 :] = True
    return {
        "observations": {
            "image": torch.from_numpy(images).permute(0, 1, 4, 2, 3),
            "state": torch.from_numpy(rng.normal(size=(rows, DIM)).astype(np.float32)),
        },
        "actions": torch.from_numpy(rng.uniform(0, 1, (rows, K, DIM)).astype(np.float32)),
        "action_is_pad": torch.from_numpy(is_pad),
        "language": [f"lift tray {row % 2}" for row in range(rows)],
    }


def make_observation(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    pictures = {f"rgb_{arm}": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for arm in "ab"}
    joints = {f"q_{arm}": rng.normal(size=6).astype(np.float32) for arm in "ab"}
    grips = {f"grip_q_{arm}": np.float32(rng.uniform()) for arm in "ab"}
    return {**pictures, **joints, **grips, "instruction": "lift tray", "task": "lift"}


def as_batch(obs: dict) -> dict:
    """The observation as the dataset would give it, joined by hand."""
    state = [*obs["q_a"], obs["grip_q_a"], *obs["q_b"], obs["grip_q_b"]]
    image = np.stack([obs["rgb_a"], obs["rgb_b"]]).transpose(0, 3, 1, 2)[None]
    return {
        "observations": {
            "image": torch.from_numpy(image),
            "state": torch.tensor([state], dtype=torch.float32),
        },
        "language": [obs["instruction"]],
    }


def train_step(policy, batch) -> None:
    policy.train()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy.loss(batch)["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    policy.eval()


# ---- what every policy gives ----


@pytest.mark.parametrize("name", NAMES)
def test_forward_predicts_a_chunk_for_every_arm(name):
    output = make(name, chunk_size=K)(make_batch())
    assert output["predicted_actions"].shape == (3, K, DIM)
    assert output["predicted_actions"].dtype == torch.float32
    assert [arm.shape for arm in output["actions"]] == [(3, K, 7)] * 2
    assert torch.equal(torch.cat(output["actions"], dim=-1), output["predicted_actions"])
    commands = output["predicted_actions"][..., [6, 13]]
    torch.testing.assert_close(commands.clamp(0, 1), output["logits"].sigmoid(), atol=1e-5, rtol=0)
    parts = {"loss", "action_mse", "action_mae"}
    assert all(output[part].shape == () for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_depend_on_picture_state_and_instruction(name):
    policy, batch = make(name, chunk_size=K).eval(), make_batch()
    inputs = ("state",) if name in {"bc", "mdlm"} else ("image", "state", "language")
    with torch.no_grad():
        before = policy(batch)["predicted_actions"]
        for change in inputs:
            changed = make_batch()
            if change == "language":
                changed["language"] = ["put it down"] * 3
            else:
                changed["observations"][change] = make_batch(seed=1)["observations"][change]
            assert (policy(changed)["predicted_actions"] - before).abs().max() > 1e-5, change


@pytest.mark.parametrize("name", NAMES)
def test_weights_depend_on_the_seed_alone(name):
    config = settings_of(name)

    def weights(seed: int) -> torch.Tensor:
        return nn.utils.parameters_to_vector(build_policy(config, CONTRACT, seed=seed).parameters())

    first = weights(0)
    torch.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(weights(0), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(1), first)


# ---- acting ----


def test_first_action_is_the_first_row_of_the_predicted_chunk():
    policy, obs = make().eval(), make_observation()
    with torch.no_grad():
        expected = policy(as_batch(obs))["predicted_actions"][0, 0].numpy()
    np.testing.assert_array_equal(np.concatenate(policy.act(obs)), expected)


def test_chunk_from_an_observation_is_that_from_its_tensors():
    policy, obs = make().eval(), make_observation()
    batch = as_batch(obs)
    from_tensors = policy.predict_action_chunk(batch["observations"], batch["language"])
    assert torch.equal(policy.predict_action_chunk(obs), from_tensors)


def test_predict_takes_an_instruction_in_place_of_the_observations_own():
    policy, obs = make().eval(), make_observation()
    other = {**obs, "instruction": "put it down"}
    assert torch.equal(policy.predict(obs, language="put it down"), policy.predict(other))
    assert not torch.equal(policy.predict(obs), policy.predict(other))


def test_predict_leaves_out_the_chunk_dimension_of_one():
    assert make(horizon=1, execution={"replan_every": 1}).predict(make_observation()).shape == (
        1,
        DIM,
    )


def test_execution_can_be_changed_after_building():
    policy, first, second = make().eval(), make_observation(0), make_observation(1)
    policy.set_execution(ExecutionConfig(mode="receding", n_action_steps=8))
    chunk = policy.predict_action_chunk(first)[0].numpy()
    actions = [policy.select_action(obs) for obs in (first, second)]
    np.testing.assert_array_equal(actions, chunk[:2])


def test_reset_begins_a_new_episode():
    policy = make().eval()
    fresh = policy.select_action(make_observation(0))
    policy.select_action(make_observation(1))
    assert not np.array_equal(policy.select_action(make_observation(0)), fresh)
    policy.reset()
    np.testing.assert_array_equal(policy.select_action(make_observation(0)), fresh)


def test_a_stalled_policy_executes_a_whole_chunk():
    policy = make(execution={"stall_steps": 3}).eval()
    obs = make_observation()
    chunk = policy.predict_action_chunk(obs)[0].numpy()
    actions = [policy.select_action(obs) for _ in range(12)]
    np.testing.assert_allclose(actions[2:], chunk[:10], rtol=0, atol=1e-6)


def test_unmeasured_gripper_is_taken_from_the_last_command():
    policy, obs = make().eval(), make_observation()
    blind = {name: value for name, value in obs.items() if not name.startswith("grip_q")}
    assert policy.contract.measured_state(blind)[[6, 13]].tolist() == [0, 0]
    action = policy.select_action(blind)
    again = policy.predict_action_chunk(blind)
    measured = blind | {f"grip_q_{arm}": action[at] for arm, at in (("a", 6), ("b", 13))}
    assert torch.equal(policy.predict_action_chunk(measured), again)


def test_a_missing_camera_is_named():
    obs = make_observation()
    del obs["rgb_b"]
    with pytest.raises(ContractError, match="expected field 'rgb_b'"):
        make().act(obs)


def test_instruction_is_encoded_anew_after_a_training_step():
    policy, batch, obs = make().eval(), make_batch(), make_observation()
    policy.act(obs)
    train_step(policy, batch)
    fresh = make()
    fresh.load_state_dict(policy.state_dict())
    policy.reset()
    np.testing.assert_array_equal(policy.act(obs), fresh.eval().act(obs))


# ---- single brain ----


def test_single_brain_has_about_two_million_parameters():
    assert 1.9e6 < sum(parameter.numel() for parameter in make().parameters()) < 2.4e6


def test_gripper_command_is_the_sigmoid_of_its_logit():
    output = make()(make_batch())
    commands = output["predicted_actions"][..., [6, 13]]
    torch.testing.assert_close(commands, output["logits"].sigmoid())


def test_gripper_command_needs_no_statistics():
    output = build_policy(SingleBrainConfig(), CONTRACT)(make_batch())
    commands = output["predicted_actions"][..., [6, 13]]
    torch.testing.assert_close(commands, output["logits"].sigmoid())


def test_chunks_of_another_length_are_refused():
    batch = make_batch()
    batch["actions"] = batch["actions"][:, :4]
    with pytest.raises(ConfigError, match=r"expected chunks of shape \(16, 14\), got \(4, 14\)"):
        make().loss(batch)


def test_loss_weights_come_from_their_configuration():
    policy = build_policy(SingleBrainConfig(), CONTRACT, STATISTICS, LossConfig(sync=0))
    assert "sync" not in policy.loss(make_batch())


def test_encoders_can_be_injected():
    vision = build_vision_encoder(ConvConfig(features=24))
    policy = SingleBrainVLA(SingleBrainConfig(), CONTRACT, STATISTICS, vision=vision)
    assert policy.vision is vision
    assert policy(make_batch())["predicted_actions"].shape == (3, K, DIM)


def test_contract_decides_arms_and_cameras():
    alone = Contract(embodiment="single_arm", arms=CONTRACT.arms[:1], cameras=CONTRACT.cameras[:1])
    policy = build_policy(SingleBrainConfig(), alone)
    batch = make_batch()
    observations = batch["observations"]
    observations["image"] = observations["image"][:, 0]  # [B,C,H,W] means one camera
    observations["state"] = observations["state"][:, :7]
    batch["actions"] = batch["actions"][..., :7]
    assert set(policy.loss(batch)) == {"loss", "action", "gripper"}
    assert policy(batch)["predicted_actions"].shape == (3, K, 7)


# ---- configuration and registry ----


@pytest.mark.parametrize("key", ["chunk_size", "action_horizon", "horizon"])
def test_chunk_size_has_the_specified_spellings(key):
    assert SingleBrainConfig.model_validate({key: 4}).chunk_size == 4


def test_type_chooses_the_settings_class():
    assert PolicyConfig.choose({"type": "single_brain"}) is SingleBrainConfig
    assert PolicyConfig.choose({}) is SingleBrainConfig


def test_unknown_model_is_answered_with_a_suggestion():
    with pytest.raises(RegistryError, match="Did you mean 'single_brain'"):
        PolicyConfig.choose({"type": "singlebrain"})


def test_registry_creates_a_policy_from_settings_and_contract():
    model = ModelRegistry.create(
        "single_brain", contract=CONTRACT, action_horizon=4, fusion={"hidden_dim": 32}
    )
    assert isinstance(model, SingleBrainVLA)
    assert (model.config.chunk_size, model.config.fusion.hidden_dim) == (4, 32)


def test_registry_asks_for_a_contract_or_sizes():
    with pytest.raises(ConfigError, match="expected a contract or sizes, got neither"):
        ModelRegistry.create("single_brain")


def test_a_policy_for_plain_sizes_cannot_act_in_an_environment():
    model = ModelRegistry.create("single_brain", state_dim=3, action_dim=2)
    with pytest.raises(ContractError, match="expected one made for a contract, got plain sizes"):
        model.act(make_observation())


def test_a_policy_without_anything_to_act_on_is_refused():
    with pytest.raises(ConfigError, match="expected a state, pictures, words or sensors"):
        make(vision=None, language=None, use_state=False)


@pytest.mark.parametrize("missing", ["image", "state"])
def test_an_input_that_is_missing_is_named(missing):
    batch = make_batch()
    del batch["observations"][missing]
    with pytest.raises(ContractError, match=f"expected '{missing}', which the model was made to"):
        make().loss(batch)


def test_instructions_for_other_rows_are_refused():
    batch = make_batch(3)
    batch["language"] = batch["language"][:2]
    with pytest.raises(ContractError, match="language: expected 3, one for each row, got 2"):
        make().loss(batch)


def test_one_instruction_is_that_of_all_rows():
    policy, batch = make().eval(), make_batch(3)
    one, each = ({**batch, "language": said} for said in ("lift it", ["lift it"] * 3))
    assert torch.equal(policy.loss(one)["loss"], policy.loss(each)["loss"])


def test_pictures_of_fewer_cameras_are_refused():
    batch = make_batch()
    batch["observations"]["image"] = batch["observations"]["image"][:, 0]
    with pytest.raises(ContractError, match="expected pictures of 2 cameras"):
        make().loss(batch)


OFF = {"image": {"vision": None}, "language": {"language": None}, "state": {"use_state": False}}


@pytest.mark.parametrize("left_out", OFF)
def test_what_is_switched_off_need_not_be_there(left_out):
    policy, batch = make(**OFF[left_out]).eval(), make_batch()
    before = policy(batch)["predicted_actions"]
    (batch if left_out == "language" else batch["observations"]).pop(left_out)
    assert torch.equal(policy(batch)["predicted_actions"], before)


def test_each_arm_may_have_a_head_of_its_own():
    policy = make(separate_heads=True)
    assert [head.action_dim for head in policy.heads] == [7, 7]
    assert policy(make_batch())["predicted_actions"].shape == (3, K, DIM)
    train_step(policy, make_batch())


def test_a_bounded_head_needs_actions_that_it_can_reach():
    with pytest.raises(ConfigError, match="expected min_max, as head 'mlp' only reaches"):
        make(head={"tanh_output": True}, normalization={"actions": "quantiles"})


@pytest.mark.usefixtures("registries")
def test_a_function_may_be_registered_but_is_no_policy():
    register_model("mine")(lambda width: nn.Linear(width, 4))
    assert ModelRegistry.create("mine", width=3).in_features == 3
    with pytest.raises(RegistryError, match="got <lambda>, which is neither"):
        PolicyConfig.choose({"type": "mine"})

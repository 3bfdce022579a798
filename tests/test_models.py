"""Policies: their interface, normalisation and the promises every registered one keeps."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
from teamvla.models.encoders.vision import VisionConfig, build_vision_encoder
from teamvla.models.heads.mlp import MLPActionHead
from teamvla.models.normalization import NormalizationConfig, Normalizer
from teamvla.models.vla_singlebrain import SingleBrainVLA
from teamvla.sim.scene import two_arm_contract

SIZE = 32
CONTRACT = two_arm_contract(SIZE, SIZE)
DIM, K = 14, 16
NAMES = MODELS.names()
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
    config = PolicyConfig.choose({"type": name}).model_validate({"type": name, **changes})
    return build_policy(config, CONTRACT, STATISTICS)


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


# ---- what every registered policy promises ----


@pytest.mark.parametrize("name", NAMES)
def test_forward_predicts_a_chunk_for_every_arm(name):
    output = make(name)(make_batch())
    assert output["predicted_actions"].shape == (3, K, DIM)
    assert output["predicted_actions"].dtype == torch.float32
    assert torch.equal(torch.cat(output["actions"], dim=-1), output["predicted_actions"])
    assert {"actions", "logits", "aux"} <= set(output)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_every_parameter(name):
    policy, batch = make(name), make_batch()
    train_step(policy, batch)  # blocks that start as the identity pass nothing on at first
    policy.train().loss(batch)["loss"].backward()
    for parameter_name, parameter in policy.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_loss_does_not_look_at_padded_targets(name):
    policy, batch = make(name), make_batch()
    before = policy.loss(batch)
    batch["actions"][0, K - 5 :] = 50.0
    after = policy.loss(batch)
    assert all(torch.equal(before[part], after[part]) for part in before)
    batch["actions"][0, K - 6] = 50.0
    assert policy.loss(batch)["loss"] > before["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_restores_the_same_policy(name):
    policy, batch = make(name), make_batch()
    train_step(policy, batch)
    config = PolicyConfig.choose({"type": name}).model_validate({"type": name})
    other = build_policy(config, CONTRACT, None, seed=9).eval()
    other.load_state_dict(policy.state_dict())
    with torch.no_grad():
        ours, theirs = policy(batch), other(batch)
    assert torch.equal(ours["predicted_actions"], theirs["predicted_actions"])


@pytest.mark.parametrize("name", NAMES)
def test_act_gives_one_float32_array_per_arm(name):
    policy = make(name).eval()
    policy.reset()
    actions = policy.act(make_observation())
    assert [action.shape for action in actions] == [(7,), (7,)]
    assert all(action.dtype == np.float32 for action in actions)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_depend_on_picture_state_and_instruction(name):
    policy, batch = make(name).eval(), make_batch()
    with torch.no_grad():
        before = policy(batch)["predicted_actions"]
        for change in ("image", "state", "language"):
            changed = make_batch()
            if change == "language":
                changed["language"] = ["put it down"] * 3
            else:
                changed["observations"][change] = make_batch(seed=1)["observations"][change]
            assert (policy(changed)["predicted_actions"] - before).abs().max() > 1e-5, change


@pytest.mark.parametrize("name", NAMES)
def test_weights_depend_on_the_seed_alone(name):
    config = PolicyConfig.choose({"type": name}).model_validate({"type": name})

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
    assert policy._state_of(blind)[[6, 13]].tolist() == [0, 0]
    action = policy.select_action(blind)
    np.testing.assert_array_equal(policy._state_of(blind)[[6, 13]], action[[6, 13]])


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


def test_loss_takes_an_output_that_was_computed_before():
    policy, batch = make(), make_batch()
    assert torch.equal(policy.loss(batch, policy(batch))["loss"], policy.loss(batch)["loss"])


def test_chunks_of_another_length_are_refused():
    batch = make_batch()
    batch["actions"] = batch["actions"][:, :4]
    with pytest.raises(ConfigError, match=r"expected chunks of shape \(16, 14\), got \(4, 14\)"):
        make().loss(batch)


def test_loss_weights_come_from_their_configuration():
    policy = build_policy(SingleBrainConfig(), CONTRACT, STATISTICS, LossConfig(sync=0))
    assert "sync" not in policy.loss(make_batch())


def test_encoders_can_be_injected():
    vision = build_vision_encoder(VisionConfig(features=24))
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


def test_bf16_autocast_stays_near_float32():
    policy, batch = make(), make_batch()
    exact = policy.loss(batch)["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        rough = policy.loss(batch)["loss"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact, rel=0.02)


def test_head_bounds_its_output_only_if_asked():
    torch.manual_seed(0)
    features = 100 * torch.randn(4, 8)
    assert MLPActionHead(8, 3, chunk_size=5)(features).abs().max() <= 1
    assert MLPActionHead(8, 3, tanh_output=False)(features).abs().max() > 1
    assert MLPActionHead(8, 3)(features).shape == (4, 3)


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
    model = ModelRegistry.create("single_brain", contract=CONTRACT, action_horizon=4, hidden_dim=32)
    assert isinstance(model, SingleBrainVLA)
    assert model.config.chunk_size == 4


def test_registry_asks_for_the_contract_of_a_policy():
    with pytest.raises(ConfigError, match="expected a contract, got none"):
        ModelRegistry.create("single_brain")


def test_registered_model_is_listed_and_created(monkeypatch):
    monkeypatch.setattr(MODELS, "_targets", dict(MODELS._all()))

    @register_model("mine")
    class Mine(nn.Module):
        def __init__(self, state_dim: int = 20) -> None:
            super().__init__()
            self.net = nn.Linear(state_dim, 4)

    assert "mine" in ModelRegistry.list()
    assert ModelRegistry.create("mine", state_dim=3).net.in_features == 3


# ---- normalisation ----


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=DIM, max_size=DIM), st.booleans())
def test_normalizer_undoes_itself(values, by_quantiles):
    config = NormalizationConfig(actions="quantiles" if by_quantiles else "min_max")
    scaler = Normalizer(config, CONTRACT, STATISTICS)
    vector = torch.tensor(values)
    actions = scaler.denormalize_actions(scaler.normalize_actions(vector))
    torch.testing.assert_close(actions, vector, rtol=1e-5, atol=1e-5)
    state = scaler.denormalize_state(scaler.normalize_state(vector))
    torch.testing.assert_close(state, vector, rtol=1e-5, atol=1e-5)


def test_normalizer_scales_the_range_of_joints_to_one():
    scaler = Normalizer(NormalizationConfig(), CONTRACT, STATISTICS)
    joints = [place for place in range(DIM) if place not in (6, 13)]
    for bound, value in (("min", -1.0), ("max", 1.0)):
        scaled = scaler.normalize_actions(torch.tensor(STATISTICS["actions"][bound]))
        torch.testing.assert_close(scaled[joints], torch.full((12,), value))


def test_normalizer_scales_grippers_by_their_unit_not_by_what_was_seen():
    scaler = Normalizer(NormalizationConfig(), CONTRACT, STATISTICS)
    assert scaler.normalize_actions(torch.zeros(DIM))[[6, 13]].tolist() == [-1, -1]
    assert scaler.normalize_actions(torch.ones(DIM))[[6, 13]].tolist() == [1, 1]


def test_an_idle_joint_does_not_blow_up():
    idle = {
        "actions": {"min": [0.1] * DIM, "max": [0.1] * DIM},
        "state": {"mean": [0.1] * DIM, "std": [0.0] * DIM},
    }
    config = NormalizationConfig(half_range_floor=0.02, std_floor=0.04)
    scaler = Normalizer(config, CONTRACT, idle)
    drifted = torch.full((DIM,), 0.11)
    assert scaler.normalize_actions(drifted)[0].item() == pytest.approx(0.5, rel=1e-4)
    assert scaler.normalize_state(drifted)[0].item() == pytest.approx(0.25, rel=1e-4)


def test_without_statistics_normalizer_is_the_identity_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        scaler = Normalizer(NormalizationConfig(), CONTRACT, None)
    assert "not normalised" in caplog.text
    vector = torch.rand(DIM, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaler.normalize_actions(vector), vector)
    assert torch.equal(scaler.normalize_state(vector), vector)


@pytest.mark.parametrize(
    ("values", "got"),
    [([0.0] * 3, r"shape \(3,\)"), ([float("nan")] * DIM, "NaN"), (None, "nothing of the kind")],
)
def test_statistics_that_do_not_fit_are_refused(values, got):
    broken = {**STATISTICS, "state": {"mean": values, "std": [1.0] * DIM}}
    with pytest.raises(ContractError, match=f"statistics.state.mean: expected 14.*{got}"):
        Normalizer(NormalizationConfig(), CONTRACT, broken)

"""The policy of several sensors, and sensors in every policy of one trunk."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from driving_batches import (
    CHUNK,
    RADAR,
    SENSORS,
    driving_batch,
    driving_contract,
    driving_env,
    driving_policy,
    rows_of,
)
from small_policies import HEADS, assert_slopes, shrunk, small_head
from torch import nn

from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError, ContractError
from teamvla.models import MODELS, ModelRegistry, Spaces, composed
from teamvla.models.loading import from_arrays, to_arrays
from teamvla.models.multi_sensor import MultiSensorConfig, MultiSensorVLA

BEV = {"cell_m": 8.0, "width": 16, "features": 8}
OTHERS = ("bc", "single_brain", "vla", "diffusion_policy", "act")


def make(head: str | None = None, name: str = "multi_sensor", contract=None, **changes):
    kind = MODELS.get(name)
    own = {"bev": BEV} if name == "multi_sensor" else {}
    chosen = {} if head is None else {"head": small_head(head)}
    data = shrunk(kind.Config, chunk_size=CHUNK, sensors=SENSORS, **own, **chosen)
    return driving_policy(kind.Config.model_validate(data | changes), contract)


def predicted(policy, batch) -> torch.Tensor:
    chunk: torch.Tensor = policy.predict_action_chunk(batch["observations"], batch["language"])
    return chunk


def train(policy, batch, steps: int = 1, lr: float = 1e-3) -> float:
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = policy.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
    policy.eval()
    return float(loss.detach())


def observation(seed: int = 0):
    env = driving_env()
    observed, info = env.reset(seed=seed)
    return env, {**observed, "instruction": info["instruction"]}


# ---- what it promises with every head ----


@pytest.mark.parametrize("head", HEADS)
def test_a_finite_gradient_reaches_every_parameter(head):
    torch.manual_seed(0)
    policy, batch = make(head), driving_batch()
    # Behind an output of zeros, and gates, slopes only show after some steps.
    train(policy, batch, **({"steps": 3, "lr": 0.01} if head == "masked" else {}))
    assert_slopes(policy, batch)


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_gets_what_its_rows_get_alone(head):
    policy, batch = make(head), driving_batch()
    alone = torch.cat([predicted(policy, rows_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(predicted(policy, batch), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [1e4, float("nan")])
def test_padding_of_sensors_and_chunks_changes_nothing(value):
    policy, batch = make(), driving_batch()
    before, actions = policy.loss(batch), predicted(policy, batch)
    for name in ("points", "radar"):
        there = batch["observations"][f"{name}_mask"].unsqueeze(-1)
        batch["observations"][name] = batch["observations"][name].where(there, value)
    batch["actions"][0, CHUNK // 2 :] = value
    after = policy.loss(batch)
    assert torch.equal(predicted(policy, batch), actions)
    assert all(torch.equal(before[part], after[part]) for part in before)


def test_every_input_counts():
    policy, batch = make(), driving_batch()
    before, other = predicted(policy, batch), driving_batch(seed=1)
    for name in ("image", "state", "points", "radar", "imu"):
        changed = {**batch["observations"], name: other["observations"][name]}
        assert (predicted(policy, {**batch, "observations": changed}) - before).abs().max() > 1e-5
    assert (predicted(policy, {**batch, "language": ["stop"] * 3}) - before).abs().max() > 1e-5


def test_weights_that_were_saved_and_loaded_give_the_same_bits():
    policy, batch = make(), driving_batch()
    train(policy, batch)
    other = make()
    other.load_state_dict(from_arrays("model", to_arrays("model", policy.state_dict())))
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


def test_it_learns_a_batch():
    policy, batch = make(), driving_batch()
    first = train(policy, batch)
    assert train(policy, batch, 120, 3e-3) < 0.3 * first


def test_its_settings_survive_plain_data():
    config = make().config
    again = MultiSensorConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    assert again.sensors["points"].max_points == 64


# ---- acting ----


@pytest.mark.parametrize("name", ["multi_sensor", *OTHERS[:3]])
def test_it_trains_and_acts_in_the_driving_environment(name):
    policy = make(name=name)
    train(policy, driving_batch(), 2)
    env, seen = observation()
    policy.reset()
    for _ in range(2):
        command = policy.act(seen)
        assert [(part.shape, part.dtype) for part in command] == [((2,), np.float32)]
        observed, *_ = env.step(np.concatenate(command))
        seen = {**observed, "instruction": seen["instruction"]}


def test_what_the_environment_shows_is_what_the_batch_would_hold():
    policy = make()
    _, seen = observation()
    fields = [camera.field for camera in driving_contract().cameras]
    image = np.stack([seen[field] for field in fields]).transpose(0, 3, 1, 2)[None]
    names = ["points", "points_mask", "radar", "radar_mask", "imu", "imu_mask"]
    batch = {name: torch.from_numpy(seen[name])[None] for name in names}
    batch |= {"image": torch.from_numpy(image), "state": torch.from_numpy(seen["ego"])[None]}
    chunk = policy.predict_action_chunk(batch, seen["instruction"])
    assert torch.equal(policy.predict_action_chunk(seen), chunk)
    arrays = {name: value.numpy() for name, value in batch.items()}
    assert torch.equal(policy.predict_action_chunk(arrays, seen["instruction"]), chunk)


# ---- the trajectory ----


def test_it_predicts_a_trajectory_beside_the_actions():
    policy, batch = make(), driving_batch()
    output = policy(batch)
    path = policy.predict_trajectory(batch["observations"], batch["language"])
    assert path.shape == (3, 6, 2)
    torch.testing.assert_close(output["predicted_trajectory"], path)
    losses = policy.loss(batch)
    off = (path - batch["targets"]["trajectory"]).abs().mean()
    torch.testing.assert_close(losses["trajectory"], off)
    torch.testing.assert_close(losses["loss"], losses["action"] + 0.1 * off)
    torch.testing.assert_close(output["loss"], losses["loss"])


def test_a_batch_without_the_trajectory_is_refused_and_may_be_told_to_do_without():
    batch = driving_batch()
    del batch["targets"]
    with pytest.raises(ContractError, match=r"batch\['targets'\]: expected 'trajectory', got"):
        make().loss(batch)
    policy = make(trajectory_weight=0)
    assert "trajectory" not in policy.loss(batch)
    with pytest.raises(ContractError, match="expected one that predicts 'trajectory'"):
        policy.predict_trajectory(batch["observations"])


# ---- sensors by configuration, in every policy of one trunk ----


@pytest.mark.parametrize("fusion", ["concat", "film", "transformer", "cross_modal", "hierarchical"])
def test_every_fusion_takes_sensors(fusion):
    small = {"type": fusion, "hidden_dim": 16, "embed_dim": 16, "num_heads": 2, "num_blocks": 1}
    keys = {
        "concat": ("type", "hidden_dim", "num_blocks"),
        "film": ("type", "hidden_dim", "num_blocks"),
        "transformer": ("type", "embed_dim", "num_heads"),
    }
    taken = {key: small[key] for key in keys.get(fusion, ("type", "embed_dim", "num_heads"))}
    policy, batch = make(name="single_brain", fusion=taken), driving_batch()
    before = predicted(policy, batch)
    for name in SENSORS:
        changed = {**batch["observations"], name: driving_batch(seed=1)["observations"][name]}
        assert (predicted(policy, {**batch, "observations": changed}) - before).abs().max() > 1e-6
    alone = torch.cat([predicted(policy, rows_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(before, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_every_policy_of_one_trunk_takes_sensors(name):
    policy, batch = make(name=name), driving_batch()
    before = predicted(policy, batch)
    batch["observations"]["radar"] = driving_batch(seed=1)["observations"]["radar"]
    assert (predicted(policy, batch) - before).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["multi_sensor", "single_brain"])
def test_in_which_order_sensors_stand_in_the_settings_changes_no_bit(name):
    policy, batch = make(name=name), driving_batch()
    other = make(name=name, sensors=dict(reversed(SENSORS.items())))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


def test_a_sensor_that_is_null_is_not_looked_at():
    policy, batch = make(sensors={**SENSORS, "radar": None}), driving_batch()
    before = predicted(policy, batch)
    del batch["observations"]["radar"], batch["observations"]["radar_mask"]
    assert torch.equal(predicted(policy, batch), before)


def test_a_sensor_that_the_robot_has_not_is_named():
    with pytest.raises(ConfigError, match=r"sensors that the robot has, got 'rader'. Did you mean"):
        make(sensors={"rader": RADAR})


def test_a_batch_without_a_sensor_is_refused():
    batch = driving_batch()
    del batch["observations"]["radar"]
    with pytest.raises(ContractError, match=r"expected 'radar', which the model was made to use"):
        make().loss(batch)


@pytest.mark.parametrize("name", ["multi_sensor", "single_brain", "vla"])
@pytest.mark.parametrize("missing", ["points", "radar", "imu", "image"])
def test_a_missing_sensor_is_as_one_that_was_dropped(name, missing):
    """The learned stand-in takes its place, and nothing that the sensor shows matters."""
    policy, batch = make(name=name, missing_sensors=True, sensor_dropout=0.5), driving_batch()
    train(policy, batch, 3)
    whole = predicted(policy, batch)
    del batch["observations"][missing]
    without = predicted(policy, batch)
    assert without.isfinite().all()
    assert (without - whole).abs().max() > 1e-5
    alone = torch.cat([predicted(policy, rows_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(without, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cameras", [6, 1])
def test_missing_pictures_are_to_the_map_what_dropped_ones_are(cameras, monkeypatch):
    """Of one camera most cells are unseen: nothing was ever learned of what stands for them."""
    whole = driving_contract()
    contract = whole.model_copy(update={"cameras": whole.cameras[:cameras]})
    policy, batch = make(contract=contract, missing_sensors=True), driving_batch()
    nn.init.normal_(policy.absent_pictures.value)
    batch["observations"]["image"] = batch["observations"]["image"][:, :cameras]
    assert policy.bev.mask.all() == (cameras == 6)
    with monkeypatch.context() as patch:
        patch.setattr(composed, "kept", lambda rows, *_: torch.zeros(rows, dtype=torch.bool))
        dropped = predicted(policy, batch)
    del batch["observations"]["image"]
    assert torch.equal(predicted(policy, batch), dropped)


def test_it_acts_without_any_one_sensor_and_without_all_cameras():
    policy = make(missing_sensors=True)
    _, seen = observation()
    commands = []
    for missing in ("nothing", "points", "radar", "imu", "rgb"):
        policy.reset()
        left = {name: value for name, value in seen.items() if not name.startswith(missing)}
        commands.append(np.concatenate(policy.act(left)))
    assert np.isfinite(commands).all()
    assert len({tuple(command) for command in commands}) == len(commands)


def test_one_missing_camera_of_several_is_refused():
    _, seen = observation()
    del seen["rgb_surround_back"]
    with pytest.raises(ContractError, match="expected field 'rgb_surround_back', got ego"):
        make(missing_sensors=True).act(seen)


def test_without_cameras_a_policy_that_may_not_do_without_says_which_it_was_made_for():
    _, seen = observation()
    blind = {name: value for name, value in seen.items() if not name.startswith("rgb")}
    with pytest.raises(ContractError, match=r"'image', which .* to use: rgb_surround_front, "):
        make().act(blind)


def test_dropout_replaces_whole_sensors_of_single_rows_at_its_rate():
    policy = make(sensor_dropout=0.4).train()
    batch = driving_batch(40)
    stood_in = {name: policy.sensors.absent[name].value for name in SENSORS}
    for value in (*stood_in.values(), policy.absent_pictures.value):
        nn.init.constant_(value, 7.0)
    torch.manual_seed(0)
    seen = policy.perceive(batch)
    dropped = {name: (sensed.vector == 7).all(1) for name, sensed in seen.sensors.items()} | {
        "image": (seen.pictures == 7).flatten(1).all(1)
    }
    for name, rows in dropped.items():
        assert 0.2 < rows.float().mean() < 0.6, name
        if name in seen.sensors:
            assert not seen.sensors[name].tokens.mask[rows].any()
    assert len({tuple(rows.tolist()) for rows in dropped.values()}) == 4
    policy.eval()
    assert not any((s.vector == 7).all(1).any() for s in policy.perceive(batch).sensors.values())


def test_with_dropout_the_stand_ins_are_learned():
    policy, batch = make(sensor_dropout=0.5).train(), driving_batch(12)
    torch.manual_seed(0)
    policy.loss(batch)["loss"].backward()
    for stand_in in (*policy.sensors.absent.values(), policy.absent_pictures):
        assert stand_in.value.grad.abs().max() > 0


class Altimeter(nn.Module):
    def __init__(self, output_dim):
        super().__init__()
        self.output_dim, self.layer = output_dim, nn.Linear(2, output_dim)

    def forward(self, readings):
        return self.layer(readings)


def test_somebody_s_own_sensor_joins_by_name():
    torch.manual_seed(0)
    model = MultiSensorVLA(sensor_encoders={"my_sensor": Altimeter(output_dim=256)}).eval()
    seen = {"my_sensor": torch.randn(2, 2), "state": torch.zeros(2, 4)}
    first = model.predict_action_chunk(seen, "go")
    assert first.shape == (2, 16, 2)
    other = model.predict_action_chunk({**seen, "my_sensor": torch.randn(2, 2)}, "go")
    assert (first - other).abs().max() > 1e-6


def test_an_encoder_given_for_a_sensor_takes_the_place_of_its_settings():
    given = Altimeter(3)
    policy = MultiSensorVLA(
        MultiSensorConfig.model_validate({"bev": BEV, "sensors": SENSORS}),
        driving_contract(),
        sensor_encoders={"imu": given},
    )
    assert policy.sensors.encoders["imu"].module is given
    assert set(policy.sensors.encoders) == set(SENSORS)


# ---- what it is built for ----


def test_by_default_it_has_the_sensors_of_the_robot_and_the_map():
    policy = driving_policy(MultiSensorConfig())
    assert set(policy.sensors.encoders) == {"points", "radar", "imu"}
    assert policy.bev is not None
    assert policy.bev.num_tokens == 64


def test_cameras_without_known_poses_are_fused_by_their_own_tokens():
    assert make(bev={"cameras": {"rgb_other": {"yaw_deg": 0}}}).bev is None
    assert make(bev=None).bev is None
    assert make(vision=None).bev is None


def test_spaces_of_a_contract_without_arms():
    spaces = Spaces.of(driving_contract())
    assert (spaces.states, spaces.actions, spaces.grippers) == ((0,), (2,), ())
    assert (spaces.state_dim, spaces.shared, spaces.action_dim) == (4, 4, 2)
    assert spaces.sensors == {"points": (-1, 4), "radar": (-1, 5), "imu": (-1, 7)}
    assert len(spaces.cameras) == len(spaces.fields) == 6


def test_spaces_of_arms_with_signals():
    from teamvla.sim.scene import two_arm_contract

    plain = two_arm_contract(16, 16).to_dict()
    signals = (
        Signal(field="wrench", shape=(6,)),
        Signal(field="lift", role="action"),
        Signal(field="map", shape=(3, 3)),
        Signal(field="count", dtype="int64"),
        Signal(field="mass"),
    )
    contract = Contract.parse({**plain, "signals": [s.model_dump() for s in signals]}, "here")
    spaces = Spaces.of(contract)
    assert (spaces.states, spaces.shared) == ((7, 7, 0), 7)
    assert (spaces.actions, spaces.grippers) == ((7, 7, 1), (6, 13))
    assert spaces.sensors == {"map": (3, 3), "count": ()}
    policy = ModelRegistry.create("single_brain", contract=contract, chunk_size=2)
    chunk = policy.predict_action_chunk(
        {"state": torch.zeros(1, 21), "image": torch.zeros(1, 2, 3, 16, 16)}, ""
    )
    assert chunk.shape == (1, 2, 15)


def test_whole_numbers_without_names_are_no_action_of_policies():
    contract = Contract(
        embodiment="grid",
        cameras=(),
        signals=(Signal(field="move", role="action", dtype="int64"),),
    )
    where = r"action signal 'move': expected float32, or with choices, got action int64"
    with pytest.raises(ContractError, match=where):
        Spaces.of(contract)


def test_a_robot_without_cameras_acts_on_its_state(caplog):
    contract = Contract(
        embodiment="vehicle",
        cameras=(),
        signals=(
            Signal(field="speed"),
            Signal(field="controls", role="action", shape=(2,)),
        ),
    )
    with caplog.at_level(logging.ERROR):
        policy = ModelRegistry.create("single_brain", contract=contract, chunk_size=2)
    assert policy.vision is None
    seen = {"state": torch.zeros(2, 1)}
    batch = {"observations": seen, "actions": torch.zeros(2, 2, 2), "language": ["go"] * 2}
    assert set(policy.loss(batch)) == {"loss", "action"}

"""The world model: what it learns from sequences, and how it acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError, ContractError
from teamvla.models.spaces import Spaces
from teamvla.models.world.decoder import SensesConfig, shrunk
from teamvla.models.world.sequences import Windows
from teamvla.models.world.world_model import WorldModel, WorldModelConfig

S = 20
STATISTICS = {
    "actions": {"min": [-1.0], "max": [1.0], "mean": [0.0], "std": [0.5]},
    "state": {"mean": [0.0, 0.0], "std": [1.0, 1.0]},
}
SMALL = {
    "senses": {"hidden_dim": 32, "layers": 1, "channels": 4, "picture_size": 8},
    "rssm": {"deterministic": 32, "hidden_dim": 32, "variables": 8, "classes": 4},
    "predictors": {"hidden_dim": 32, "bins": 31, "span": 1.0},
    "loss": {"unseen_steps": 8},
    "planner": {"samples": 96, "iterations": 3, "horizon": 8},
}


def make(image_size: int = 0, statistics: Any = STATISTICS, **changes: Any) -> WorldModel:
    torch.manual_seed(0)
    spaces = Spaces.plain(1, 2, image_size=image_size)
    return WorldModel(WorldModelConfig.model_validate(SMALL | changes), spaces, statistics)


def push(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """A mass that is pushed: [..., (place, speed)] after one step."""
    speed = 0.8 * state[..., 1] + 0.4 * action[..., 0]
    return torch.stack([state[..., 0] + 0.5 * speed, speed], -1)


def worth(state: torch.Tensor) -> torch.Tensor:
    return torch.exp(-state[..., 0].square())


def sequences(rows: int = 8, steps: int = S, seed: int = 0) -> dict[str, Any]:
    """Masses under smooth random commands; the last two rows end after three quarters."""
    random = torch.Generator().manual_seed(seed)
    state = torch.randn(rows, 2, generator=random) * torch.tensor([1.5, 0.5])
    action = torch.zeros(rows, 1)
    states, actions, rewards = [], [], []
    for _ in range(steps):
        action = (0.7 * action + 0.6 * torch.randn(rows, 1, generator=random)).clamp(-1, 1)
        states.append(state)
        actions.append(action)
        state = push(state, action)
        rewards.append(worth(state))
    is_pad = torch.zeros(rows, steps, dtype=torch.bool)
    is_pad[-2:, 3 * steps // 4 :] = True
    return {
        "observations": {"state": torch.stack(states, 1)},
        "actions": torch.stack(actions, 1)[:, :, None],
        "action_is_pad": is_pad[:, :, None],
        "observation_is_pad": is_pad,
        "reward": torch.stack(rewards, 1),
        "language": [""] * rows,
    }


def with_pictures(batch: dict[str, Any]) -> dict[str, Any]:
    rows, steps = batch["reward"].shape
    random = torch.Generator().manual_seed(5)
    size = (rows, steps, 1, 3, 16, 16)
    image = torch.randint(0, 256, size, dtype=torch.uint8, generator=random)
    return {**batch, "observations": {**batch["observations"], "image": image}}


@pytest.fixture(scope="module")
def trained() -> WorldModel:
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(150):
        optimizer.zero_grad()
        model.loss(sequences(16, seed=step + 10))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model.eval()


# ---- what is learned ----


def test_imagined_states_beat_the_last_one_and_the_mean(trained):
    batch = sequences(64, seed=1)
    batch["observation_is_pad"][:] = False
    states, actions = batch["observations"]["state"], batch["actions"][:, :, 0]
    with torch.no_grad():
        believed = trained.observe(batch).map(lambda part: part[:, 4])
        told = trained.decode(trained.imagine(believed, actions[:, 4:-1])).state
    assert told is not None
    for ahead in (5, 15):
        truth = states[:, 4 + ahead]
        error = (told[:, ahead - 1] - truth).square().mean()
        assert error < 0.5 * (states[:, 4] - truth).square().mean()
        assert error < 0.5 * (truth.mean(0) - truth).square().mean()


def test_imagined_rewards_are_those_that_come(trained):
    batch = sequences(64, seed=2)
    batch["observation_is_pad"][:] = False
    with torch.no_grad():
        believed = trained.observe(batch).map(lambda part: part[:, 4])
        actions = batch["actions"][:, 4:14, 0]
        told = trained.decode(trained.imagine(believed, actions)).reward
    truth = batch["reward"][:, 4:14]
    assert torch.corrcoef(torch.stack([told.flatten(), truth.flatten()]))[0, 1] > 0.85


@pytest.mark.parametrize("kind", ["cem", "mppi", "shooting"])
def test_planning_brings_the_mass_to_where_it_is_worth_most(trained, kind):
    settings = trained.config.planner.model_copy(update={"type": kind})
    trained.set_planner(settings)
    earned = {"planned": 0.0, "nothing": 0.0}
    for start in (-2.0, 2.0):
        for name in earned:
            state = torch.tensor([start, 0.0])
            trained.reset()
            for _ in range(15):
                acts = name == "planned"
                action = trained.act({"state": state[None]})[0] if acts else np.zeros(1)
                state = push(state, torch.as_tensor(action).float())
                earned[name] += float(worth(state)) / 30
    assert earned["nothing"] < 0.05
    assert earned["planned"] > 0.45


# ---- what it is learned from ----


def losses(model: WorldModel, batch: dict[str, Any]) -> dict[str, float]:
    torch.manual_seed(0)
    return {name: float(value.detach()) for name, value in model.loss(batch).items()}


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_padding_counts_for_nothing(value):
    model, batch = make(), sequences()
    before = losses(model, batch)
    is_pad = batch["observation_is_pad"]
    batch["observations"]["state"] = batch["observations"]["state"].clone()
    batch["observations"]["state"][is_pad] = value
    batch["actions"][is_pad], batch["reward"][is_pad] = float("nan"), float("nan")
    assert losses(model, batch) == pytest.approx(before)
    model.loss(batch)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_plan_begins_where_a_sequence_ends_before_its_padding():
    model, batch = make().eval(), sequences()
    short = {name: value[-1:] for name, value in batch.items() if torch.is_tensor(value)}
    short["observations"] = {"state": batch["observations"]["state"][-1:]}
    del short["reward"]
    end = 3 * S // 4
    cut = {name: value[:, :end] for name, value in short.items() if torch.is_tensor(value)}
    cut["observations"] = {"state": short["observations"]["state"][:, :end]}
    whole, alone = (model(one)["predicted_actions"] for one in (short, cut))
    torch.testing.assert_close(whole, alone)


def test_a_gradient_reaches_every_parameter():
    model = make(image_size=16)
    model.loss(with_pictures(sequences()))["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("senses", [{"use_state": False}, {"cameras": []}])
def test_either_sense_may_be_absent(senses):
    model = make(image_size=16, senses=SMALL["senses"] | senses)
    parts = losses(model, with_pictures(sequences()))
    assert ("state" in parts) == ("cameras" in senses)
    assert ("picture" in parts) == ("use_state" in senses)


def test_without_any_sense_there_is_no_model():
    with pytest.raises(ConfigError, match="a state or pictures to look at"):
        make(senses={"use_state": False})


def test_a_camera_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"model.senses.cameras: expected places below 1"):
        make(image_size=16, senses={"cameras": [1]})


def test_without_rewards_nothing_can_be_planned():
    batch = sequences()
    del batch["reward"]
    with pytest.raises(ConfigError, match=r"Put reward into dataset\.fields"):
        make().loss(batch)


def test_single_steps_are_refused():
    batch = sequences()
    single = {name: value[:, 0] for name, value in batch.items() if torch.is_tensor(value)}
    del single["observation_is_pad"]
    single["observations"] = {"state": batch["observations"]["state"][:, 0]}
    with pytest.raises(ConfigError, match=r"Set dataset\.sequence_length"):
        make().loss(single)


def test_a_missing_input_is_named():
    batch = sequences()
    with pytest.raises(ContractError, match="'image'"):
        make(image_size=16).loss(batch)


# ---- target signals ----

DRIVING = Contract(
    embodiment="driving",
    control_hz=20.0,
    cameras=(),
    signals=(
        Signal(field="ego", shape=(2,), unit="m, m/s"),
        Signal(field="pedal", role="action", shape=(1,), unit="-1..1"),
        Signal(field="way", role="target", shape=(2, 2), unit="m"),
    ),
)


def with_targets(field: str) -> WorldModel:
    torch.manual_seed(0)
    config = SMALL | {"senses": SMALL["senses"] | {"targets": [field]}}
    return WorldModel(WorldModelConfig.model_validate(config), DRIVING, STATISTICS)


def test_target_signals_are_learned_but_not_asked_for_when_it_acts():
    model, batch = with_targets("way"), sequences()
    batch["targets"] = {"way": torch.ones(8, S, 2, 2)}
    before = losses(model, batch)
    assert {"targets", "far_targets"} <= before.keys()
    batch["targets"] = {"way": torch.full((8, S, 2, 2), 9.0)}
    assert losses(model, batch)["targets"] > before["targets"]
    assert model.eval().act({"ego": np.zeros(2, np.float32), "instruction": ""})[0].shape == (1,)


def test_a_target_that_the_data_lack_is_named():
    with pytest.raises(ContractError, match=r"batch\['targets'\]: expected 'way', got none"):
        with_targets("way").loss(sequences())


def test_a_target_that_the_contract_lacks_is_named():
    with pytest.raises(ConfigError, match=r"model.senses.targets: expected way, got path"):
        with_targets("path")


# ---- longer steps ----


def test_a_step_of_the_model_is_the_mean_of_its_control_steps():
    batch = sequences(rows=2, steps=7)
    batch["observation_is_pad"][:] = False
    windows = Windows.of(batch, 3, 1)
    actions, states = batch["actions"][:, :, 0], batch["observations"]["state"]
    assert torch.equal(windows.observations["state"], states[:, [1, 4]])
    torch.testing.assert_close(windows.actions[:, 1], actions[:, 4:7].mean(1))
    assert windows.reward is not None
    torch.testing.assert_close(windows.reward[:, 0], batch["reward"][:, 1:4].mean(1))


def test_an_episode_that_ends_within_a_step_ends_with_it():
    batch = sequences(rows=1, steps=8)
    batch["observation_is_pad"][:] = torch.tensor([[False] * 5 + [True] * 3])
    batch["reward"][:, 5:] = float("nan")
    windows = Windows.of(batch, 2)
    assert windows.there.tolist() == [[True, True, True, False]]
    assert windows.goes_on.tolist()[0][:3] == [True, True, False]
    assert windows.reward is not None
    torch.testing.assert_close(windows.reward[0, 2], batch["reward"][0, 4])


def test_how_an_episode_ended_is_told_by_its_last_reward():
    batch = sequences(rows=1, steps=6)
    batch["observation_is_pad"][:] = torch.tensor([[False] * 5 + [True]])
    windows = Windows.of(batch, 3)
    assert windows.reward is not None
    torch.testing.assert_close(windows.reward[0, 0], batch["reward"][0, :3].mean())
    torch.testing.assert_close(windows.reward[0, 1], batch["reward"][0, 4])


def test_what_comes_behind_a_sequence_is_not_guessed():
    batch = sequences(rows=1, steps=4)
    batch["observation_is_pad"][:] = False
    assert Windows.of(batch, 1).ended_known.tolist() == [[True, True, True, False]]
    assert Windows.of(batch, 3).ended_known.tolist() == [[True]]


def test_a_command_is_held_for_as_long_as_a_step_of_the_model():
    model = make(action_repeat=3).eval()
    given = [model.act({"state": torch.full((1, 2), tick / 5)})[0].tolist() for tick in range(7)]
    assert given[0] == given[1] == given[2]
    assert given[3] == given[4] == given[5]
    assert len({tuple(one) for one in given}) == 3


def test_a_sequence_as_long_as_one_step_of_the_model_can_be_learned_from():
    model = make(action_repeat=5, loss={"unseen_steps": 1})
    batch = sequences(steps=5)
    batch["observation_is_pad"][:] = False
    for seed in range(5):
        torch.manual_seed(seed)
        assert model.loss(batch)["loss"].isfinite()


def test_commands_beyond_the_usual_are_not_taken_for_usual_ones():
    model, batch = make(statistics=None).eval(), sequences()
    beliefs = []
    for command in (1.0, 3.0):
        batch["actions"] = torch.full_like(batch["actions"], command)
        beliefs.append(model.observe(batch).deterministic[:, 1])
    assert (beliefs[0] - beliefs[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"chunk_size": 4}, "chunk_size"), ({"execution": {"mode": "receding"}}, "no chunks")],
)
def test_settings_of_chunks_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        WorldModelConfig.model_validate(settings)


# ---- acting ----


def test_an_episode_can_be_repeated():
    model = make().eval()

    def episode() -> list[list[float]]:
        model.reset()
        return [model.act({"state": torch.full((1, 2), t / 5)})[0].tolist() for t in range(4)]

    assert episode() == episode()


def test_what_was_seen_before_counts():
    model = make().eval()
    model.act({"state": torch.full((1, 2), 2.0)})
    second = model.act({"state": torch.zeros(1, 2)})[0]
    model.reset()
    first = model.act({"state": torch.zeros(1, 2)})[0]
    assert not np.array_equal(first, second)


def test_another_way_to_plan_can_be_chosen_afterwards():
    model = make().eval()
    observation = {"state": torch.full((1, 2), 0.5)}
    before = model.act(observation)[0]
    other = model.config.planner.model_copy(update={"type": "shooting"})
    model.adjust(model.config.model_copy(update={"planner": other}))
    assert not np.array_equal(model.act(observation)[0], before)


def test_decoded_states_are_in_the_units_of_the_contract():
    statistics = STATISTICS | {"state": {"mean": [10.0, -4.0], "std": [2.0, 3.0]}}
    model = make(statistics=statistics).eval()
    states = model.rssm.initial(2)
    told = model.decode(states).state
    raw = model.decoder(states.features)["state"]
    assert told is not None
    torch.testing.assert_close(told, raw * torch.tensor([2.0, 3.0]) + torch.tensor([10.0, -4.0]))


def test_pictures_are_shrunk_by_averaging_and_cameras_chosen():
    images = torch.zeros(2, 3, 1, 16, 16, dtype=torch.uint8)
    images[:, 1, :, ::2] = 255
    config = SensesConfig(cameras=(1,), picture_size=8)
    small = shrunk(images, config)
    assert small.shape == (2, 1, 8, 8)
    torch.testing.assert_close(small, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("size", [12, 20])
def test_pictures_that_cannot_be_halved_to_four_are_refused(size):
    with pytest.raises(ConfigError, match="8, 16, 32, 64"):
        make(image_size=16, senses={"picture_size": size})


def test_the_probe_is_smooth_in_what_is_seen():
    model, batch = make().eval(), sequences()
    near = {**batch, "observations": {"state": batch["observations"]["state"] + 1e-6}}
    with torch.no_grad():
        assert (model.probe(batch) - model.probe(near)).abs().max() < 1e-3

"""Modules of one's own that only have ``forward`` and ``predict`` are trained and deployed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from teamvla.config import Project
from teamvla.errors import ConfigError, ContractError
from teamvla.models import ModelRegistry, PolicyConfig, register_model
from teamvla.models.adapter import AdaptedConfig, AdaptedModel
from teamvla.models.building import build_policy
from teamvla.models.loading import load_policy
from teamvla.models.spaces import Spaces
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig
from teamvla.train import bc_trainer

SMALL = (
    "task.camera.height=32", "task.camera.width=32", "trainer.epochs=1", "trainer.rollout_every=0",
    "trainer.threads=1", "dataset.chunk_size=1", "model.type=mine", "model.arguments.hidden=8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def mine(registries) -> type[nn.Module]:
    """The specification's own example with one more argument, under a name."""

    @register_model("mine")
    class Mine(nn.Module):
        def __init__(self, state_dim: int = 20, action_dim: int = 4, hidden: int = 2) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(state_dim, hidden), nn.Linear(hidden, action_dim))

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            actions = self.net(batch["observations"]["state"])
            loss = nn.functional.mse_loss(actions, batch["actions"])
            return {"predicted_actions": actions, "loss": loss}

        def predict(self, obs: dict[str, Any]) -> Tensor:
            actions: Tensor = self.net(obs["state"])
            return actions

    return Mine


def adapted(kind: type[nn.Module], spaces: Spaces, **settings: Any) -> AdaptedModel:
    register_model("another")(kind)
    config = PolicyConfig.choose({"type": "another"}).model_validate(
        {"type": "another", **settings}
    )
    assert isinstance(config, AdaptedConfig)
    statistics = {
        "actions": {"min": [-2.0] * 4, "max": [2.0] * 4},
        "state": {"mean": [1.0] * 3, "std": [2.0] * 3},
    }
    policy = build_policy(config, spaces, statistics)
    assert isinstance(policy, AdaptedModel)
    return policy.eval()


class Echo(nn.Module):
    """Keeps what it is given, and answers with it."""

    def __init__(self, answer: tuple[int, ...] = (4,), **sizes: int) -> None:
        super().__init__()
        self.sizes, self.answer = sizes, answer
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.batch = batch
        return {"loss": self.weight}

    def predict(self, obs: dict[str, Any], language: list[str]) -> Tensor:
        self.seen, self.told = obs, language
        return torch.full((len(language), *self.answer), 0.5)


def test_it_is_trained_and_deployed_like_any_other(lift_root, tmp_path):
    project = Project.load("train_bc", SMALL).replace("dataset", roots=[str(lift_root)])
    run = bc_trainer.main(project, tmp_path / "run")
    policy, header = load_policy(run.checkpoints / "last.ckpt")
    assert header.meta["config"]["model"]["arguments"] == {"hidden": 8}
    env = make_env(project.section("task", TaskConfig))
    observation, info = env.reset(seed=0)
    seen = {**observation, "instruction": info["instruction"]}
    ours = run.learner.best_weights.eval().predict_action_chunk(seen)
    assert torch.equal(policy.predict_action_chunk(seen), ours)
    policy.reset()
    assert [part.shape for part in policy.act(seen)] == [(7,), (7,)]
    env.close()


def test_its_loss_falls_on_a_batch(mine):
    spaces = Spaces.plain(2, 3)
    config = AdaptedConfig(type="mine")
    policy = build_policy(config, spaces, None)
    state = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    batch = {"observations": {"state": state}, "actions": state[:, :2] * 0.5}
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    first = policy.loss(batch)["loss"].item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = policy.loss(batch)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 * first
    np.testing.assert_allclose(policy.predict({"state": state}), batch["actions"], atol=0.05)


def test_it_is_given_normalised_numbers_and_answers_in_them():
    spaces = Spaces.plain(4, 3, image_size=8)
    policy = adapted(Echo, spaces)
    image = torch.full((2, 1, 3, 8, 8), 255, dtype=torch.uint8)
    seen = {"state": torch.full((2, 3), 3.0), "image": image}
    chunk = policy.predict_action_chunk(seen, ["left", "right"])
    model = policy.model
    assert model.seen["state"].tolist() == [[1.0] * 3] * 2
    assert model.seen["image"].shape == (2, 3, 8, 8)
    assert model.seen["image"].max() == 1
    assert model.told == ["left", "right"]
    assert chunk.tolist() == [[[1.0] * 4]] * 2


def test_chunks_reach_it_with_the_last_action_in_place_of_padding():
    policy = adapted(Echo, Spaces.plain(4, 3), chunk_size=3, arguments={"answer": (3, 4)})
    actions = torch.ones(1, 3, 4)
    actions[:, 2] = float("nan")
    pad = torch.tensor([[False, False, True]])
    policy.loss({"observations": {"state": torch.zeros(1, 3)}, "actions": actions,
                 "action_is_pad": pad})  # fmt: skip
    assert policy.model.batch["actions"].tolist() == [[[0.5] * 4] * 3]
    assert policy.model.batch["action_is_pad"].tolist() == pad.tolist()
    assert policy.model.sizes["chunk_size"] == 3


def test_an_argument_that_its_class_does_not_take_is_refused():
    with pytest.raises(ConfigError, match=r"model.arguments: expected what 'mine' takes.*'depth'"):
        build_policy(AdaptedConfig(type="mine", arguments={"depth": 3}), Spaces.plain(4, 3))


def test_an_answer_of_another_shape_is_refused():
    policy = adapted(Echo, Spaces.plain(4, 3), arguments={"answer": (5,)})
    with pytest.raises(ContractError, match=r"'another'.*shape \[B,1,4\].*\[2, 5\]"):
        policy.predict({"state": torch.zeros(2, 3)})


def test_the_registry_makes_the_bare_module(mine):
    assert type(ModelRegistry.create("mine", state_dim=6)) is mine

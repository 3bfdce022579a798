"""Policies of grid worlds: moves in, moves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from teamvla.config import Project
from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError, ContractError
from teamvla.models import MODELS, ModelRegistry, Policy, PolicyConfig, build_policy
from teamvla.models.mdlm import DiffusionPolicyConfig
from teamvla.models.spaces import Spaces
from teamvla.sim.adapters.task import GymnasiumConfig
from teamvla.sim.tasks import TaskConfig

MOVES, ROWS = 7, 6
STATISTICS = {"actions": {"min": [0.0], "max": [2.0]}, "state": {"mean": [], "std": []}}
#: that learn a small batch in seconds
SMALL = {"hidden_dim": 32, "dropout": 0.0}
MASKED = {"type": "masked", "n_layers": 2, "times_per_sample": 4, "temperature": 0.0, **SMALL}
HEADS = {
    "uniform": MASKED,
    "elbo": MASKED | {"loss_weighting": "elbo"},
    "tokens": MASKED | {"conditioning": "tokens"},
    "autoregressive": {"type": "transformer", "output": "binned", **SMALL},
}


def grid_contract() -> Contract:
    task = Project.load("minigrid_empty").section("task", TaskConfig)
    assert isinstance(task, GymnasiumConfig)
    return task.mapping.contract(task.control_hz, task.camera.height, task.camera.width)


CONTRACT = grid_contract()


def make(chunk_size: int = 6, **changes: Any) -> Policy:
    grid = {"type": "grid", "hidden_dim": 16, "token_dim": 32}
    settings = {"chunk_size": chunk_size, "sensors": {"grid": grid}, **changes}
    config = DiffusionPolicyConfig.model_validate(settings)
    return build_policy(config, CONTRACT, STATISTICS, seed=0)


def make_batch(chunk_size: int = 6, seed: int = 0) -> dict[str, Any]:
    """Random cells and moves; the rows end one step earlier each."""
    dice = torch.Generator().manual_seed(seed)
    lengths = (chunk_size - torch.arange(ROWS)).clamp_min(1)
    return {
        "observations": {
            "grid": torch.randint(0, 6, (ROWS, 7, 7, 3), dtype=torch.uint8, generator=dice),
            "direction": torch.randint(0, 4, (ROWS,), generator=dice),
        },
        "actions": torch.randint(0, MOVES, (ROWS, chunk_size, 1), generator=dice).float(),
        "action_is_pad": torch.arange(chunk_size) >= lengths[:, None],
        "language": ["get to the green goal square"] * ROWS,
    }


def make_observation(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "rgb_top": np.zeros((64, 64, 3), np.uint8),
        "grid": rng.integers(0, 6, (7, 7, 3)).astype(np.uint8),
        "direction": np.int64(rng.integers(4)),
        "instruction": "get to the green goal square",
        "task": "minigrid_empty",
    }


def train(policy: Policy, batch: dict[str, Any], steps: int, lr: float = 5e-3) -> Policy:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.train().parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    return policy.eval()


def test_the_defaults_are_those_that_are_documented():
    policy = build_policy(DiffusionPolicyConfig(), CONTRACT, STATISTICS)
    head, config = policy.heads[0], policy.config.head
    assert (config.hidden_dim, config.n_layers, config.num_heads) == (128, 4, 4)
    assert (config.dropout, config.max_seq_len, config.schedule) == (0.1, 64, "cosine")
    seen = policy.encode(make_batch(49))[0]
    assert seen.tokens.values.shape[1:] == (50, 128), "49 of cells, and their vector"
    asked = torch.zeros(ROWS, 49, 1, dtype=torch.long)
    known = head.condition(seen)
    logits = head.logits(asked, asked == 0, torch.ones(ROWS), known)
    assert logits.shape == (ROWS, 49, 1, MOVES)


@pytest.fixture(scope="module", params=HEADS)
def fitted(request: pytest.FixtureRequest) -> tuple[Policy, dict[str, Any]]:
    batch = make_batch()
    return train(make(head=HEADS[request.param]), batch, steps=180), batch


def test_it_learns_a_batch_to_the_last_move(fitted):
    policy, batch = fitted
    assert float(policy.loss(batch)["accuracy"].detach()) == 1
    found = policy.predict_action_chunk(batch["observations"], batch["language"])
    there = ~batch["action_is_pad"]
    assert torch.equal(found[there].round(), batch["actions"][there])
    assert (found - found.round()).abs().max() < 1e-4, "moves are whole numbers"
    if policy.config.head.type == "masked":  # which learns where episodes end, too
        lasts = batch["actions"].gather(1, there.sum(1).sub(1).view(-1, 1, 1))
        assert torch.equal(found[~there].round(), lasts.expand_as(found)[~there])


def test_what_was_saved_and_loaded_gives_the_same_moves(fitted):
    policy, batch = fitted
    other = build_policy(policy.config, CONTRACT, None, seed=9).eval()
    seen = batch["observations"]
    before = policy.predict_action_chunk(seen)
    assert not torch.equal(other.predict_action_chunk(seen), before)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.predict_action_chunk(seen), before)


def test_it_acts_with_whole_numbers_of_the_contract():
    policy = train(make(head=HEADS["uniform"]), make_batch(), steps=3)
    moves = set()
    for tick in range(12):
        (move,) = policy.act(make_observation(tick))
        assert (move.dtype, move.shape) == (np.int64, ())
        moves.add(int(move))
    assert moves <= set(range(MOVES))


def test_a_move_is_planned_from_what_is_seen_every_few_ticks():
    policy = make(head=HEADS["uniform"]).eval()
    asked = []
    predict = policy.predict_action_chunk
    policy.predict_action_chunk = lambda obs, **told: asked.append(1) or predict(obs, **told)
    for tick in range(9):
        policy.act(make_observation(tick))
    assert len(asked) == 3, "four of each chunk"


@pytest.mark.parametrize("field", ["grid", "direction"])
def test_moves_depend_on_what_is_seen(field):
    policy = train(make(head=HEADS["uniform"]), make_batch(), steps=3)
    batch, other = make_batch(), make_batch(seed=5)
    features = policy.encode(batch)[0].summary
    batch["observations"][field] = other["observations"][field]
    assert (policy.encode(batch)[0].summary - features).abs().max() > 1e-3


def test_without_the_direction_it_says_that_it_is_missing():
    policy, batch = make(), make_batch()
    del batch["observations"]["direction"]
    expected = r"batch\['observations'\]: expected 'direction', which the model was made to use"
    with pytest.raises(ContractError, match=expected):
        policy.loss(batch)


def test_a_direction_that_nobody_senses_is_refused_where_the_policy_is_made():
    signals = tuple(signal for signal in CONTRACT.signals if signal.field != "direction")
    contract = CONTRACT.model_copy(update={"signals": signals})
    with pytest.raises(ConfigError, match="sensors that the robot has, got 'direction'"):
        build_policy(DiffusionPolicyConfig(chunk_size=4), contract, STATISTICS)
    told = {"sensors": {"grid": {"type": "grid", "direction": None}}, "chunk_size": 4}
    config = DiffusionPolicyConfig.model_validate(told)
    policy = build_policy(config, contract, STATISTICS)
    assert policy.loss(make_batch(4))["loss"].isfinite()


# who can choose -----------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["mlp", "diffusion", "flow", "gaussian", "act", "transformer"])
def test_heads_that_give_real_numbers_do_not_choose(head):
    expected = (
        f"^model.head: expected one that chooses among several moves, got '{head}', which gives "
        "real numbers. Take masked, or transformer with output: binned.$"
    )
    with pytest.raises(ConfigError, match=expected):
        make(head={"type": head})


REAL = ("world_model", "smolvla")


@pytest.mark.parametrize("name", REAL)
def test_policies_that_give_real_numbers_do_not_choose(name):
    config = PolicyConfig.choose({"type": name}).model_validate({"type": name})
    with pytest.raises(ConfigError, match=f"^model.type: expected one that chooses.*got '{name}'"):
        build_policy(config, CONTRACT, STATISTICS)


@pytest.mark.parametrize("name", ["single_brain", "msg_passing", "multi_sensor", "vla", "mdlm"])
def test_policies_of_any_parts_choose_with_a_head_for_it(name):
    kind = MODELS.get(name).Config
    head = {"type": "masked", "n_layers": 1, **SMALL}
    config = kind.model_validate({"type": name, "chunk_size": 4, "head": head})
    policy = build_policy(config, CONTRACT, STATISTICS).eval()
    (move,) = policy.act(make_observation())
    assert move.dtype == np.int64
    assert 0 <= int(move) < MOVES


def test_whole_numbers_that_have_no_names_are_no_choice():
    signals = (*CONTRACT.signals[:-1], Signal(field="action", role="action", dtype="int64"))
    contract = CONTRACT.model_copy(update={"signals": signals})
    expected = r"action signal 'action': expected float32, or with choices.*Name what each number"
    with pytest.raises(ContractError, match=expected):
        ModelRegistry.create("mdlm", contract=contract)


def test_a_yes_or_no_is_a_choice_of_two():
    signals = (Signal(field="speed"), Signal(field="brake", role="action", dtype="bool"))
    contract = Contract(embodiment="vehicle", cameras=(), signals=signals)
    assert Spaces.of(contract).choices == {0: 2}


def test_moves_are_scaled_by_their_number_and_not_by_what_was_seen():
    """Statistics tell of moves 0 to 2 alone, and of seven there is none that can't be given."""
    normalizer = make().normalizer
    scaled = normalizer.normalize_actions(torch.arange(7.0).unsqueeze(-1))
    torch.testing.assert_close(scaled[:, 0], torch.linspace(-1, 1, 7))
    torch.testing.assert_close(normalizer.denormalize_actions(scaled)[:, 0], torch.arange(7.0))

"""What policies know of earlier steps: windows, a memory, and that steps and sequences agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_policies import CHUNK, CONTRACT, make
from torch import Tensor

from teamvla.errors import ContractError
from teamvla.models.base import Policy
from teamvla.models.chunking import ExecutionConfig
from teamvla.models.loading import from_arrays, to_arrays
from teamvla.models.registries import TEMPORAL_REGISTRY
from teamvla.models.temporal.base import Temporal
from teamvla.models.temporal.history import HistoryConfig, HistoryEncoder
from teamvla.models.temporal.memory import MemoryBuffer, MemoryConfig

DIM, ACTIONS = 16, 3
PARTS = {
    "history": HistoryConfig(window=3, stride=2, embed_dim=8, num_heads=2, num_layers=1),
    "memory": MemoryConfig(stride=2, slots=8, embed_dim=8, num_heads=2),
}


def _awake(part: torch.nn.Module) -> Any:
    """The same, as if it had been trained: it is no longer the identity."""
    generator = torch.Generator().manual_seed(0)
    for weight in part.parameters():
        with torch.no_grad():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return part.eval()


def _part(name: str) -> Temporal:
    torch.manual_seed(0)
    part: Temporal = _awake(TEMPORAL_REGISTRY.get(name)(PARTS[name], DIM, ACTIONS))
    return part


def _steps(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, count, DIM, generator=generator)
    return features, torch.randn(2, count, ACTIONS, generator=generator)


@pytest.mark.parametrize("name", PARTS)
def test_one_step_after_another_gives_what_the_whole_sequence_gives(name: str) -> None:
    part, (features, actions) = _part(name), _steps(12)
    state, found = part.start(), []
    for step in range(12):
        told, state = part.step(state, features[:1, step], actions[:1, step])
        found.append(told)
    torch.testing.assert_close(torch.stack(found, 1), part(features[:1], actions[:1]))


@pytest.mark.parametrize("name", PARTS)
def test_no_step_knows_of_later_ones(name: str) -> None:
    part, (features, actions) = _part(name), _steps(12)
    before = part(features, actions)
    features[:, 8:], actions[:, 8:] = 5.0, -5.0
    after = part(features, actions)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_a_window_reaches_just_as_far_as_it_says() -> None:
    part, (features, actions) = _part("history"), _steps(12)
    before = part(features, actions)[:, -1]
    features[:, 6] += 5.0  # 5 steps ago: the window has 0, 2 and 4
    assert torch.equal(part(features, actions)[:, -1], before)
    features[:, 7] += 5.0
    assert not torch.allclose(part(features, actions)[:, -1], before)


def test_a_memory_reaches_back_to_the_beginning() -> None:
    part, (features, actions) = _part("memory"), _steps(12)
    before = part(features, actions)[:, -1]
    features[:, 0] += 5.0
    assert not torch.allclose(part(features, actions)[:, -1], before)


def test_past_commands_are_looked_at_only_if_wanted() -> None:
    features, actions = _steps(6)
    settings = PARTS["history"].model_copy(update={"actions": False})
    without = _awake(TEMPORAL_REGISTRY.get("history")(settings, DIM, ACTIONS))
    assert torch.equal(without(features, actions), without(features, actions + 1))
    with_them = _part("history")
    assert not torch.allclose(with_them(features, actions), with_them(features, actions + 1))


def test_a_full_memory_becomes_coarser_and_forgets_nothing() -> None:
    config = MemoryConfig(stride=2, slots=4, embed_dim=8, num_heads=2)
    part = MemoryBuffer(config, DIM, ACTIONS)
    features, actions = _steps(43)
    state = part.start()
    for step in range(43):
        _, state = part.step(state, features[:1, step], actions[:1, step])
    assert (len(state.entries), state.span, state.count) == (2, 16, 11)
    written = part.write(features[:1])
    for at, entry in enumerate(state.entries):
        torch.testing.assert_close(entry, written[:, 16 * at : 16 * (at + 1)].mean(1))
    assert state.open is not None
    torch.testing.assert_close(state.open, written[:, 32:].sum(1))


def test_the_history_encoder_ignores_what_was_before_the_episode() -> None:
    torch.manual_seed(0)
    encoder = _awake(HistoryEncoder(DIM, ACTIONS, 5, 1, window=6, width=8, num_heads=2))
    features, actions = _steps(6)
    mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    context = encoder(features, actions[:, :5], mask)
    features[:, :2], actions[:, :2] = 9.0, 9.0
    assert torch.equal(encoder(features, actions[:, :5], mask), context)
    assert context.shape == (2, 5)


@pytest.mark.parametrize("window", [1, 6])
def test_of_a_history_longer_than_the_window_the_last_steps_count(window: int) -> None:
    torch.manual_seed(0)
    encoder = _awake(HistoryEncoder(DIM, ACTIONS, 5, 1, window=window, width=8, num_heads=2))
    features, actions = _steps(20)
    mask = torch.arange(20) >= torch.tensor([[0], [17]])
    context = encoder(features, actions[:, :19], mask)
    last = features[:, -window:], actions[:, 20 - window : 19], mask[:, -window:]
    assert torch.equal(context, encoder(*last))
    features[:, :-window], actions[:, : 20 - window] = 9.0, 9.0
    assert torch.equal(context, encoder(features, actions[:, :19], mask))


def test_the_specification_s_history_encoder_takes_a_history_of_any_length() -> None:
    features, actions = _steps(20)
    for steps in (1, 16, 20):
        context = HistoryEncoder(DIM, ACTIONS)(features[:, :steps], actions[:, : steps - 1])
        assert context.shape == (2, 256)


def test_a_history_with_as_many_commands_as_observations_is_refused() -> None:
    with pytest.raises(ContractError, match=r"expected 11, one between each two .*, got 12"):
        HistoryEncoder(DIM, ACTIONS)(*_steps(12))


def _policy(kind: str, temporal: dict[str, Any] | None) -> Policy:
    execution = {"replan_every": 2, "stall_steps": 0}
    return make(kind, temporal=temporal, execution=execution, **AS_IT_IS.get(kind, {})).eval()


def _sequences() -> dict[str, Any]:
    """Two sequences of 6 steps; the second has 4 and padding."""
    generator = torch.Generator().manual_seed(2)
    camera, size = CONTRACT.cameras[0], CONTRACT.action_dim
    cameras = len(CONTRACT.cameras)
    shape = (2, 6, cameras, 3, camera.height, camera.width)
    image = torch.randint(0, 255, shape, generator=generator, dtype=torch.uint8)
    there = torch.ones(2, 6, dtype=torch.bool)
    there[1, 4:] = False
    return {
        "observations": {"image": image, "state": torch.randn(2, 6, size, generator=generator)},
        "observation_is_pad": ~there,
        "actions": torch.rand(2, 6, CHUNK, size, generator=generator),
        "action_is_pad": (~there)[:, :, None].expand(-1, -1, CHUNK),
        "language": ["lift it", "put it down"],
    }


KINDS = ("single_brain", "msg_passing", "vla", "act", "openvla", "smolvla")
TEMPORAL: list[dict[str, Any]] = [
    {"type": "history", "window": 3, "embed_dim": 16, "num_heads": 2},
    {"type": "memory", "stride": 2, "embed_dim": 16, "num_heads": 2, "dropout": 0.0},
]
#: small already; other sizes of a part would not fit the others
AS_IT_IS: dict[str, dict[str, Any]] = {
    "openvla": {"architecture": {}, "normalization": {"actions": "min_max"}},
    "smolvla": {"architecture": {}},
}
either = pytest.mark.parametrize("temporal", TEMPORAL, ids=["history", "memory"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_without_memory_takes_sequences_as_so_many_steps(kind: str) -> None:
    policy, batch = _policy(kind, None), _sequences()
    there = ~batch["observation_is_pad"]
    steps = {
        "observations": {name: x[there] for name, x in batch["observations"].items()},
        "actions": batch["actions"][there],
        "language": ["lift it"] * 6 + ["put it down"] * 4,
    }
    torch.testing.assert_close(policy.loss(batch)["loss"], policy.loss(steps)["loss"])


@either
@pytest.mark.parametrize("kind", KINDS)
def test_padding_behind_a_sequence_changes_nothing(kind: str, temporal: dict[str, Any]) -> None:
    policy, batch = _policy(kind, temporal), _sequences()
    before = policy(batch)
    batch["observations"]["state"][1, 4:] = torch.nan
    batch["observations"]["image"][1, 4:] = 7
    batch["actions"][1, 4:] = torch.nan
    after = policy(batch)
    assert torch.equal(before["loss"], after["loss"])
    assert torch.equal(before["predicted_actions"], after["predicted_actions"])


@either
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_the_memory(kind: str, temporal: dict[str, Any]) -> None:
    policy, batch = _policy(kind, temporal), _sequences()
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-2)
    for _ in range(2):  # blocks that start as the identity pass nothing on at first
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        optimizer.step()
    assert policy.recollection is not None
    for name, weight in policy.recollection.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        # Softmax does not see what is added to all keys.
        assert weight.grad.any() or name.endswith("part.key.bias"), name


def _observation(batch: dict[str, Any], step: int) -> dict[str, Any]:
    pictures = batch["observations"]["image"][0, step].permute(0, 2, 3, 1).numpy()
    fields = [camera.field for camera in CONTRACT.cameras]
    observation = dict(zip(fields, pictures, strict=True))
    parts = batch["observations"]["state"][0, step].split(7)
    for arm, part in zip(CONTRACT.arms, parts, strict=True):
        observation |= {f"q_{arm.name}": part[:6].numpy(), f"grip_q_{arm.name}": part[6].numpy()}
    return {**observation, "instruction": batch["language"][0]}


@either
@pytest.mark.parametrize("kind", KINDS)
def test_in_an_episode_it_predicts_as_in_a_sequence(kind: str, temporal: dict[str, Any]) -> None:
    policy, batch = _policy(kind, temporal), _sequences()
    policy.set_execution(ExecutionConfig(mode="receding", n_action_steps=1, stall_steps=0))
    commands = [np.concatenate(policy.act(_observation(batch, step))) for step in range(6)]
    batch["actions"][0, :, 0] = torch.from_numpy(np.stack(commands))
    expected = policy(batch)["predicted_actions"][0, :, 0]
    np.testing.assert_allclose(np.stack(commands), expected.detach().numpy(), atol=1e-5)


@either
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recalled_is_saved_and_loaded(kind: str, temporal: dict[str, Any]) -> None:
    policy, other, batch = _policy(kind, temporal), _policy(kind, temporal), _sequences()
    _awake(policy)
    other.load_state_dict(from_arrays("model", to_arrays("model", policy.state_dict())))
    found = other(batch)["predicted_actions"]
    assert torch.equal(found, policy(batch)["predicted_actions"])
    assert policy.recollection is not None
    _awake(policy.recollection)
    assert not torch.equal(found, policy(batch)["predicted_actions"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_memory_there_is_nothing_of_it_and_the_other_weights_are_the_same(
    kind: str,
) -> None:
    without, with_it = (_policy(kind, part).state_dict() for part in (None, TEMPORAL[1]))
    more = with_it.keys() - without.keys()
    assert not without.keys() - with_it.keys()
    assert any(name.startswith("recollection.") for name in more)
    if kind in AS_IT_IS:
        assert {name.partition(".")[0] for name in more} == {"recollection", "from_memory"}
        assert all(torch.equal(weight, with_it[name]) for name, weight in without.items())


@either
@pytest.mark.parametrize("kind", ["single_brain", *AS_IT_IS])
def test_what_was_seen_earlier_changes_what_is_done(kind: str, temporal: dict[str, Any]) -> None:
    policy, batch = _policy(kind, temporal), _sequences()
    _awake(policy)

    def act(first: int) -> list[float]:
        policy.reset()
        steps = [policy.act(_observation(batch, step)) for step in (first, first, 2)]
        return list(np.concatenate(steps[-1]))

    assert act(0) == act(0)
    assert act(0) != act(1)


def test_training_forgets_entries_at_random() -> None:
    config = MemoryConfig(stride=2, slots=8, embed_dim=8, num_heads=2, dropout=0.5)
    torch.manual_seed(0)
    part, (features, actions) = MemoryBuffer(config, DIM, ACTIONS), _steps(12)
    part.train()
    assert not torch.equal(part(features, actions), part(features, actions))
    part.eval()
    assert torch.equal(part(features, actions), part(features, actions))


@either
@pytest.mark.parametrize("kind", ["single_brain", *AS_IT_IS])
def test_training_may_learn_from_a_few_steps_and_remember_them_all(
    kind: str, temporal: dict[str, Any]
) -> None:
    policy, batch = _policy(kind, {**temporal, "steps": 2}), _sequences()
    seen: list[int] = []
    vision: Any = policy.vision
    vision.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    policy.train().loss(batch)["loss"].backward()
    assert seen == [2 * 2 * len(CONTRACT.cameras)]
    torch.manual_seed(0)
    before = policy.loss(batch)["loss"]
    batch["observations"]["image"][:, 0] += 90  # at the first step, which all others remember
    torch.manual_seed(0)
    assert policy.loss(batch)["loss"] != before
    seen.clear()
    policy.eval().loss(batch)
    assert seen == [10 * len(CONTRACT.cameras)]

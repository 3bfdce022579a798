"""The trainer of masked diffusion on batches of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_policies import make, make_batch

from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError, TeamVLAError
from teamvla.models import build_policy
from teamvla.models.mdlm import DiffusionPolicyConfig
from teamvla.train.mdlm_trainer import MaskedDiffusionTrainer
from teamvla.train.schedulers import OptimizerConfig, SchedulerConfig

CHUNK, MOVES, RATE = 4, ("left", "right", "forward"), 2e-3
WORLD = Contract(
    embodiment="grid",
    control_hz=5,
    arms=(),
    cameras=(),
    signals=(
        Signal(field="grid", dtype="uint8", shape=(7, 7, 3)),
        Signal(field="direction", dtype="int64", choices=("right", "down", "left", "up")),
        Signal(field="action", role="action", dtype="int64", choices=MOVES),
    ),
)


def policy() -> Any:
    head = {"type": "masked", "hidden_dim": 64, "n_layers": 1, "num_heads": 2, "dropout": 0.0}
    settings = {"type": "mdlm", "chunk_size": CHUNK, "head": head}
    return build_policy(DiffusionPolicyConfig.model_validate(settings), WORLD)


def batches(count: int = 4, rows: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """The moves follow from what the cells show, and so does whether a chunk ends early."""
    chance = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        moves = torch.randint(0, len(MOVES), (rows,), generator=chance)
        is_pad = torch.zeros(rows, CHUNK, dtype=torch.bool)
        is_pad[moves == 0, -1] = True
        grid = moves.to(torch.uint8)[:, None, None, None].expand(rows, 7, 7, 3)
        made.append({
            "observations": {"grid": grid, "direction": torch.zeros(rows, dtype=torch.int64)},
            "actions": moves[:, None, None].expand(rows, CHUNK, 1).float(),
            "action_is_pad": is_pad,
            "language": [""] * rows,
        })  # fmt: skip
    return made


def trainer(**changes: Any) -> MaskedDiffusionTrainer:
    torch.manual_seed(0)  # of the maskings
    return MaskedDiffusionTrainer(policy(), OptimizerConfig(lr=RATE), **changes)


def test_it_learns_what_follows_from_what_is_seen():
    made, told = trainer(), []
    kept = made.fit(batches(), batches(1, seed=1), 20, lambda *row: told.append(row))
    epochs, trained, validated = zip(*told, strict=True)
    assert epochs == tuple(range(1, 21))
    assert min(epoch["loss"] for epoch in trained) < 0.3 * trained[0]["loss"]
    assert kept["loss"] < 0.3 * validated[0]["loss"]
    assert trained[0]["accuracy"] < 0.6
    assert kept["accuracy"] > 0.85
    [batch] = batches(1, rows=6, seed=2)
    actions = made.learner.policy.eval().predict_action_chunk(batch["observations"])
    assert torch.equal(torch.as_tensor(actions)[:, 0, 0].float(), batch["actions"][:, 0, 0])


def test_each_epoch_tells_the_share_of_masked_tokens_and_of_those_told_right():
    made = trainer()
    trained, validated = made.train_epoch(batches(24)), made.validate(batches(24, seed=1))
    assert 0.4 < trained["accuracy"] < validated["accuracy"], "it begins with guesses"
    for metrics in (trained, validated):
        assert 0.5 < metrics["mask_ratio"] < 0.75  # 2 / pi on average, of the cosine
    assert trained["lr"] == RATE
    assert trained["cross_entropy"] < torch.tensor(len(MOVES)).log() + 0.1


def test_the_weights_that_validated_best_are_kept():
    made = trainer(scheduler=SchedulerConfig(type="constant", warmup_steps=0))
    held_out, seen, weights = batches(2, seed=1), [], []

    def on_epoch(epoch: int, trained: dict[str, float], validated: dict[str, float]) -> None:
        seen.append(validated["loss"])
        weights.append({k: v.clone() for k, v in made.learner.policy.state_dict().items()})
        if epoch == 3:  # from here on it gets worse
            made.learner.optimizer.param_groups[0]["lr"] = 1.0

    kept = made.fit(batches(), held_out, 6, on_epoch)
    best = seen.index(min(seen))
    assert best < 5
    assert kept["loss"] == seen[best]
    for name, tensor in made.learner.policy.state_dict().items():
        assert torch.equal(tensor, weights[best][name]), name
    assert made.validate(held_out)["loss"] == pytest.approx(seen[best])


class Drawn:
    """Other batches in each pass, as of a loader that shuffles."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.passes.append(len(self.passes))
        yield from batches(1, rows=2, seed=self.passes[-1])


def test_each_epoch_goes_through_a_loader_anew():
    train, val = Drawn(), Drawn()
    trainer().fit(train, val, 3)
    assert train.passes == val.passes == [0, 1, 2]


def test_batches_that_come_only_once_serve_every_epoch():
    told = []
    trainer().fit(iter(batches(2)), iter(batches(1)), 3, lambda *row: told.append(row))
    assert [epoch for epoch, _, _ in told] == [1, 2, 3]


def test_the_rate_falls_where_the_loss_gets_no_better():
    made = trainer(scheduler=SchedulerConfig(type="plateau", patience=1, factor=0.1))
    [held_out] = batches(1, seed=1)
    rates = []
    for _ in range(4):  # untrained, it validates alike each time
        made.validate([held_out])
        rates.append(made.learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([RATE, RATE, 0.1 * RATE, 0.1 * RATE])


def test_a_schedule_over_steps_ends_at_the_last_of_them():
    schedule = SchedulerConfig(type="cosine_with_warmup", warmup_steps=0)
    made = trainer(scheduler=schedule, total_steps=8)
    assert 0 < made.train_epoch(batches(4))["lr"] < RATE
    assert made.train_epoch(batches(4))["lr"] == 0


def test_validating_trains_nothing():
    made = trainer()
    before = {k: v.clone() for k, v in made.learner.policy.state_dict().items()}
    made.validate(batches(1))
    assert all(torch.equal(before[k], v) for k, v in made.learner.policy.state_dict().items())
    assert made.learner.state.step == 0


def test_a_loss_that_is_no_number_ends_the_training():
    made = trainer()
    with torch.no_grad():
        next(made.learner.policy.parameters()).fill_(float("nan"))
    with pytest.raises(TeamVLAError, match="a training epoch: expected a finite loss, got nan"):
        made.train_epoch(batches(1))
    with pytest.raises(TeamVLAError, match="a validation: expected a finite loss, got nan"):
        made.validate(batches(1))


def test_no_batches_are_refused():
    for use in (trainer().train_epoch, trainer().validate):
        with pytest.raises(ConfigError, match="batches: expected at least one, got none"):
            use([])


def test_a_two_arm_policy_with_the_head_is_trained_too():
    torch.manual_seed(0)
    made = MaskedDiffusionTrainer(make("single_brain", head="masked"), OptimizerConfig(lr=1e-2))
    losses = [made.train_epoch([make_batch()])["loss"] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("head", ["mlp", "diffusion"])
def test_a_policy_with_another_head_is_refused(head):
    with pytest.raises(ConfigError, match="policy: expected one with the head masked, got "):
        MaskedDiffusionTrainer(make("single_brain", head=head))

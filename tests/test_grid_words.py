"""Cells of a grid world that look at the words of the instruction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from teamvla.contract import Contract, Signal
from teamvla.models import Policy
from teamvla.models.mdlm import DiffusionPolicy, DiffusionPolicyConfig

BALL, KEY = 6, 5
INSTRUCTIONS = ("go to the ball", "go to the key")
WORLD = Contract(
    embodiment="grid",
    control_hz=5,
    arms=(),
    cameras=(),
    signals=(
        Signal(field="grid", dtype="uint8", shape=(3, 3, 3)),
        Signal(field="action", role="action", dtype="int64", choices=("left", "right")),
    ),
)
OWN = WORLD.model_copy(
    update={"signals": (*WORLD.signals, Signal(field="wind", dtype="float32", shape=(-1, 2)))}
)
STATISTICS = {
    "actions": {"min": [0.0], "max": [1.0]},
    "state": {"mean": [], "std": []},
    "words": dict.fromkeys(("go", "to", "the", "ball", "key"), 1),
}
WORDS = {
    "type": "words", "embed_dim": 64, "num_layers": 0, "num_heads": 2, "vocab_size": 8,
    "word_dropout": 0.0,
}  # fmt: skip
HEAD = {
    "type": "masked", "hidden_dim": 32, "n_layers": 1, "num_heads": 2, "dropout": 0.0,
    "temperature": 0.0, "times_per_sample": 8,
}  # fmt: skip
GRID = {"type": "grid", "hidden_dim": 64, "token_dim": 64, "num_blocks": 1, "direction": None}


def make(
    language: dict[str, Any] | None, contract: Contract = WORLD, **own: nn.Module
) -> DiffusionPolicy:
    settings = {"chunk_size": 1, "language": language, "sensors": {"grid": GRID}, "head": HEAD}
    settings |= {"fusion": {"type": "pooled", "embed_dim": 64}}
    settings |= {"execution": {"mode": "receding", "n_action_steps": 1}}
    torch.manual_seed(0)
    config = DiffusionPolicyConfig.model_validate(settings)
    return DiffusionPolicy(config, contract, STATISTICS, sensor_encoders=own)


def worlds() -> dict[str, Any]:
    """A ball on one side and a key on the other, either way and with either instruction."""
    cells = torch.zeros(2, 3, 3, 3, dtype=torch.uint8)
    cells[..., 0] = 1
    for row, (left, right) in enumerate([(BALL, KEY), (KEY, BALL)]):
        cells[row, 0, 1, 0], cells[row, 2, 1, 0] = left, right
    moves = torch.tensor([0, 1, 1, 0])  # to the ball, to the key
    return {
        "observations": {"grid": cells.repeat(2, 1, 1, 1)},
        "actions": moves[:, None, None].float(),
        "language": [words for words in INSTRUCTIONS for _ in range(2)],
    }


def told_right(language: dict[str, Any] | None) -> float:
    """The share of right moves, when it has learned."""
    policy, batch = make(language), worlds()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(policy.train().parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        optimizer.step()
    found = policy.eval().predict_action_chunk(batch["observations"], batch["language"])
    return float((found.round() == batch["actions"]).float().mean())


def test_which_of_two_things_is_named_is_learned_from_the_words():
    assert told_right(WORDS) == 1


def test_without_the_words_nobody_knows_which():
    assert told_right(None) == 0.5


def weights(policy: Policy) -> set[str]:
    return {name for name in policy.state_dict() if name.startswith("sensors.")}


def test_who_reads_no_instructions_has_no_weights_to_look_at_them():
    deaf, listening = weights(make(None)), weights(make(WORDS))
    assert deaf < listening
    assert any(".words." in name for name in listening - deaf)
    assert not any(".words." in name for name in deaf)


def test_what_a_cell_tells_depends_on_the_words_and_not_on_their_padding():
    policy, batch = make(WORDS).eval(), worlds()
    cells = batch["observations"]["grid"][:1].float()

    def seen(*instructions: str) -> Tensor:
        words = policy.language.encode(list(instructions))
        encoder = policy.sensors.encoders["grid"]
        return encoder.encode(cells.expand(len(instructions), -1, -1, -1), words=words).vector

    ball, key = seen(*INSTRUCTIONS)
    assert (ball - key).abs().max() > 1e-4
    # Beside a longer instruction one is padded.
    padded = seen(INSTRUCTIONS[0], "go to the ball or go to the key")[0]
    torch.testing.assert_close(padded, ball)


class Own(nn.Module):
    """Somebody's own encoder, which knows of no words."""

    output_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, readings: Tensor) -> Tensor:
        return self.linear(readings).mean(1)


@pytest.mark.parametrize("listening", [True, False])
def test_encoders_that_hear_nothing_are_as_ever_beside_one_that_does(listening):
    own = Own()
    policy = make(WORDS if listening else None, OWN, wind=own).eval()
    wind = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    seen = {"grid": worlds()["observations"]["grid"][:2], "wind": wind}
    words = policy.language.encode(list(INSTRUCTIONS)) if listening else None
    assert torch.equal(policy.sensors(seen, 2, words)["wind"].vector, own(wind))
    assert policy.predict_action_chunk(seen, list(INSTRUCTIONS)).isfinite().all()

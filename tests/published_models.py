"""Batches for the two arms, and tiny models of published families with their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from teamvla.models.base import Policy
from teamvla.sim.scene import two_arm_contract

SIZE, CHUNK, DIM = 32, 4, 14
CONTRACT = two_arm_contract(SIZE, SIZE)
STATISTICS = {
    "actions": {
        "min": [-1.0] * DIM, "max": [1.0] * DIM, "q01": [-0.9] * DIM, "q99": [0.9] * DIM,
    },
    "state": {"mean": [0.0] * DIM, "std": [1.0] * DIM},
}  # fmt: skip
TEXTS = ("lift the tray", "hold", "lower the tray slowly")


def make_batch(rows: int = 3, seed: int = 0) -> dict[str, Any]:
    """Random pictures, states and joint targets; the first row ends in padding."""
    random = torch.Generator().manual_seed(seed)
    actions = torch.rand(rows, CHUNK, DIM, generator=random) * 1.6 - 0.8
    actions[..., [6, 13]] = (actions[..., [6, 13]] > 0).float()
    is_pad = torch.zeros(rows, CHUNK, dtype=torch.bool)
    is_pad[0, CHUNK // 2 :] = True
    shape = (rows, 2, 3, SIZE, SIZE)
    return {
        "observations": {
            "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=random),
            "state": torch.randn(rows, DIM, generator=random),
        },
        "actions": actions,
        "action_is_pad": is_pad,
        "language": [TEXTS[row % 3] for row in range(rows)],
    }


def predicted(policy: Policy, batch: dict[str, Any]) -> torch.Tensor:
    return policy.predict_action_chunk(batch["observations"], batch["language"])


def row_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """A batch of one row of another."""
    seen = {name: value[[row]] for name, value in batch["observations"].items()}
    return {"observations": seen, "language": [batch["language"][row]]}


def train(policy: Policy, batch: dict[str, Any], steps: int, lr: float = 3e-3) -> Policy:
    """AdamW with a cosine; the policy is then in evaluation mode."""
    policy.train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return policy.eval()


def mistake(policy: Policy, batch: dict[str, Any]) -> float:
    """Mean error where the chunk is no padding."""
    kept = ~batch["action_is_pad"].unsqueeze(-1)
    wrong = (predicted(policy, batch) - batch["actions"]).abs() * kept
    return float(wrong.sum() / (kept.sum() * DIM))


def write_tokenizer(folder: Path, words: str) -> Path:
    """A ``tokenizer.json`` that knows some words, and puts a begin token first as Llama's does."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["<unk>", "<s>", "</s>", *dict.fromkeys(words.split())]
    vocabulary = {word: number for number, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder

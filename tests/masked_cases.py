"""What the tests of the masked head share. Shapes: B batch, K chunk, D action."""

from __future__ import annotations

from typing import Any

import torch
from head_cases import look
from torch import Generator, Tensor

from teamvla.models.heads.masked import MaskedDiffusionHead

WIDTH, ACTION, CHUNK, ROWS = 12, 3, 5, 4
SMALL = {"hidden_dim": 16, "n_layers": 1, "num_heads": 2, "num_bins": 6, "dropout": 0.0}
#: the second number is one of four moves
CHOICES = {1: 4}


def make(chunk_size: int = CHUNK, **settings: Any) -> MaskedDiffusionHead:
    torch.manual_seed(0)
    head = MaskedDiffusionHead(WIDTH, ACTION, chunk_size, choices=CHOICES, **{**SMALL, **settings})
    with torch.no_grad():  # as if trained: initial weights hold all bins alike
        for weight in head.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return head.eval()


def chunks(chunk_size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Actions that are centres of bins; the first row ends behind three."""
    bins = torch.randint(0, 4, (ROWS, chunk_size, ACTION), generator=Generator().manual_seed(2))
    is_pad = torch.zeros(ROWS, chunk_size, dtype=torch.bool)
    is_pad[0, 3:] = True
    return make(chunk_size).bins.centres(bins), is_pad


def asked(head: MaskedDiffusionHead, seed: int = 3) -> dict[str, Tensor]:
    """Arguments of :meth:`MaskedDiffusionHead.logits`."""
    dice = Generator().manual_seed(seed)
    shape = (ROWS, head.chunk_size, ACTION)
    return {
        "bins": torch.randint(0, 4, shape, generator=dice),
        "masked": torch.rand(shape, generator=dice) < 0.5,
        "times": torch.rand(ROWS, generator=dice),
    }


def learn(head: MaskedDiffusionHead, target: Tensor, is_pad: Tensor, steps: int = 250) -> None:
    """Train on one batch of what :func:`look` gives; leaves the head evaluating."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(head.train().parameters(), lr=1e-2)
    features = look(len(target))
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(features, target, is_pad).total.backward()
        optimizer.step()
    head.eval()

"""What the tests of the heads that sample share. Shapes: B batch, K chunk, D action."""

from __future__ import annotations

import torch

from teamvla.models.features import Features, Tokens
from teamvla.models.registries import ACTION_HEAD_REGISTRY

WIDTH, CHUNK, ACTION = 12, 5, 3
SMALL = {"hidden_dim": 32, "n_layers": 1}
TRANSFORMER = {"denoiser": "transformer", "num_heads": 2}


def make(name, settings, **sizes):
    torch.manual_seed(0)
    sizes = {"input_dim": WIDTH, "action_dim": ACTION, "chunk_size": CHUNK, **sizes}
    return ACTION_HEAD_REGISTRY.get(name)(**sizes, **{**SMALL, **settings})


def look(rows, seed=1, tokens=4):
    """Features with different masks."""
    dice = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, tokens, WIDTH, generator=dice)
    mask = torch.arange(tokens) <= torch.arange(rows).unsqueeze(1) % tokens
    return Features(torch.randn(rows, WIDTH, generator=dice), Tokens(values, mask))


def row(features, place):
    one = slice(place, place + 1)
    tokens = Tokens(features.tokens.values[one], features.tokens.mask[one])
    return Features(features.summary[one], tokens)


def chunks(rows, seed=2):
    dice = torch.Generator().manual_seed(seed)
    return torch.rand(rows, CHUNK, ACTION, generator=dice) * 1.8 - 0.9


def padding(rows):
    """The first row none, the last all but the first action."""
    return torch.arange(CHUNK) > torch.linspace(CHUNK, 0, rows).long().unsqueeze(1)


def train(head, features, target, steps, rate=3e-3):
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    is_pad = torch.zeros(target.shape[:2], dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(features, target, is_pad).total.backward()
        optimizer.step()
        schedule.step()
    return head.eval()

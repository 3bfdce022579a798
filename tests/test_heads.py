"""What every head promises to who calls it without a policy around it."""

from __future__ import annotations

import pytest
import torch
from small_policies import HEADS, small_head

from teamvla.errors import ConfigError
from teamvla.models import ACTION_HEAD_REGISTRY
from teamvla.models.features import Features
from teamvla.models.heads.base import ActionHead

WIDTH, ACTION, CHUNK = 16, 3, 4
every_head = pytest.mark.parametrize("name", HEADS)


def make(name: str, **sizes: int) -> ActionHead:
    torch.manual_seed(0)
    return ACTION_HEAD_REGISTRY.get(name)(WIDTH, ACTION, **sizes, **small_head(name)).eval()


@every_head
def test_it_samples_from_a_plain_summary(name):
    head, summary = make(name, chunk_size=CHUNK), torch.randn(2, WIDTH)
    sampled = head.sample(summary)
    assert sampled.shape == (2, CHUNK, ACTION)
    assert torch.equal(sampled, head.sample(Features.of(summary)))
    drawn = [head.sample(seen, generator=torch.Generator().manual_seed(1))
             for seen in (summary, Features.of(summary))]  # fmt: skip
    assert torch.equal(*drawn)


@every_head
def test_a_horizon_is_a_chunk_size(name):
    assert make(name, horizon=CHUNK).sample(torch.randn(2, WIDTH)).shape == (2, CHUNK, ACTION)
    with pytest.raises(ConfigError, match="horizon: another spelling of chunk_size: give one"):
        make(name, chunk_size=CHUNK, horizon=2)

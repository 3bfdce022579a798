"""A root of episodes, half of them with findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_steps import rewrite, write_episode

STEPS = 4


@pytest.fixture
def mixed_root(tmp_path: Path) -> Path:
    """Ten episodes; the odd ones have two findings each."""
    root = tmp_path / "mixed"
    for number in range(10):
        path = write_episode(root, STEPS, f"episode-{number}")
        if number % 2:
            grips = dict.fromkeys(("grip_a", "grip_b"), np.float32([2, 0, 0, 0]))
            rewrite(path, **grips)
        rewrite(path, timestamp=np.arange(STEPS) / 20 + number)  # no copies of each other
    return root

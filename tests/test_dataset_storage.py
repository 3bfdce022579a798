"""Samples from every form of the cache: several shards, JPEG, cold pictures, worker processes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import make_step
from synthetic import write_episode, write_episodes

from teamvla.data import (
    EpisodeWriter,
    IndexConfig,
    MultiTaskDataset,
    build_index,
    make_dataloader,
)
from teamvla.data.samplers import EpochBatchSampler
from teamvla.errors import ContractError


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    return {"roots": [str(root)], "split": "all", "chunk_size": 4, "batch_size": 8, **changes}


# --- several shards ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes that were added in three goes, each to a shard of its own."""
    root = tmp_path_factory.mktemp("grown")
    for number, instruction in enumerate(("lift the tray", "raise it", "lift the tray")):
        for task in ("lift", "handoff"):
            name = f"e{2 - number}"  # the order of paths is not that of the shards
            write_episode(root, name, 3 + number, task=task, seed=number, instruction=instruction)
        build_index(root)
    return root


@pytest.mark.parametrize("history", [1, 3])
def test_several_shards_give_the_batches_of_one(grown: Path, tmp_path: Path, history: int) -> None:
    build_index(grown, tmp_path / "whole")
    several = MultiTaskDataset(settings(grown, n_obs_steps=history))
    one = MultiTaskDataset(settings(grown, n_obs_steps=history, index=str(tmp_path / "whole")))
    assert (len(several.index.cache.shards), len(one.index.cache.shards)) == (3, 1)
    rows = np.random.default_rng(0).permutation(len(one))
    batch, expected = several.__getitems__(rows), one.__getitems__(rows)
    assert batch.keys() == expected.keys()
    for name in ("image", "state"):
        np.testing.assert_array_equal(batch["observations"][name], expected["observations"][name])
    for name in ("actions", "action_is_pad", "index", "language"):
        np.testing.assert_array_equal(batch[name], expected[name], err_msg=name)
    assert len(set(batch["language"])) == 2


def test_rows_of_several_shards_come_in_the_order_asked_for(grown: Path) -> None:
    dataset = MultiTaskDataset(settings(grown))
    rows = np.random.default_rng(1).integers(0, len(dataset), 40)
    batch = dataset.__getitems__(rows)
    for place, row in enumerate(rows.tolist()):
        sample = dataset[row]
        np.testing.assert_array_equal(batch["actions"][place], sample["actions"])
        np.testing.assert_array_equal(
            batch["observations"]["image"][place], sample["observations"]["image"]
        )


# --- reading ahead ----------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_reading_ahead_changes_no_batch(grown: Path, tmp_path: Path, codec: str) -> None:
    folder = str(tmp_path / codec)
    build_index(grown, folder, IndexConfig(codec=codec))
    ahead, plain = (MultiTaskDataset(settings(grown, index=folder)) for _ in range(2))
    ahead._disk.noticed = lambda: True  # type: ignore[method-assign]
    plain._disk.noticed = lambda: False  # type: ignore[method-assign]
    for rows in EpochBatchSampler(len(plain), 8, drop_last=False):
        pictures = [data.__getitems__(rows)["observations"]["image"] for data in (ahead, plain)]
        np.testing.assert_array_equal(*pictures)


def test_workers_are_told_what_comes_next_and_give_the_same_batches(grown: Path) -> None:
    torch = pytest.importorskip("torch")
    sent: list[int] = []

    def tell(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "process": _prefetched(watched, sent)}

    here = list(make_dataloader(settings(grown)))
    loader = make_dataloader(settings(grown, num_workers=2), [tell])
    watched = loader.dataset.index.cache
    for batch, expected in zip(loader, here, strict=True):
        assert torch.equal(batch["index"], expected["index"])
        assert torch.equal(batch["observations"]["image"], expected["observations"]["image"])


# --- JPEG -------------------------------------------------------------------------------

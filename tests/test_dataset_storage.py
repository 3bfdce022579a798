"""Samples from every form of the cache: several shards, JPEG, cold pictures, worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import make_step
from synthetic import write_episode

from teamvla.config import Project
from teamvla.data import (
    EpisodeWriter,
    IndexConfig,
    MultiTaskDataset,
    build_index,
    make_dataloader,
)
from teamvla.data.samplers import EpochBatchSampler
from teamvla.errors import ContractError
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig


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


def test_workers_read_ahead_and_give_the_same_batches(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    here = list(make_dataloader(settings(grown)))
    loader = make_dataloader(settings(grown, num_workers=2))
    cache, asked = loader.dataset.index.cache, tmp_path / "asked"
    prefetch = cache.prefetch

    def noted(rows: np.ndarray) -> None:
        with asked.open("a") as file:  # workers are forked: they share files, not lists
            file.write("".join(f"{row}\n" for row in rows.tolist()))
        prefetch(rows)

    monkeypatch.setattr(cache, "prefetch", noted)
    monkeypatch.setattr(loader.dataset._disk, "noticed", lambda: True)
    for batch, expected in zip(loader, here, strict=True):
        assert torch.equal(batch["index"], expected["index"])
        assert torch.equal(batch["observations"]["image"], expected["observations"]["image"])
    # Each row once for its own batch, and all but the first batch's once more before that.
    times = np.unique([int(row) for row in asked.read_text().split()], return_counts=True)[1]
    assert sorted(times) == [1] * 8 + [2] * (len(loader.dataset) - 8)


# --- JPEG -------------------------------------------------------------------------------


def test_jpeg_of_a_large_rendered_picture_is_above_35_db(tmp_path: Path) -> None:
    project = Project.load("lift", ["task.camera.height=224", "task.camera.width=224"])
    env = make_env(project.section("task", TaskConfig))
    observation, _ = env.reset(seed=0)
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        for step in range(3):
            shown = {f"rgb_{arm}": np.roll(observation[f"rgb_{arm}"], step, 0) for arm in "ab"}
            writer.add_step({**make_step(step), "task": "lift", **shown})
        writer.end_episode(success=True)
    build_index(tmp_path, tmp_path / "jpeg", IndexConfig(codec="jpeg", jpeg_quality=95))
    raw = MultiTaskDataset(settings(tmp_path))
    lossy = MultiTaskDataset(settings(tmp_path, index=str(tmp_path / "jpeg")))
    exact, near = (data.__getitems__([2, 0])["observations"]["image"] for data in (raw, lossy))
    assert near.shape == exact.shape == (2, 2, 3, 224, 224)
    errors = ((near.astype(float) - exact) ** 2).mean(axis=(2, 3, 4))
    assert (errors > 0).all()
    assert (10 * np.log10(255**2 / errors) > 35).all()


# --- data without a contract ------------------------------------------------------------


def test_mirroring_data_without_a_contract_is_refused_at_the_start(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        writer.add_step({**make_step(), "task": "lift"})
        writer.end_episode(success=True)
    with pytest.raises(ContractError, match=r"transform mirror: expected a contract, got none"):
        MultiTaskDataset(settings(tmp_path, transforms=[{"type": "mirror"}]))

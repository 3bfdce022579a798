"""Samples that are several steps in a row: where they stand, what is padding, what shares draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_contract, make_steps, write_episode

from teamvla.data import DatasetConfig, EpisodeWriter, MultiTaskDataset, make_dataloader
from teamvla.errors import ConfigError

LENGTHS = {"e0": 5, "e1": 4, "e2": 9}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with the same lengths; each step has its number for a reward."""
    folder = tmp_path_factory.mktemp("episodes")
    contract = make_contract()
    for task in ("handoff", "lift"):
        for seed, (name, steps) in enumerate(LENGTHS.items()):
            meta = {"task": task, "episode_id": name, "contract": contract.to_dict()}
            with EpisodeWriter(folder) as writer:
                writer.start_episode({**meta, "contract_digest": contract.digest})
                for number, step in enumerate(make_steps(steps, seed)):
                    words = {"task": task, "instruction": f"{task} {name} {number}"}
                    writer.add_step({**step, **words, "reward": float(number)})
                writer.end_episode(success=True)
    return folder


def opened(root: Path, **changes: Any) -> MultiTaskDataset:
    fields = ("image", "state", "actions", "language", "reward")
    base = {"roots": [str(root)], "split": "all", "chunk_size": 3, "fields": fields}
    return MultiTaskDataset({**base, **changes})


@given(length=st.integers(1, 11), chunk=st.integers(1, 4))
def test_a_sequence_is_its_steps_and_then_the_last_again(
    root: Path, length: int, chunk: int
) -> None:
    plain = opened(root, chunk_size=chunk)
    dataset = opened(root, chunk_size=chunk, sequence_length=length)
    rows = {plain.where(row): row for row in range(len(plain))}
    assert len(dataset) == 2 * sum(-(-steps // length) for steps in LENGTHS.values())
    batch = dataset.__getitems__(range(len(dataset)))
    assert batch["actions"].shape == (len(dataset), length, chunk, 14)
    for at in range(len(dataset)):
        path, first = dataset.where(at)
        assert first % length == 0
        assert batch["language"][at] == plain[rows[path, first]]["language"]
        for ahead in range(length):
            steps = LENGTHS[path.stem]
            step = plain[rows[path, min(first + ahead, steps - 1)]]
            for name in ("image", "state"):
                found = batch["observations"][name][at, ahead]
                np.testing.assert_array_equal(found, step["observations"][name])
            np.testing.assert_array_equal(batch["actions"][at, ahead], step["actions"])
            assert batch["reward"][at, ahead] == step["reward"]
            gone = first + ahead >= steps
            assert batch["observation_is_pad"][at, ahead] == gone
            expected = step["action_is_pad"] | gone
            np.testing.assert_array_equal(batch["action_is_pad"][at, ahead], expected)


def test_every_step_is_in_one_sequence_once(root: Path) -> None:
    dataset = opened(root, sequence_length=4)
    batch = dataset.__getitems__(range(len(dataset)))
    seen = batch["observations"]["state"][~batch["observation_is_pad"]]
    np.testing.assert_array_equal(seen, opened(root).field("state")[:])


def test_sequences_of_one_step_keep_the_time_axis(root: Path) -> None:
    sample = opened(root, sequence_length=1)[0]
    assert sample["observations"]["state"].shape == (1, 14)
    assert sample["observation_is_pad"].tolist() == [False]


def test_tasks_limits_and_instructions_count_sequences(root: Path) -> None:
    dataset = opened(root, sequence_length=4)
    tasks = dataset.tasks()
    assert {name: len(rows) for name, rows in tasks.items()} == {"handoff": 6, "lift": 6}
    assert all(dataset.where(row)[0].parent.name == "lift" for row in tasks["lift"])
    few = opened(root, sequence_length=4, tasks=["lift"], limit_per_task=1)
    assert [few.where(row)[1] for row in range(len(few))] == [0, 4]
    assert few.instructions == ["lift e0 0", "lift e0 4"]
    assert "2 sequences of 4 steps, tasks lift; image uint8[4, 2, 3, 8, 10]" in repr(few)
    with pytest.raises(IndexError, match="the dataset has 2"):
        few[2]


def test_a_view_of_a_field_has_the_values_of_the_sequences(root: Path) -> None:
    dataset = opened(root, sequence_length=4)
    batch = dataset.__getitems__(range(len(dataset)))
    for name in ("state", "actions", "reward", "language"):
        expected = {**batch, **batch["observations"]}[name]
        np.testing.assert_array_equal(dataset.field(name)[:], expected)


def test_a_mixture_draws_sequences(root: Path) -> None:
    pytest.importorskip("torch")
    base = {"roots": [str(root)], "split": "all", "chunk_size": 1, "batch_size": 4}
    weights = {"handoff": 1, "lift": 2}
    loader = make_dataloader({**base, "sequence_length": 4, "weights": weights})
    tasks = [loader.dataset.where(row)[0].parent.name for row in loader.batch_sampler.order(0)]
    assert (tasks.count("handoff"), tasks.count("lift")) == (4, 8)
    assert [tuple(batch["actions"].shape) for batch in loader] == [(4, 4, 1, 14)] * 3


@pytest.mark.parametrize("kind", ["random_shift", "color", "mirror"])
def test_a_sequence_is_changed_by_one_draw(root: Path, kind: str) -> None:
    settings = {"type": kind, **({"probability": 1.0} if kind == "mirror" else {})}
    row = 1  # reaches over its episode's end, so that three of its steps are the same
    plain = opened(root, sequence_length=4)[row]
    changed = opened(root, sequence_length=4, transforms=[settings])[row]
    before, after = (sample["observations"]["image"] for sample in (plain, changed))
    assert before.shape == after.shape
    assert (before != after).any()
    for step in range(1, 4):  # the same step: what one draw does to it is the same
        np.testing.assert_array_equal(before[step], before[0])
        np.testing.assert_array_equal(after[step], after[0])


def test_a_mirrored_sequence_is_its_mirrored_steps(root: Path) -> None:
    mirror = {"type": "mirror", "probability": 1.0}
    steps = opened(root, transforms=[mirror], tasks=["lift"])
    whole = opened(root, transforms=[mirror], tasks=["lift"], sequence_length=5)[0]
    for step in range(5):
        alone = steps[step]
        for name in ("image", "state"):
            found = whole["observations"][name][step]
            np.testing.assert_array_equal(found, alone["observations"][name])
        np.testing.assert_array_equal(whole["actions"][step], alone["actions"])


def test_a_history_and_a_sequence_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="sequence_length goes with n_obs_steps 1"):
        DatasetConfig.parse({"sequence_length": 8, "n_obs_steps": 2})
    with pytest.raises(ConfigError, match=r"dataset\.sequence_length"):
        DatasetConfig.parse({"sequence_length": 0})


def test_worker_processes_give_the_same_sequences(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for number in range(3):
        write_episode(tmp_path, f"e{number}", 5, seed=number)
    shift = {"type": "random_shift", "pixels": 2}
    base = {"roots": [str(tmp_path)], "split": "all", "batch_size": 2, "chunk_size": 2}
    config = {**base, "sequence_length": 3, "transforms": [shift]}
    here, there = (make_dataloader({**config, "num_workers": count}) for count in (0, 1))
    for batch, expected in zip(there, here, strict=True):
        assert torch.equal(batch["observations"]["image"], expected["observations"]["image"])
        assert torch.equal(batch["action_is_pad"], expected["action_is_pad"])

"""How often each task is seen: exact shares, nothing twice before all once, resumable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import write_episode

from teamvla.data import DatasetConfig, MultiTaskDataset, make_dataloader
from teamvla.data.mixture import TaskMixture, shares
from teamvla.data.samplers import EpochBatchSampler
from teamvla.errors import ConfigError, InputError

SIZES = (30, 7, 13)


def make_mixture(*weights: float) -> TaskMixture:
    """Three tasks, whose samples lie side by side."""
    starts = np.cumsum((0, *SIZES))
    samples = [np.arange(start, start + size) for start, size in zip(starts, SIZES, strict=False)]
    return TaskMixture(samples, weights)


def tasks_of(rows: np.ndarray) -> list[int]:
    counts = Counter(np.searchsorted(np.cumsum(SIZES), rows, side="right").tolist())
    return [counts[task] for task in range(len(SIZES))]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any), st.integers(0, 1000))
def test_shares_add_up_and_are_nearest_to_the_ratio(weights: list[float], total: int) -> None:
    counts = shares(weights, total)
    assert sum(counts) == total
    exact = np.array(weights) / max(weights)
    np.testing.assert_array_less(np.abs(counts - total * exact / exact.sum()), 1 + 1e-9)


def test_shares_survive_weights_at_the_ends_of_the_floats() -> None:
    assert shares([1.7e308, 1.7e308, 5e-324], 10) == [5, 5, 0]


def test_a_weight_of_zero_never_gets_the_rounding() -> None:
    assert shares([1, 0, 1, 1], 11)[1] == 0


def test_an_epoch_has_the_shares_of_the_weights_and_its_old_length() -> None:
    mixture = make_mixture(1, 2, 1)
    for epoch in range(5):
        assert tasks_of(mixture.order(3, epoch)) == [13, 25, 12]


def test_no_sample_comes_again_before_all_others_of_its_task() -> None:
    mixture, start = make_mixture(1, 2, 2), sum(SIZES[:1])
    seen: Counter[int] = Counter()
    for epoch in range(7):
        seen.update(mixture.order(0, epoch).tolist())
        for first, size in ((0, 30), (start, 7), (start + 7, 13)):
            counts = [seen[row] for row in range(first, first + size)]
            assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = make_mixture(1, 1, 1).order
    np.testing.assert_array_equal(order(4, 9), make_mixture(2, 2, 2).order(4, 9))
    assert (order(4, 9) != order(4, 10)).any()
    assert (order(4, 9) != order(5, 9)).any()


def test_tasks_are_mixed_within_an_epoch() -> None:
    order = make_mixture(1, 1, 1).order(0, 0)
    assert all(count > 0 for count in tasks_of(order[:25]))


@given(cut=st.integers(0, 30), batch=st.integers(1, 20))
def test_resuming_a_mixture_equals_never_having_stopped(cut: int, batch: int) -> None:
    def fresh() -> EpochBatchSampler:
        mixture = make_mixture(1, 3, 0.5)
        return EpochBatchSampler(50, batch, seed=2, drop_last=False, mixture=mixture)

    def run(sampler: EpochBatchSampler, count: int) -> list[tuple[int, list[int]]]:
        taken: list[tuple[int, list[int]]] = []
        while len(taken) < count:
            for rows in sampler:
                sampler.advance()
                taken.append((rows.epoch, list(rows)))
                if len(taken) == count:
                    break
        return taken

    first, second = fresh(), fresh()
    begun = run(first, cut) if cut else []
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"epoch", "consumed"}
    assert [*begun, *run(second, 9)] == run(fresh(), cut + 9)


# --- from the settings ------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of `lift`, five of `handoff`."""
    folder = tmp_path_factory.mktemp("mixed")
    write_episode(folder, "long", 20)
    write_episode(folder, "short", 5, task="handoff")
    return folder


def make_settings(root: Path, **changes: Any) -> dict[str, Any]:
    return {"roots": [str(root)], "split": "all", "batch_size": 5, "chunk_size": 2, **changes}


def seen_tasks(loader: Any) -> Counter[str]:
    samples = loader.dataset.tasks()
    rows = [int(row) for batch in loader for row in batch["index"]]
    return Counter(task for row in rows for task in samples if row in samples[task])


def test_the_loader_draws_tasks_by_their_weights(root: Path) -> None:
    pytest.importorskip("torch")
    loader = make_dataloader(make_settings(root, weights={"lift": 2, "handoff": 3}))
    assert len(loader) == 5
    for _ in range(2):
        assert seen_tasks(loader) == {"lift": 10, "handoff": 15}


def test_an_epoch_in_order_has_every_sample_once_whatever_the_weights(root: Path) -> None:
    pytest.importorskip("torch")
    weights = {"lift": 0, "handoff": 1}
    loader = make_dataloader(make_settings(root, weights=weights, shuffle=False))
    rows = [int(row) for batch in loader for row in batch["index"]]
    assert rows == list(range(25))


def test_the_samples_of_each_task_are_known(root: Path) -> None:
    samples = MultiTaskDataset(make_settings(root)).tasks()
    assert {task: rows.tolist() for task, rows in samples.items()} == {
        "handoff": [*range(5)],
        "lift": [*range(5, 25)],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"lift": 1, "hand": 1}}, "'hand'.*Did you mean 'handoff'"),
        ({"weights": {"lift": 1}}, "none for handoff"),
        ({"weights": {"lift": 1, "handoff": 1}, "tasks": ["lift"]}, "'handoff'.*in this split"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=message):
        make_dataloader(make_settings(root, **changes))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lift": -1, "handoff": 2}, "'lift' must be at least 0"),
        ({"lift": 0, "handoff": 0}, "above 0"),
        ({}, "above 0"),
        ({"lift": "much"}, "valid number"),
        ({"lift": float("inf")}, "finite number"),
    ],
)
def test_weights_that_make_no_shares_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetConfig.parse({"weights": weights})

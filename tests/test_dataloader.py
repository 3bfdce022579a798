"""Reading batches: the right numbers, in an order that can be repeated and resumed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_episode, write_episodes

from teamvla.config import Project, find_config
from teamvla.data import (
    DatasetConfig,
    Episode,
    MultiTaskDataset,
    find_episodes,
    make_dataloader,
    read_episode,
)
from teamvla.data.samplers import EpochBatchSampler
from teamvla.data.views import DiskReads
from teamvla.errors import CheckpointError, ConfigError, InputError

COUNT = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, COUNT episodes each."""
    folder = tmp_path_factory.mktemp("episodes")
    write_episodes(folder, COUNT)
    write_episodes(folder, COUNT, task="handoff")
    return folder


def open_dataset(root: Path, **changes: Any) -> MultiTaskDataset:
    return MultiTaskDataset({"roots": [str(root)], "split": "all", "chunk_size": 4, **changes})


def naive_samples(episode: Episode, chunk: int) -> list[dict[str, Any]]:
    """An episode's samples, straight from its file."""
    f = episode.fields
    joined = {
        "state": [f["q_a"], f["grip_q_a"][:, None], f["q_b"], f["grip_q_b"][:, None]],
        "actions": [f["action_a"], f["grip_a"][:, None], f["action_b"], f["grip_b"][:, None]],
    }
    state, actions = (np.hstack(columns) for columns in joined.values())
    pictures = np.stack([f["rgb_a"], f["rgb_b"]], axis=1).transpose(0, 1, 4, 2, 3)
    last = episode.num_steps - 1
    return [
        {
            "image": pictures[t],
            "state": state[t],
            "actions": np.stack([actions[min(t + k, last)] for k in range(chunk)]),
            "action_is_pad": np.array([t + k > last for k in range(chunk)]),
        }
        for t in range(episode.num_steps)
    ]


# --- the numbers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def episodes(root: Path) -> list[Episode]:
    return [read_episode(path) for path in find_episodes(root)]


@settings(deadline=None, max_examples=30)
@given(chunk=st.integers(1, 12), seed=st.integers(0, 1000), size=st.integers(1, 30))
def test_a_batch_equals_the_episode_files(
    root: Path, episodes: list[Episode], chunk: int, seed: int, size: int
) -> None:
    dataset = open_dataset(root, chunk_size=chunk)
    expected = [sample for episode in episodes for sample in naive_samples(episode, chunk)]
    assert len(dataset) == len(expected)
    rows = np.random.default_rng(seed).integers(0, len(dataset), size)
    batch = dataset.__getitems__(rows)
    read = {**batch["observations"], **batch}
    for place, row in enumerate(rows):
        for name, value in expected[row].items():
            np.testing.assert_array_equal(read[name][place], value, err_msg=name)


def test_a_sample_is_a_row_of_a_batch(root: Path) -> None:
    dataset = open_dataset(root)
    batch, sample = dataset.__getitems__([3, 17]), dataset[17]
    np.testing.assert_array_equal(
        sample["observations"]["image"], batch["observations"]["image"][1]
    )
    np.testing.assert_array_equal(sample["actions"], batch["actions"][1])
    assert sample["language"] == batch["language"][1]
    assert sample["index"] == 17


def test_types_and_memory_order_are_those_promised(root: Path) -> None:
    batch = open_dataset(root).__getitems__([0, 1])
    image = batch["observations"]["image"]
    assert image.dtype == np.uint8
    assert image.transpose(0, 1, 3, 4, 2).flags.c_contiguous
    assert batch["observations"]["state"].dtype == batch["actions"].dtype == np.float32
    assert batch["index"].dtype == batch["epoch"].dtype == np.int64


def test_each_sample_has_its_episodes_instruction(tmp_path: Path) -> None:
    write_episode(tmp_path, "a", 2, instruction="lift the tray")
    write_episode(tmp_path, "b", 3, instruction="raise it")
    batch = open_dataset(tmp_path).__getitems__([4, 0, 2, 1])
    assert batch["language"] == ["raise it", "lift the tray", "raise it", "lift the tray"]


@pytest.mark.parametrize("row", [-1, 10_000])
def test_a_number_out_of_range_is_an_index_error(root: Path, row: int) -> None:
    with pytest.raises(IndexError, match="out of range"):
        open_dataset(root)[row]


def test_writing_into_a_batch_does_not_reach_the_cache(root: Path) -> None:
    dataset = open_dataset(root)
    before = dataset[0]["actions"].copy()
    batch = dataset.__getitems__([0])
    batch["actions"][:] = 0
    batch["observations"]["image"][:] = 0
    np.testing.assert_array_equal(dataset[0]["actions"], before)


# --- history ----------------------------------------------------------------------------


@given(history=st.integers(2, 6), seed=st.integers(0, 1000), size=st.integers(1, 30))
def test_a_history_has_the_steps_before_and_repeats_the_first(
    root: Path, episodes: list[Episode], history: int, seed: int, size: int
) -> None:
    dataset = open_dataset(root, n_obs_steps=history)
    starts = [(e, t) for e, episode in enumerate(episodes) for t in range(episode.num_steps)]
    samples = [naive_samples(episode, 4) for episode in episodes]
    rows = np.random.default_rng(seed).integers(0, len(dataset), size)
    batch = dataset.__getitems__(rows)
    assert batch["observations"]["image"].shape == (size, history, 2, 3, 8, 10)
    for place, row in enumerate(rows):
        episode, step = starts[row]
        for at in range(history):
            then = step - (history - 1 - at)
            expected = samples[episode][max(then, 0)]
            for name in ("image", "state"):
                read = batch["observations"][name][place, at]
                np.testing.assert_array_equal(read, expected[name], err_msg=name)
            assert batch["observation_is_pad"][place, at] == (then < 0)
        np.testing.assert_array_equal(batch["actions"][place], samples[episode][step]["actions"])


def test_without_history_there_is_no_time_axis_and_no_mask(root: Path) -> None:
    sample = open_dataset(root, n_obs_steps=1)[0]
    assert sample["observations"]["state"].shape == (14,)
    assert "observation_is_pad" not in sample


# --- a part of the fields ---------------------------------------------------------------


def forbid_pictures(dataset: MultiTaskDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read = dataset.index.cache.take

    def take(name: str, rows: np.ndarray) -> np.ndarray:
        assert name != "images", "pictures are read"
        return read(name, rows)

    monkeypatch.setattr(dataset.index.cache, "take", take)


def test_a_batch_carries_the_chosen_fields_and_no_picture_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(root, fields=["state", "actions"])
    forbid_pictures(dataset, monkeypatch)
    batch, whole = dataset.__getitems__([5, 9]), open_dataset(root).__getitems__([5, 9])
    assert set(batch) == {"observations", "actions", "action_is_pad", "index", "epoch"}
    assert set(batch["observations"]) == {"state"}
    np.testing.assert_array_equal(batch["actions"], whole["actions"])
    np.testing.assert_array_equal(batch["action_is_pad"], whole["action_is_pad"])


@pytest.mark.parametrize("name", ["image", "state", "actions", "language"])
def test_a_view_of_a_field_has_the_values_of_the_samples(root: Path, name: str) -> None:
    dataset = open_dataset(root, n_obs_steps=2)
    view, batch = dataset.field(name), dataset.__getitems__(range(len(dataset)))
    expected = {**batch, **batch["observations"]}[name]
    assert len(view) == len(dataset)
    np.testing.assert_array_equal(np.asarray(view), expected)
    np.testing.assert_array_equal(view[7:30:5], expected[7:30:5])
    np.testing.assert_array_equal(view[[3, -1]], [expected[3], expected[-1]])
    np.testing.assert_array_equal(view[-2], expected[-2])
    with pytest.raises(IndexError):
        view[len(dataset)]


def test_looking_at_the_states_reads_no_picture(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(root)
    forbid_pictures(dataset, monkeypatch)
    assert np.asarray(dataset.field("state"), np.float64).shape == (len(dataset), 14)
    with pytest.raises(AssertionError, match="pictures are read"):
        dataset.field("image")[0]


def test_an_unknown_field_gets_a_suggestion(root: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'state'"):
        open_dataset(root).field("states")


@pytest.mark.parametrize("fields", [[], ["state", "state"], ["depth"]])
def test_fields_that_cannot_be_read_are_refused(fields: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.fields"):
        DatasetConfig.parse({"fields": fields})


# --- reading ahead ----------------------------------------------------------------------


def test_cold_rows_of_the_next_batch_are_asked_for_before_this_one_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(root, n_obs_steps=2)
    asked: list[list[int]] = []
    monkeypatch.setattr(
        dataset.index.cache, "prefetch", lambda rows: asked.append(np.unique(rows).tolist())
    )
    monkeypatch.setattr(dataset._disk, "noticed", iter([True, False, True]).__next__)
    batches = list(EpochBatchSampler(12, 4, shuffle=False, drop_last=False))
    for rows in batches:
        dataset.__getitems__(rows)
    assert batches[0].following == list(batches[1])
    assert batches[-1].following == []
    # The first episode has three steps: sample 4 is its successor's second, with 3 before it.
    assert dataset.index.episodes["num_steps"][0] == 3
    assert asked == [[0, 1, 2, 3], [3, 4, 5, 6, 7], [7, 8, 9, 10, 11], []]


def test_reads_from_the_disk_are_noticed_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = iter([100, 100, 108, 116, 116])
    monkeypatch.setattr("teamvla.data.views._blocks_read", lambda: next(blocks))
    reads = DiskReads()
    assert [reads.noticed() for _ in range(5)] == [True, False, True, True, False]


# --- the choice -------------------------------------------------------------------------


def test_tasks_are_filtered(root: Path) -> None:
    dataset = open_dataset(root, tasks=["handoff"])
    tasks = {dataset.index.episodes.text("task", row) for row in dataset.episodes}
    assert tasks == {"handoff"}
    assert len(dataset.episodes) == COUNT


def test_the_limit_holds_for_each_task(root: Path) -> None:
    dataset = open_dataset(root, limit_per_task=2)
    names = [dataset.index.episodes.text("path", row) for row in dataset.episodes]
    assert names == [f"{t}/e000{i}.npz" for t in ("handoff", "lift") for i in range(2)]


def test_the_splits_are_disjoint_and_complete(root: Path) -> None:
    parts = [open_dataset(root, split=split).episodes for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(2 * COUNT))
    assert len(parts[1]) >= 2


def test_an_unknown_task_gets_a_suggestion(root: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'handoff'"):
        open_dataset(root, tasks=["handof"])


def test_an_empty_split_has_no_samples_and_no_loader(root: Path) -> None:
    assert len(open_dataset(root, split="test")) == 0
    with pytest.raises(InputError, match=r"split 'test'.*val_fraction"):
        make_dataloader({"roots": [str(root)], "split": "test"})


@pytest.mark.parametrize("content", [None, "empty"])
def test_a_missing_or_empty_root_is_told(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "data"
    if content:
        folder.mkdir()
    with pytest.raises(InputError, match="data: expected"):
        open_dataset(folder)


def test_a_stale_index_is_brought_up_to_date(tmp_path: Path) -> None:
    write_episodes(tmp_path, 2)
    assert len(open_dataset(tmp_path).episodes) == 2
    write_episodes(tmp_path, 1, first=2)
    assert len(open_dataset(tmp_path).episodes) == 3


def test_a_longer_chunk_than_the_cache_allows_is_read(tmp_path: Path) -> None:
    write_episode(tmp_path, "a", 3)
    sample = open_dataset(tmp_path, chunk_size=150)[0]
    assert sample["actions"].shape == (150, 14)
    assert sample["action_is_pad"].sum() == 147


def test_repr_tells_shapes_and_counts(root: Path) -> None:
    text = repr(open_dataset(root))
    assert "all: 24 episodes, 144 steps, tasks handoff, lift" in text
    assert "image uint8[2, 3, 8, 10], state float32[14], actions float32[4, 14]" in text


# --- transforms -------------------------------------------------------------------------


def test_transforms_run_in_order_after_those_of_the_settings(root: Path) -> None:
    def name_after(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "language": [f"{text}!" for text in batch["language"]]}

    def shout(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "language": [text.upper() for text in batch["language"]]}

    config = DatasetConfig.parse({"roots": [str(root)], "transforms": [{"type": "random_shift"}]})
    dataset = MultiTaskDataset(config, [name_after, shout])
    assert dataset[0]["language"] == "LIFT THE TRAY!"
    plain = MultiTaskDataset(config.model_copy(update={"transforms": ()}))
    pictures = [d.__getitems__(range(20))["observations"]["image"] for d in (dataset, plain)]
    assert (pictures[0] != pictures[1]).any()


# --- the order --------------------------------------------------------------------------


@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 20),
    drop=st.booleans(),
    cut=st.integers(0, 40),
    seed=st.integers(0, 5),
)
def test_resuming_equals_never_having_stopped(
    size: int, batch: int, drop: bool, cut: int, seed: int
) -> None:
    if drop and size < batch:
        return

    def run(sampler: EpochBatchSampler, batches: int) -> list[tuple[int, list[int]]]:
        taken = []
        while len(taken) < batches:
            for rows in sampler:
                sampler.advance()
                taken.append((rows.epoch, list(rows)))
                if len(taken) == batches:
                    break
        return taken

    def fresh() -> EpochBatchSampler:
        return EpochBatchSampler(size, batch, seed=seed, drop_last=drop)

    first, second = fresh(), fresh()
    begun = run(first, cut) if cut else []
    second.load_state_dict(first.state_dict())
    assert [*begun, *run(second, 9)] == run(fresh(), cut + 9)


def test_an_epoch_has_every_sample_once_and_epochs_differ() -> None:
    sampler = EpochBatchSampler(50, 8, seed=1, drop_last=False)
    orders = [np.concatenate([*(sampler.set_epoch(e) or sampler)]) for e in range(3)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert (orders[0] != orders[1]).any()
    assert (orders[1] != orders[2]).any()
    assert len(sampler) == 7


def test_set_epoch_does_not_rewind_the_epoch_under_way() -> None:
    sampler = EpochBatchSampler(20, 4, drop_last=False)
    sampler.load_state_dict({"epoch": 2, "consumed": 3})
    sampler.set_epoch(2)
    assert sampler.state_dict() == {"epoch": 2, "consumed": 3}
    sampler.set_epoch(3)
    assert sampler.state_dict() == {"epoch": 3, "consumed": 0}


def test_a_position_of_other_data_is_refused() -> None:
    sampler = EpochBatchSampler(20, 4, drop_last=False)
    with pytest.raises(CheckpointError, match="fewer than 5 used batches"):
        sampler.load_state_dict({"epoch": 0, "consumed": 9})


def test_a_batch_larger_than_the_data_is_refused_with_drop_last() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.batch_size"):
        EpochBatchSampler(20, 64, drop_last=True)
    assert len(EpochBatchSampler(20, 64, drop_last=False)) == 1


# --- the loader -------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def open_loader(root: Path, **changes: Any) -> Any:
    shift = {"type": "random_shift", "pixels": 2}
    base = {"roots": [str(root)], "batch_size": 16, "chunk_size": 4, "transforms": [shift]}
    return make_dataloader({**base, **changes})


def test_batches_are_tensors_of_the_gathered_memory(torch: Any, root: Path) -> None:
    loader = open_loader(root, transforms=[])
    batch = next(iter(loader))
    image = batch["observations"]["image"]
    assert image.dtype == torch.uint8
    assert image.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    rows = loader.batch_sampler.order(0)[:16]
    expected = loader.dataset.__getitems__(rows)
    np.testing.assert_array_equal(image.numpy(), expected["observations"]["image"])
    np.testing.assert_array_equal(batch["actions"].numpy(), expected["actions"])
    assert batch["language"] == expected["language"]
    array = np.zeros((2, 3), np.float32)
    assert loader.collate_fn({"x": array})["x"].data_ptr() == array.ctypes.data


def test_a_loader_resumes_in_the_middle_of_an_epoch(torch: Any, root: Path) -> None:
    whole = [batch for _ in range(2) for batch in open_loader(root)]
    begun = open_loader(root)
    per_epoch = len(begun)
    for _, _batch in zip(range(3), begun, strict=False):
        state = begun.batch_sampler.state_dict()
    assert state == {"epoch": 0, "consumed": 3}
    resumed = open_loader(root)
    resumed.batch_sampler.load_state_dict(state)
    for batch, expected in zip(resumed, whole[3:per_epoch], strict=True):
        assert torch.equal(batch["observations"]["image"], expected["observations"]["image"])
    assert resumed.batch_sampler.state_dict() == {"epoch": 1, "consumed": 0}


def test_another_epoch_has_another_order_and_other_shifts(torch: Any, root: Path) -> None:
    loader = open_loader(root)
    first, second = list(loader), list(loader)
    assert {int(e) for batch in second for e in batch["epoch"]} == {1}
    assert not torch.equal(first[0]["index"], second[0]["index"])
    assert sum(len(batch["index"]) for batch in first) == len(loader.dataset)


def test_worker_processes_change_nothing(torch: Any, root: Path) -> None:
    here, there = open_loader(root), open_loader(root, num_workers=1)
    for batch, expected in zip(there, here, strict=True):
        assert torch.equal(batch["observations"]["image"], expected["observations"]["image"])
        assert there.batch_sampler.state_dict() == here.batch_sampler.state_dict()


def test_loading_leaves_the_global_random_state_alone(torch: Any, root: Path) -> None:
    before = torch.get_rng_state()
    list(open_loader(root))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dataset_travels_to_a_worker_without_its_arrays(root: Path) -> None:
    dataset = open_dataset(root)
    packed = pickle.dumps(dataset)
    assert len(packed) < 2000
    copy = pickle.loads(packed)
    np.testing.assert_array_equal(copy[5]["actions"], dataset[5]["actions"])


def test_without_torch_an_import_error_says_what_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch"):
        make_dataloader({"roots": [str(root)]})


# --- settings ---------------------------------------------------------------------------


def test_the_shipped_section_is_whole_in_itself(torch: Any, root: Path) -> None:
    section = yaml.safe_load(find_config("train_bc").read_text())["dataset"]
    loader = make_dataloader({**section, "roots": [str(root)]})
    assert loader.dataset.config == Project.load("train_bc").replace(
        "dataset", roots=[str(root)]
    ).section("dataset", DatasetConfig)


@pytest.mark.parametrize("name", ["chunk_size", "action_horizon", "horizon"])
def test_every_specified_spelling_of_the_chunk_is_accepted(name: str) -> None:
    assert DatasetConfig.parse({name: 7}).chunk_size == 7


def test_a_misspelt_key_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'dataset\.bach_size'; did you mean 'batch_size'"):
        DatasetConfig.parse({"bach_size": 8})

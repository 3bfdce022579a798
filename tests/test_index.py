"""The index: what goes in, how it splits, when it is built again, and what it refuses."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_contract, write_episode, write_episodes

from teamvla.data import Index, IndexConfig, build_index, cache, index, index_build, read_episode
from teamvla.data.cache import ArrayFile
from teamvla.data.npz import Episode
from teamvla.data.splits import ENOUGH, assign_splits, position
from teamvla.errors import ContractError, InputError

NAMES = st.lists(
    st.tuples(st.sampled_from(["lift", "handoff"]), st.integers(0, 10_000).map(str)),
    min_size=1,
    max_size=60,
    unique=True,
)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The episodes that the builder reads in whole."""
    seen: list[Path] = []

    def spy(path: Path) -> Episode:
        seen.append(path)
        return read_episode(path)

    monkeypatch.setattr(index_build, "read_episode", spy)
    return seen


def files_of(folder: Path) -> dict[str, int]:
    """Every file of an index with its modification time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


# --- splits -----------------------------------------------------------------------------


@given(NAMES, NAMES)
def test_adding_episodes_moves_none_from_train_to_validation(before: Any, more: Any) -> None:
    enough = [("lift", f"x{i}") for i in range(ENOUGH)] + [
        ("handoff", f"x{i}") for i in range(ENOUGH)
    ]
    before = [*enough, *before]
    after = [*before, *(name for name in more if name not in before)]
    old, new = assign_splits(before, 0.1, 0.1), assign_splits(after, 0.1, 0.1)
    for was, now in zip(old, new, strict=False):
        assert was == now or (was, now) == ("val", "train")


@given(NAMES)
def test_splits_follow_the_hash_and_leave_no_task_without_training(names: Any) -> None:
    splits = assign_splits(names, 0.3, 0.2)
    for task in {task for task, _ in names}:
        members = [(position(*n), s) for n, s in zip(names, splits, strict=True) if n[0] == task]
        found = {split for _, split in members}
        assert "train" in found
        assert "val" in found or len(members) < ENOUGH
        strays = [
            p for p, s in members if s != ("test" if p < 0.2 else "val" if p < 0.5 else "train")
        ]
        assert len(strays) <= 2


def test_the_shares_are_met_in_a_large_set() -> None:
    splits = assign_splits([("lift", str(i)) for i in range(5000)], 0.1, 0.2)
    assert abs(splits.count("val") / 5000 - 0.1) < 0.02
    assert abs(splits.count("test") / 5000 - 0.2) < 0.02


# --- content ----------------------------------------------------------------------------


def test_statistics_are_those_of_the_train_split(tmp_path: Path) -> None:
    write_episodes(tmp_path, 15)
    built = build_index(tmp_path, config=IndexConfig(val_fraction=0.3))
    table = built.episodes
    train = [read_episode(tmp_path / table.text("path", row)) for row in table.rows("train")]
    assert 0 < len(train) < 15
    fields = [(e.fields["action_a"], e.fields["grip_a"][:, None]) for e in train]
    actions = np.concatenate([np.hstack(pair) for pair in fields]).astype(np.float64)
    figures = built.statistics["actions"]
    np.testing.assert_allclose(figures["mean"][:7], actions.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(figures["std"][:7], actions.std(0), rtol=1e-5)
    np.testing.assert_allclose(figures["q99"][:7], np.quantile(actions, 0.99, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(np.float32(figures["min"][:7]), np.float32(actions.min(0)))
    q_b = np.concatenate([episode.fields["q_b"] for episode in train])
    np.testing.assert_array_equal(np.float32(built.statistics["state"]["max"][7:13]), q_b.max(0))
    assert built.statistics["count"] == len(actions)


def test_failed_episodes_are_counted_but_not_used(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    write_episode(tmp_path, "failed", success=False)
    assert build_index(tmp_path).summary["episodes"] == {"total": 4, "used": 3, "skipped": 1}
    everything = build_index(tmp_path, config=IndexConfig(only_successful=False))
    assert everything.summary["episodes"] == {"total": 4, "used": 4, "skipped": 0}


def test_without_a_measured_opening_the_state_has_the_previous_command(tmp_path: Path) -> None:
    path = write_episode(tmp_path, "e", 4, measured=False)
    fields = read_episode(path).fields
    grips = build_index(tmp_path).cache.state[:, [6, 13]]
    expected = np.stack([fields["grip_a"][:-1], fields["grip_b"][:-1]], axis=1)
    np.testing.assert_array_equal(grips[1:], expected)
    np.testing.assert_array_equal(grips[0], 0)


def test_columns_are_mapped_not_loaded(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    built = build_index(tmp_path)
    for array in (built.cache.images, built.cache.actions, built.episodes["num_steps"]):
        assert isinstance(array.base, np.memmap)


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    write_episodes(tmp_path / "here", 4)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = build_index(tmp_path / "here"), build_index(tmp_path / "there")
    assert here.digest == there.digest
    write_episodes(tmp_path / "there", 1, first=4)
    assert build_index(tmp_path / "there").digest != here.digest


# --- up to date or not ------------------------------------------------------------------


def test_a_second_run_writes_nothing(tmp_path: Path, reads: list[Path]) -> None:
    write_episodes(tmp_path, 3)
    build_index(tmp_path)
    before = files_of(tmp_path / ".index")
    reads.clear()
    build_index(tmp_path)
    assert files_of(tmp_path / ".index") == before
    assert reads == []


def test_only_what_is_new_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    write_episodes(tmp_path, 4)
    build_index(tmp_path)
    reads.clear()
    (new,) = write_episodes(tmp_path, 1, first=4)
    updated = build_index(tmp_path)
    assert reads == [new]
    assert_same_content(updated, build_index(tmp_path, rebuild=True))


def test_a_changed_file_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "teamvla")
    first, *_ = write_episodes(tmp_path, 3)
    before = build_index(tmp_path)
    first.unlink()
    write_episode(tmp_path, first.stem, 3, seed=99)
    after = build_index(tmp_path)
    assert after.digest != before.digest
    assert "0 episodes added, 1 changed, 0 removed" in caplog.text
    np.testing.assert_array_equal(after.cache.state[0, :6], read_episode(first).fields["q_a"][0])


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    _, second, _ = write_episodes(tmp_path, 3)
    build_index(tmp_path)
    second.unlink()
    assert_same_content(build_index(tmp_path), build_index(tmp_path, rebuild=True))


def test_a_file_only_touched_keeps_the_cache(tmp_path: Path, reads: list[Path]) -> None:
    first, *_ = write_episodes(tmp_path, 3)
    before = build_index(tmp_path)
    os.utime(first, ns=(1, 1))
    reads.clear()
    after = build_index(tmp_path)
    assert after.summary == before.summary
    assert reads == []
    assert after.episodes["mtime_ns"][0] == 1


def test_other_settings_build_again_and_are_kept(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    build_index(tmp_path)
    assert build_index(tmp_path, config=IndexConfig(max_chunk=5)).config.max_chunk == 5
    assert build_index(tmp_path).config.max_chunk == 5


def test_a_damaged_index_is_built_anew(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    pictures = build_index(tmp_path).cache.images.copy()
    images = tmp_path / ".index" / "build-0001" / "cache" / "images.npy"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(InputError, match="whole index"):
        Index.open(tmp_path / ".index")
    np.testing.assert_array_equal(build_index(tmp_path).cache.images, pictures)


def test_a_build_that_fails_leaves_the_old_index(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    before = build_index(tmp_path)
    files = files_of(tmp_path / ".index")
    write_episode(tmp_path, "other", contract=make_contract(control_hz=50.0))
    with pytest.raises(ContractError):
        build_index(tmp_path)
    assert files_of(tmp_path / ".index") == files
    assert Index.open(tmp_path / ".index").digest == before.digest


def test_what_a_killed_build_left_is_cleared_away(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    (tmp_path / ".index" / "build-0007" / "cache").mkdir(parents=True)
    built = build_index(tmp_path)
    assert [path.name for path in (tmp_path / ".index").glob("build-*")] == [built.summary["build"]]


def test_builders_at_the_same_time_do_the_work_once(tmp_path: Path, reads: list[Path]) -> None:
    paths = write_episodes(tmp_path, 6)
    with ThreadPoolExecutor(3) as pool:
        built = list(pool.map(build_index, [tmp_path] * 3))
    assert len({one.digest for one in built}) == 1
    assert reads == paths


@pytest.mark.parametrize("name", ["manifest/task.npy", "cache/images.npy", "statistics.json"])
def test_a_missing_part_is_told(tmp_path: Path, name: str) -> None:
    write_episodes(tmp_path, 2)
    (tmp_path / ".index" / build_index(tmp_path).summary["build"] / name).unlink()
    with pytest.raises(InputError, match=Path(name).name):
        Index.open(tmp_path / ".index")


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_full_disk(path: Path, rows: int) -> ArrayFile:
        return (
            ArrayFile(Path("/dev/full"), rows) if path.name == "images.npy" else plain(path, rows)
        )

    plain = cache.ArrayFile
    write_episodes(tmp_path, 40)
    monkeypatch.setattr(cache, "ArrayFile", on_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        build_index(tmp_path)
    assert caught.value.filename == "/dev/full"
    assert files_of(tmp_path / ".index") == {}


def test_readers_of_the_old_build_keep_their_arrays(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    before = build_index(tmp_path)
    images = before.cache.images.copy()
    write_episodes(tmp_path, 1, first=3)
    build_index(tmp_path)
    np.testing.assert_array_equal(before.cache.images, images)
    assert [path.name for path in (tmp_path / ".index").glob("build-*")] == ["build-0002"]


# --- where ------------------------------------------------------------------------------


def test_several_roots_share_an_index_beside_the_first(tmp_path: Path) -> None:
    write_episodes(tmp_path / "one", 2)
    write_episodes(tmp_path / "two", 3, task="handoff")
    alone = build_index(tmp_path / "one")
    both = build_index([tmp_path / "one", tmp_path / "two"])
    assert (both.num_episodes, alone.num_episodes) == (5, 2)
    assert both.folder.parent == tmp_path / "one"
    assert both.folder != alone.folder


def test_a_root_inside_another_is_not_counted_twice(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    assert build_index([tmp_path, tmp_path / "lift"]).num_episodes == 3


def test_a_read_only_root_is_indexed_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_episodes(tmp_path / "data", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index.os, "access", lambda path, mode: False)
    built = build_index(tmp_path / "data")
    assert built.folder.is_relative_to(tmp_path / "cache" / "teamvla")
    assert not (tmp_path / "data" / ".index").exists()


def assert_same_content(left: Index, right: Index) -> None:
    """Equal in everything but the number of the build."""
    assert {**left.summary, "build": ""} == {**right.summary, "build": ""}
    assert left.statistics == right.statistics
    for name in ("images", "state", "language", "actions"):
        np.testing.assert_array_equal(getattr(left.cache, name), getattr(right.cache, name))

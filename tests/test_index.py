"""The index: what goes in, how it splits, when it is built again, and what it refuses."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import run_and_kill
from synthetic import make_contract, write_episode, write_episodes

from teamvla.data import (
    Index,
    IndexConfig,
    build_index,
    cache_shards,
    index,
    index_read,
    read_episode,
)
from teamvla.data.cache_files import ArrayFile
from teamvla.data.index_plan import MAX_SHARDS
from teamvla.data.npz import Episode
from teamvla.data.splits import assign_splits, position
from teamvla.errors import ContractError, EpisodeError, InputError

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

    monkeypatch.setattr(index_read, "read_episode", spy)
    return seen


def files_of(folder: Path) -> dict[str, int]:
    """Every file of an index with its modification time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


# --- splits -----------------------------------------------------------------------------


@given(NAMES, NAMES)
def test_adding_episodes_moves_none(before: Any, more: Any) -> None:
    after = [*before, *(name for name in more if name not in before)]
    old, new = assign_splits(before, 0.1, 0.1), assign_splits(after, 0.1, 0.1)
    assert new[: len(old)] == old


@given(st.text("abc-_", max_size=5), st.integers(0, 10**12))
def test_of_thirteen_numbered_in_a_row_one_or_two_validate(stem: str, first: int) -> None:
    splits = assign_splits([("lift", f"{stem}{first + i:05d}") for i in range(13)], 0.1, 0.0)
    assert 1 <= splits.count("val") <= 2


def test_the_first_nine_of_a_recording_train() -> None:
    splits = assign_splits([("lift", f"s0-{number:06d}") for number in range(10)], 0.1, 0.0)
    assert splits == ["train"] * 9 + ["val"]


@pytest.mark.parametrize("name", ["a7", "f00d-4b1d", "x_1b2", "morning"])
def test_names_that_are_no_numbers_are_hashed(name: str) -> None:
    assert (position("lift", name) == position("handoff", name)) == (name == "a7")


def test_the_shares_are_met_in_a_large_set() -> None:
    splits = assign_splits([("lift", f"{i}.") for i in range(5000)], 0.1, 0.2)
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
    counts = {"total": 4, "used": 3, "skipped": 1, "invalid": 0}
    assert build_index(tmp_path).summary["episodes"] == counts
    everything = build_index(tmp_path, config=IndexConfig(only_successful=False))
    assert everything.summary["episodes"] == {**counts, "used": 4, "skipped": 0}


def test_without_a_measured_opening_the_state_has_the_previous_command(tmp_path: Path) -> None:
    path = write_episode(tmp_path, "e", 4, measured=False)
    fields = read_episode(path).fields
    grips = build_index(tmp_path).cache.take("state", np.arange(4))[:, [6, 13]]
    expected = np.stack([fields["grip_a"][:-1], fields["grip_b"][:-1]], axis=1)
    np.testing.assert_array_equal(grips[1:], expected)
    np.testing.assert_array_equal(grips[0], 0)


def test_columns_are_mapped_not_loaded(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    built = build_index(tmp_path)
    assert isinstance(built.episodes["num_steps"].base, np.memmap)
    (shard,) = built.cache.shards
    assert isinstance(shard.images.base, mmap.mmap)
    assert not shard.images.flags.writeable


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
    row = after.episodes["first_row"][:1]
    np.testing.assert_array_equal(
        after.cache.take("state", row)[0, :6], read_episode(first).fields["q_a"][0]
    )


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
    assert after.summary["shards"] == before.summary["shards"]
    assert after.digest == before.digest
    assert reads == []
    assert after.episodes["mtime_ns"][0] == 1


def test_other_settings_build_again_and_are_kept(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    build_index(tmp_path)
    assert build_index(tmp_path, config=IndexConfig(max_chunk=5)).config.max_chunk == 5
    assert build_index(tmp_path).config.max_chunk == 5


def test_a_damaged_index_is_built_anew(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    whole = content(build_index(tmp_path))
    images = tmp_path / ".index" / "shard-0001" / "images.npy"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(InputError, match="whole index"):
        Index.open(tmp_path / ".index")
    assert content(build_index(tmp_path)) == whole


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
    for name in ("build-0007/manifest", "shard-0007"):
        (tmp_path / ".index" / name).mkdir(parents=True)
    built = build_index(tmp_path)
    names = {built.summary["build"], built.summary["shards"][0]["name"]}
    assert {path.name for path in (tmp_path / ".index").glob("*-*")} == names


def test_builders_at_the_same_time_do_the_work_once(tmp_path: Path, reads: list[Path]) -> None:
    paths = write_episodes(tmp_path, 6)
    with ThreadPoolExecutor(3) as pool:
        built = list(pool.map(build_index, [tmp_path] * 3))
    assert len({one.digest for one in built}) == 1
    assert sorted(reads) == paths


@pytest.mark.parametrize(
    "name", ["manifest/task.npy", "../shard-0001/images.npy", "statistics.json"]
)
def test_a_missing_part_is_told(tmp_path: Path, name: str) -> None:
    write_episodes(tmp_path, 2)
    (tmp_path / ".index" / build_index(tmp_path).summary["build"] / name).unlink()
    with pytest.raises(InputError, match=Path(name).name):
        Index.open(tmp_path / ".index")


def test_a_full_disk_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_full_disk(path: Path, *more: Any) -> ArrayFile:
        return plain(Path("/dev/full") if path.name == "images.npy" else path, *more)

    plain = cache_shards.ArrayFile
    write_episodes(tmp_path, 40)
    monkeypatch.setattr(cache_shards, "ArrayFile", on_full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        build_index(tmp_path)
    assert caught.value.filename == "/dev/full"
    assert not (tmp_path / ".index").exists()


def test_readers_of_the_old_build_keep_their_arrays(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    before = build_index(tmp_path)
    whole = content(before)
    write_episodes(tmp_path, 1, first=3)
    build_index(tmp_path, rebuild=True)
    assert content(before) == whole


@pytest.mark.parametrize("kills", [15, pytest.param(650, marks=pytest.mark.slow)])
def test_a_killed_build_leaves_the_old_index_or_the_new_one(tmp_path: Path, kills: int) -> None:
    root, aside = tmp_path / "data", tmp_path / "aside"
    write_episodes(root, 3)
    old = content(build_index(root))
    later = write_episodes(root, 3, first=3)
    new = content(build_index(root, tmp_path / "fresh"))
    aside.mkdir()
    killed = 0
    for seed in range(kills):
        for path in later:
            path.rename(aside / path.name)
        assert content(build_index(root)) == old
        for path in later:
            (aside / path.name).rename(path)
        killed += run_and_kill(lambda acknowledge: build_index(root), seed, within_s=0.1).killed
        assert content(Index.open(root / ".index")) in (old, new)
        assert content(build_index(root)) == new
        # Killed between publishing and clearing away, a run leaves one old build to the next.
        assert len(list((root / ".index").glob("build-*"))) <= 2
    assert killed > kills / 4  # the others were done before


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


# --- shards -----------------------------------------------------------------------------


def shards(built: Index) -> list[str]:
    return [shard["name"] for shard in built.summary["shards"]]


def test_what_is_added_goes_into_a_new_shard(tmp_path: Path) -> None:
    write_episodes(tmp_path, 4)
    before = build_index(tmp_path)
    old = files_of(before.folder / "shard-0001")
    write_episodes(tmp_path, 2, first=4)
    after = build_index(tmp_path)
    assert shards(after) == ["shard-0001", "shard-0002"]
    assert files_of(after.folder / "shard-0001") == old
    assert_same_content(after, build_index(tmp_path, tmp_path / "fresh"))


def test_many_small_shards_are_merged(tmp_path: Path) -> None:
    for number in range(2 * MAX_SHARDS):
        write_episodes(tmp_path, 1, first=number)
        built = build_index(tmp_path)
        assert len(shards(built)) <= MAX_SHARDS
    assert_same_content(built, build_index(tmp_path, tmp_path / "fresh"))


def test_a_shard_of_mostly_holes_is_written_anew(tmp_path: Path) -> None:
    paths = write_episodes(tmp_path, 6)
    build_index(tmp_path)
    for path in paths[:2]:
        path.unlink()
    holes = build_index(tmp_path)
    assert shards(holes) == ["shard-0001"]
    assert holes.summary["unused_steps"] == 3 + 8
    for path in paths[2:5]:
        path.unlink()
    built = build_index(tmp_path)
    assert shards(built) == ["shard-0002"]
    assert built.summary["unused_steps"] == 0
    assert built.summary["last_run"]["shards_copied"] == 1
    assert_same_content(built, build_index(tmp_path, tmp_path / "fresh"))


@pytest.mark.parametrize("given", [{"max_chunk": 7}, {"codec": "jpeg"}, {"test_fraction": 0.3}])
def test_other_settings_give_what_a_fresh_build_gives(tmp_path: Path, given: Any) -> None:
    write_episodes(tmp_path, 5)
    build_index(tmp_path)
    write_episodes(tmp_path, 5, first=5)
    build_index(tmp_path)
    config = IndexConfig(**given)
    assert_same_content(
        build_index(tmp_path, config=config), build_index(tmp_path, tmp_path / "fresh", config)
    )


@given(st.lists(st.sampled_from(["add", "remove", "change", "index"]), min_size=2, max_size=12))
@settings(max_examples=10, deadline=None)
def test_the_way_to_an_index_leaves_no_trace(actions: list[str]) -> None:
    with TemporaryDirectory() as name:
        root, number = Path(name, "data"), 3
        write_episodes(root, number)
        for action in actions:
            files = sorted(root.glob("lift/*.npz"))
            if action == "index":
                build_index(root)
            elif action == "add" or len(files) < 3:
                write_episodes(root, 1, first=number)
                number += 1
            else:
                files[number % len(files)].unlink()
                if action == "change":
                    stem = files[number % len(files)].stem
                    write_episode(root, stem, 4 + len(actions), seed=1000 + number)
        assert_same_content(build_index(root), build_index(root, Path(name, "fresh")))


# --- damage, invalid episodes, JPEG -----------------------------------------------------


@pytest.mark.parametrize("name", ["images", "state", "language", "actions"])
def test_a_flipped_bit_is_found_and_its_episode_named(tmp_path: Path, name: str) -> None:
    write_episodes(tmp_path, 4)
    built = build_index(tmp_path)
    path = built.folder / "shard-0001" / f"{name}.npy"
    first = int(built.episodes["first_action" if name == "actions" else "first_row"][2])
    raw, array = bytearray(path.read_bytes()), np.load(path)
    raw[len(raw) - array.nbytes + (first + 1) * array[0].nbytes] ^= 4
    path.write_bytes(raw)
    assert list(Index.open(built.folder).damaged()) == [("lift/e0002.npz", [name])]


def test_small_damage_is_found_when_the_index_is_used(tmp_path: Path) -> None:
    write_episodes(tmp_path, 4)
    built = build_index(tmp_path)
    path = built.folder / "shard-0001" / "episodes.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    with pytest.raises(InputError, match="--rebuild"):
        Index.open(built.folder).verify()


def test_invalid_episodes_are_left_out_and_listed(tmp_path: Path, reads: list[Path]) -> None:
    paths = write_episodes(tmp_path, 5)
    paths[0].write_bytes(b"PK nonsense")
    config = IndexConfig(skip_invalid=True)
    built = build_index(tmp_path, config=config)
    counts = {"total": 5, "used": 4, "skipped": 0, "invalid": 1}
    assert built.summary["episodes"] == counts
    (one,) = built.invalid
    assert one["path"] == str(paths[0])
    assert one["code"].startswith("E2")
    reads.clear()
    write_episodes(tmp_path, 1, first=5)
    assert build_index(tmp_path).invalid == [one]
    assert [path.name for path in reads] == ["e0005.npz"]
    paths[0].unlink()
    write_episodes(tmp_path, 1)
    assert build_index(tmp_path).summary["episodes"] == {
        **counts,
        "total": 6,
        "used": 6,
        "invalid": 0,
    }


def test_without_skipping_an_invalid_episode_is_refused_again(tmp_path: Path) -> None:
    paths = write_episodes(tmp_path, 3)
    paths[1].write_bytes(b"PK nonsense")
    build_index(tmp_path, config=IndexConfig(skip_invalid=True))
    with pytest.raises(EpisodeError, match=paths[1].name):
        build_index(tmp_path, config=IndexConfig(skip_invalid=False))


def test_jpeg_pictures_are_near_the_originals_and_smaller(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    built = build_index(tmp_path, config=IndexConfig(codec="jpeg", jpeg_quality=100))
    assert built.summary["pictures"] == "lossy: JPEG, quality 100"
    rows = np.arange(built.num_steps).reshape(1, -1)[:, ::-1]
    raw = build_index(tmp_path, tmp_path / "raw")
    lossy, exact = built.cache.take("images", rows), raw.cache.take("images", rows)
    assert lossy.shape == exact.shape
    apart = np.abs(lossy.astype(int) - exact)
    assert 0 < apart.mean() < 50  # noise is the worst that can be given to JPEG
    assert np.corrcoef(lossy.ravel(), exact.ravel())[0, 1] > 0.5
    assert list(built.damaged()) == []


def rows_of(built: Index, column: str) -> np.ndarray:
    """Row numbers of all steps in the order of the table."""
    table, used = built.episodes, built.episodes.rows()
    pairs = zip(table[column][used].tolist(), table["num_steps"][used].tolist(), strict=True)
    return np.concatenate([np.arange(first, first + steps) for first, steps in pairs])


def content(built: Index) -> list[Any]:
    """What a training sees of an index."""
    built.cache.prefetch(rows_of(built, "first_row")[:3])
    steps, cache = rows_of(built, "first_row"), built.cache
    numbers = cache.take("language", steps)
    return [
        built.digest,
        built.statistics,
        [cache.instructions[number] for number in numbers.tolist()],
        cache.take("images", steps).tobytes(),
        cache.take("state", steps).tobytes(),
        cache.chunks(rows_of(built, "first_action"), built.config.max_chunk).tobytes(),
    ]


def assert_same_content(left: Index, right: Index) -> None:
    """Equal in everything but in which run it was built."""
    history = ("build", "shards", "last_run", "unused_steps", "bytes")
    for summary in (left.summary, right.summary):
        assert set(history) < set(summary)
    kept = [{k: v for k, v in one.summary.items() if k not in history} for one in (left, right)]
    for summary in kept:
        summary.pop("checksums")  # of row numbers, too
    assert kept[0] == kept[1]
    assert content(left) == content(right)

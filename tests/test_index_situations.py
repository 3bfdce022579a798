"""The index beside other work: readers while it is merged, other robots, partial episodes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from synthetic import make_contract, make_steps, write_episode, write_episodes

from teamvla.cli.app import run
from teamvla.data import EpisodeWriter, Index, IndexConfig, build_index, read_meta
from teamvla.data.splits import assign_splits
from teamvla.data.statistics import QUANTILES, column_statistics
from teamvla.errors import EpisodeError

MATRICES = st.tuples(st.integers(1, 60), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(
        np.float32, shape, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    )
)


@given(MATRICES, st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_every_figure_is_numpys(values: np.ndarray, block: int) -> None:
    pieces = [values[at : at + block] for at in range(0, len(values), block)]
    found = column_statistics(lambda: iter(pieces))
    exact = values.astype(np.float64)
    scale = np.abs(exact).max() + 1e-30
    np.testing.assert_allclose(found["mean"], exact.mean(0), rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(found["std"], exact.std(0), rtol=1e-6, atol=1e-7 * scale)
    np.testing.assert_array_equal(found["min"], exact.min(0))
    np.testing.assert_array_equal(found["max"], exact.max(0))
    for name, share in QUANTILES.items():
        expected = np.quantile(exact, share, axis=0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12 * scale)


def test_a_reader_beside_shards_that_are_merged_sees_what_it_opened(tmp_path: Path) -> None:
    write_episodes(tmp_path, 4)
    opened = build_index(tmp_path)
    rows = np.arange(opened.num_steps)
    whole, done, differences = opened.cache.take("images", rows), Event(), []

    def read() -> None:
        while not done.is_set():
            differences.append((opened.cache.take("images", rows) != whole).sum())
            Index.open(tmp_path / ".index").cache.take("state", rows)

    reader = Thread(target=read)
    reader.start()
    try:
        for number in range(4, 22):
            write_episodes(tmp_path, 1, first=number)
            last = build_index(tmp_path)
    finally:
        done.set()
        reader.join()
    assert len(last.summary["shards"]) < 19  # some were merged meanwhile
    assert differences
    assert not any(differences)


def test_a_robot_of_one_arm_and_one_camera(tmp_path: Path) -> None:
    two = make_contract()
    contract = two.model_copy(
        update={"embodiment": "single_arm", "arms": two.arms[:1], "cameras": two.cameras[:1]}
    )
    steps = [{k: v for k, v in one.items() if not k.endswith("_b")} for one in make_steps(6, 1)]
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode(
            {"task": "lift", "contract": contract.to_dict(), "contract_digest": contract.digest}
        )
        for step in steps:
            writer.add_step(step)
        writer.end_episode(success=True)
    built = build_index(tmp_path)
    assert built.cache.take("images", np.arange(6)).shape[1] == 1
    assert built.layout.state_columns == [*(f"q_a[{n}]" for n in range(6)), "grip_q_a"]
    state = built.cache.take("state", np.arange(6))
    np.testing.assert_array_equal(state[:, :6], [step["q_a"] for step in steps])
    np.testing.assert_array_equal(
        built.cache.chunks(np.array([0]), 2)[0, :, :6], [step["action_a"] for step in steps[:2]]
    )


def test_a_recovered_part_of_an_episode_is_left_out(tmp_path: Path) -> None:
    write_episodes(tmp_path, 2)
    path = write_episode(tmp_path, "cut-partial", success=False)
    members = dict(np.load(path))
    meta = {**read_meta(path), "partial": True}
    np.savez(path, **{**members, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})
    built = build_index(tmp_path)
    assert built.summary["episodes"] == {"total": 3, "used": 2, "skipped": 1, "invalid": 0}
    assert "cut-partial" not in [
        built.episodes.text("episode_id", row) for row in built.episodes.rows()
    ]
    everything = build_index(tmp_path, config=IndexConfig(only_successful=False))
    assert everything.num_episodes == 3


# --- the command ------------------------------------------------------------------------


def test_verify_names_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episodes(tmp_path, 3)
    built = build_index(tmp_path)
    assert run(["index", str(tmp_path), "--verify", "-q"]) == 0
    path = built.folder / "shard-0001" / "images.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    capsys.readouterr()
    assert run(["index", str(tmp_path), "--verify", "--json", "-q"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["damaged"] == [{"path": "lift/e0002.npz", "arrays": ["images"]}]
    assert document["next"].endswith("--rebuild")


def test_verify_of_no_index_builds_none(tmp_path: Path) -> None:
    write_episodes(tmp_path, 1)
    assert run(["index", str(tmp_path), "--verify", "-q"]) == 2
    assert not (tmp_path / ".index").exists()


def test_skip_invalid_lists_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = write_episodes(tmp_path, 3)
    first.write_bytes(b"PK nonsense")
    assert run(["index", str(tmp_path), "-q"]) == 1
    capsys.readouterr()
    assert run(["index", str(tmp_path), "--skip-invalid"]) == 0
    out = capsys.readouterr().out
    assert "1 that cannot be used" in out
    assert f"{first}: [E2" in out
    assert run(["index", str(tmp_path), "--no-skip-invalid", "-q"]) == 1


def test_most_episodes_are_not_left_out_for_the_sake_of_the_first(tmp_path: Path) -> None:
    first, *others = write_episodes(tmp_path, 4)
    for path in others:
        path.write_bytes(b"PK nonsense")
    with pytest.raises(EpisodeError, match=r"\[E507\].*3 of 4 that cannot be used: lift/e0001.npz"):
        build_index(tmp_path, config=IndexConfig(skip_invalid=True))
    assert first.exists()
    assert not list((tmp_path / ".index").glob("build-*"))


def test_verify_finds_a_file_that_changed_behind_its_size_and_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path, _ = write_episodes(tmp_path, 3)
    build_index(tmp_path)
    content, state = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    capsys.readouterr()
    assert run(["index", str(tmp_path), "--verify", "--json", "-q"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["damaged"], document["changed"]) == ([], [str(path)])


def test_verify_has_no_settings(tmp_path: Path) -> None:
    write_episodes(tmp_path, 2)
    build_index(tmp_path)
    assert run(["index", str(tmp_path), "--verify", "--rebuild", "-q"]) == 2


def test_what_is_not_said_anew_stays_as_it_was(tmp_path: Path) -> None:
    write_episodes(tmp_path, 4)
    build_index(tmp_path, config=IndexConfig(val_fraction=0.3, skip_invalid=True))
    built = build_index(tmp_path, config=IndexConfig(max_chunk=7))
    assert built.config == IndexConfig(val_fraction=0.3, skip_invalid=True, max_chunk=7)


def test_a_partial_episode_has_the_split_of_the_whole_one() -> None:
    names = [("lift", f"s0-{number:06d}{end}") for number in range(40) for end in ("", "-partial")]
    splits = assign_splits(names, 0.2, 0.2)
    assert splits[::2] == splits[1::2]
    assert set(splits) == {"train", "val", "test"}

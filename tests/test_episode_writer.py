"""Writing episodes: the order of calls, what comes back, and what is left after a failure."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_steps import CONTRACT, code_of, files, make_step, without, write_episode, write_steps

from teamvla.data import writer as writing
from teamvla.data.episodes import find_episodes
from teamvla.data.npz import read_episode
from teamvla.data.schema import MAX_FIELDS
from teamvla.data.validation import validate_file
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import ConfigError, EpisodeError, InputError, SchemaError

# What comes back.


def test_the_example_of_the_specification(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "episodes", fmt="npz") as writer:
        meta = writer.start_episode({"task": "lift", "success": True})
        writer.add_step(make_step(success=True))
        path = writer.end_episode(success=True)
    assert path == tmp_path / "episodes" / "lift" / f"{meta.episode_id}.npz"
    assert read_episode(path).meta == {
        "task": "lift", "episode_id": "episode-000000", "success": True, "num_steps": 1,
        "version": 2, "instruction": "lift the tray",
    }  # fmt: skip
    assert validate_file(path) == []


@pytest.mark.parametrize("compression", ["fast", "stored", "zlib"])
def test_steps_come_back_as_they_were(tmp_path: Path, compression: Any) -> None:
    extras = {
        "phase": "reach", "timestamp": 0.1, "depth_a": np.full((2, 2), np.inf, np.float32),
        "cells": np.arange(6.0).reshape(2, 3), "count": 3, "flag": False, "ratio": float("inf"),
        "note": {"a": [1, None, "ü"]}, "label": "", "raw": np.array([b"ab"]),
    }  # fmt: skip
    steps = [make_step(index, **extras) for index in range(3)]
    episode = read_episode(write_steps(tmp_path, steps, compression))
    assert [_plain(episode.step(index)) for index in range(3)] == [_plain(s) for s in steps]


def _plain(step: dict[str, Any]) -> dict[str, Any]:
    """The step with arrays as something that compares, and scalars as Python values."""
    return {
        name: (value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else getattr(value, "item", lambda value=value: value)()
        for name, value in sorted(step.items())
    }


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRAS = st.fixed_dictionaries(
    {
        "vector": hnp.arrays(np.float32, 4, elements=st.floats(width=32)),
        "picture": hnp.arrays(np.uint8, (2, 3)),
        "count": st.integers(-(2**63) + 1, 2**63 - 1),
        "ratio": st.floats(allow_nan=False),
        "text": TEXT,
        "json": st.lists(JSON, max_size=2),
        "instruction": TEXT.filter(bool),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(EXTRAS, min_size=1, max_size=5))
def test_any_extras_come_back_bit_equal(extras: list[dict[str, Any]]) -> None:
    steps = [make_step(index, **more) for index, more in enumerate(extras)]
    with tempfile.TemporaryDirectory() as root:
        episode = read_episode(write_steps(Path(root), steps))
    assert [_plain(episode.step(index)) for index in range(len(steps))] == [*map(_plain, steps)]


def test_an_episode_longer_than_the_first_buffers(tmp_path: Path) -> None:
    steps = [make_step(index) for index in range(200)]
    episode = read_episode(write_steps(tmp_path, steps))
    assert episode.num_steps == 200
    np.testing.assert_array_equal(episode.fields["rgb_b"], [step["rgb_b"] for step in steps])


def test_steps_are_copied(tmp_path: Path) -> None:
    step = make_step()
    expected = step["q_a"].copy()
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        writer.add_step(step)
        step["q_a"][:] = 9
        path = writer.end_episode()
    np.testing.assert_array_equal(read_episode(path).fields["q_a"], [expected])


@pytest.mark.parametrize("compression", ["fast", "stored", "zlib"])
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, compression: Any) -> None:
    steps = [make_step(index) for index in range(4)]
    shuffled = [dict(sorted(step.items(), reverse=True)) for step in steps]
    one = write_steps(tmp_path / "1", steps, compression, seed=1, contract=CONTRACT)
    other = write_steps(tmp_path / "2", shuffled, compression, contract=CONTRACT, seed=1)
    assert one.read_bytes() == other.read_bytes()


def test_a_constant_instruction_is_in_the_metadata_alone(tmp_path: Path) -> None:
    with np.load(write_steps(tmp_path, [make_step(), make_step()])) as archive:
        assert {"instruction", "task"}.isdisjoint(archive.files)


def test_a_varying_instruction_is_kept_step_by_step(tmp_path: Path) -> None:
    texts = ["lift the tray", "now hold it", "lift the tray"]
    episode = read_episode(write_steps(tmp_path, [make_step(instruction=text) for text in texts]))
    assert episode.fields["instruction"].tolist() == texts
    assert episode.instruction == "lift the tray"


@pytest.mark.parametrize(
    ("given_flag", "ended_with", "last_step", "expected"),
    [
        (None, None, True, True),
        (None, None, False, False),
        (False, None, True, False),
        (False, True, False, True),
        (True, False, True, False),
    ],
)
def test_who_decides_on_success(
    tmp_path: Path, given_flag: Any, ended_with: Any, last_step: bool, expected: bool
) -> None:
    meta = {"task": "lift"} if given_flag is None else {"task": "lift", "success": given_flag}
    writer = EpisodeWriter(tmp_path)
    writer.start_episode(meta)
    writer.add_step(make_step(success=last_step))
    assert read_episode(writer.end_episode(success=ended_with)).success is expected


def test_a_success_flag_must_be_a_flag(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift"})
    writer.add_step(make_step())
    assert code_of(writer.end_episode, "yes") == "E104"
    assert read_episode(writer.end_episode(success=np.True_)).success  # type: ignore[arg-type]


def test_as_many_fields_as_are_allowed_are_read_back(tmp_path: Path) -> None:
    step = make_step(instruction="now")
    more = {f"x{number}": number for number in range(MAX_FIELDS - len(step))}
    steps = [{**step, **more}, {**make_step(1), **more}]
    assert len(read_episode(write_steps(tmp_path, steps)).fields) == MAX_FIELDS


def test_a_given_number_of_steps_is_not_believed(tmp_path: Path) -> None:
    assert read_episode(write_steps(tmp_path, [make_step()], num_steps=99)).num_steps == 1


# Names.


def test_ids_are_counted_from_the_first_free_one(tmp_path: Path) -> None:
    write_steps(tmp_path, [make_step()], episode_id="episode-000001")
    paths = [write_steps(tmp_path, [make_step()]) for _ in range(2)]
    assert [path.stem for path in paths] == ["episode-000000", "episode-000002"]


@pytest.mark.parametrize("bad", ["../x", "a/b", "", ".", "..", "A", "a\0", "/abs", "x" * 65])
@pytest.mark.parametrize("key", ["task", "episode_id"])
def test_a_name_that_could_leave_the_root_is_refused(tmp_path: Path, key: str, bad: str) -> None:
    writer = EpisodeWriter(tmp_path)
    assert code_of(writer.start_episode, {"task": "lift", key: bad}) == "E123"
    assert files(tmp_path) == []


def test_an_existing_episode_is_never_replaced(tmp_path: Path) -> None:
    path = write_episode(tmp_path)
    content = path.read_bytes()
    with pytest.raises(EpisodeError, match="expected a new episode, got one that exists") as caught:
        EpisodeWriter(tmp_path).start_episode({"task": "lift", "episode_id": "one"})
    assert caught.value.code == "E307"
    assert path.read_bytes() == content


def test_an_episode_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    # Without journals nothing keeps the two apart before they publish.
    writers = [EpisodeWriter(tmp_path, journal=False) for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.start_episode({"task": "lift", "episode_id": "one"})
        writer.add_step(make_step(number))
    content = writers[0].end_episode().read_bytes()
    assert code_of(writers[1].end_episode) == "E307"
    assert files(tmp_path) == ["lift/one.npz"]
    assert (tmp_path / "lift/one.npz").read_bytes() == content


# The order of calls, and refused steps.


def test_calls_out_of_order_are_refused(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    assert code_of(writer.add_step, make_step()) == "E301"
    assert code_of(writer.end_episode) == "E301"
    writer.start_episode({"task": "lift"})
    assert code_of(writer.start_episode, {"task": "lift"}) == "E302"
    assert code_of(writer.end_episode) == "E303"
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("meta", "code"), [(3, "E121"), ({}, "E122"), ({"task": "a", "x": {1}}, "E121")]
)
def test_bad_metadata_is_refused_before_anything_is_recorded(
    tmp_path: Path, meta: Any, code: str
) -> None:
    assert code_of(EpisodeWriter(tmp_path).start_episode, meta) == code


def test_metadata_that_is_too_large_is_refused_at_once(tmp_path: Path) -> None:
    meta = {"task": "lift", "blob": "x" * (5 << 20)}
    assert code_of(EpisodeWriter(tmp_path).start_episode, meta) == "E125"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ({}, {"q_a": np.zeros(3)}, "E105"),
        ({}, {"more": 1}, "E304"),
        ({"more": 1}, {}, "E304"),
        ({}, {"rgb_a": np.zeros((5, 4, 3), np.uint8)}, "E305"),
        ({}, {"q_a": np.ones(2, np.float32), "action_a": np.ones(2, np.float32)}, "E305"),
        ({"x": 1}, {"x": 1.0}, "E305"),
        ({"x": 1}, {"x": "1"}, "E305"),
        ({"x": "1"}, {"x": 1}, "E305"),
        ({"x": [1]}, {"x": np.zeros(1)}, "E305"),
        ({"x": np.zeros(1)}, {"x": [1]}, "E305"),
        ({"x": np.zeros(1, np.int32)}, {"x": np.zeros(1, np.int64)}, "E305"),
        ({}, {"task": "drawer"}, "E306"),
    ],
)
def test_a_refused_step_changes_nothing(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], code: str
) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift", "episode_id": "one"})
        writer.add_step(make_step(0, **first))
        with pytest.raises(SchemaError, match=r"lift/one\.npz: step 1: ") as caught:
            writer.add_step(make_step(1, **second))
        writer.add_step(make_step(1, **first))
        path = writer.end_episode()
    assert caught.value.code == code
    expected = [make_step(0, **first), make_step(1, **first)]
    episode = read_episode(path)
    assert [_plain(episode.step(index)) for index in range(2)] == [*map(_plain, expected)]


def test_a_refused_first_step_leaves_the_fields_open(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path)
    writer.start_episode({"task": "lift"})
    assert code_of(writer.add_step, without(make_step(), "q_a")) == "E102"
    writer.add_step(make_step(phase="reach"))
    assert "phase" in read_episode(writer.end_episode()).fields


def test_the_first_instruction_must_be_the_metadata_s(tmp_path: Path) -> None:
    assert code_of(lambda: write_steps(tmp_path, [make_step()], instruction="drop it")) == "E306"


def test_an_episode_too_large_for_one_file_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MAX_BYTES", writing._ROOM + 1000)
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift"})
        for index in range(4):
            writer.add_step(make_step(index))
        assert code_of(writer.add_step, make_step(4)) == "E310"
        assert read_episode(writer.end_episode()).num_steps == 4


@pytest.mark.parametrize("options", [{"fmt": "hdf5"}, {"compression": "lzma"}])
def test_unknown_formats_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EpisodeWriter(tmp_path, **options)


# Finding them again.


def test_episodes_are_found_sorted_and_hidden_ones_skipped(tmp_path: Path) -> None:
    wanted = ["b/1.npz", "a/2.npz", "a/1.npz", "top.npz", "a/deep/er.npz"]
    for name in [*wanted, ".index/x.npz", "a/.hidden.npz", "a/.1.npz.x.tmp", "a/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_episodes(tmp_path) == sorted(tmp_path / name for name in wanted)


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_a_root_without_episodes_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        find_episodes(tmp_path / name)

"""Fields of variable length: in memory, through a file, and the reader's guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_steps import code_of, make_step, rewrite, write_steps

from teamvla.data.columns import RaggedColumn
from teamvla.data.npz import EpisodeFile, read_episode, read_meta
from teamvla.data.ragged import Ragged
from teamvla.data.schema import MAX_FIELDS, validate_columns, validate_step
from teamvla.data.validation import validate_file
from teamvla.errors import EpisodeError, SchemaError

F32 = np.float32
LENGTHS = (3, 0, 2, 5)
DTYPES = ["u1", "i2", "<i8", ">i4", "f2", "<f4", ">f8", "?", "c8", "<U3", "S4"]


def cloud(length: int, start: float = 0.0) -> np.ndarray:
    return (np.arange(4 * length, dtype=F32) + F32(start)).reshape(length, 4)


def clouds() -> list[np.ndarray]:
    return [cloud(length, 100 * number) for number, length in enumerate(LENGTHS)]


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    steps = [make_step(index, points=points) for index, points in enumerate(clouds())]
    return write_steps(tmp_path, steps, episode_id="one")


# In memory.


def test_steps_are_views_of_the_values() -> None:
    ragged = Ragged.of(clouds())
    assert [len(step) for step in ragged] == [*LENGTHS]
    ragged[2][0, 0] = -1
    assert ragged.values[3, 0] == -1
    np.testing.assert_array_equal(ragged[-1], cloud(5, 300))


def test_dtype_and_shape_tell_what_varies() -> None:
    ragged = Ragged.of(clouds())
    assert (ragged.dtype, ragged.shape, ragged.ndim) == (np.dtype("f4"), (4, -1, 4), 3)
    assert repr(ragged) == "Ragged(float32[4,P,4], 10 rows)"
    assert ragged.nbytes == 10 * 16 + 5 * 8
    assert ragged.lengths.tolist() == [*LENGTHS]


@pytest.mark.parametrize(
    "at", [slice(1, 3), slice(None), slice(2, 2), slice(9, 12), slice(-2, None)]
)
def test_a_run_of_steps_shares_the_values(at: slice) -> None:
    ragged = Ragged.of(clouds())
    run = ragged[at]
    expected = clouds()[at]
    assert len(run) == len(expected)
    assert all(map(np.array_equal, run, expected))
    assert run.offsets[0] == 0
    assert not len(run.values) or np.shares_memory(run.values, ragged.values)


@pytest.mark.parametrize("at", [4, -5, slice(None, None, 2), slice(None, None, -1)])
def test_what_is_not_there_is_an_index_error(at: Any) -> None:
    with pytest.raises(IndexError):
        Ragged.of(clouds())[at]


def test_equal_means_same_steps_of_same_dtype() -> None:
    ragged = Ragged.of(clouds())
    assert ragged == Ragged.of(clouds())
    assert ragged != Ragged.of(clouds()[:3])
    assert ragged != Ragged.of([step.astype(np.float64) for step in clouds()])
    assert ragged != Ragged.of([*clouds()[:3], cloud(5, 301)])
    shifted = Ragged(ragged.values, np.array([0, 2, 3, 5, 10]))
    assert shifted != ragged
    assert ragged != clouds()


def test_numpy_does_not_make_one_array_of_it() -> None:
    with pytest.raises(TypeError, match=r"use \.values"):
        np.asarray(Ragged.of([cloud(2), cloud(2)]))


# Steps and columns.


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("points", np.zeros((9, 4)), "E105"),
        ("points", np.zeros((9, 3), F32), "E106"),
        ("points", np.zeros(4, F32), "E106"),
        ("points", np.full((1, 4), np.nan, F32), "E107"),
        ("points", [[0.0] * 4], "E104"),
        ("points_top", np.zeros((9, 3), F32), "E106"),
        ("radar", np.zeros((2, 4), F32), "E106"),
        ("radar_front", np.zeros((2, 6), F32), "E106"),
        ("radar_map_front", np.zeros((2, 0), F32), "E106"),
        ("imu", np.zeros((2, 6), F32), "E106"),
        ("rows_tracks", np.zeros((2, 0), F32), "E106"),
    ],
)
def test_rows_keep_to_their_spec(name: str, value: Any, code: str) -> None:
    assert code_of(validate_step, make_step(**{name: value})) == code


@pytest.mark.parametrize("length", [0, 1, 7])
def test_any_number_of_rows_is_legal(length: int) -> None:
    rows = {"points": 4, "points_b": 4, "radar": 5, "radar_b": 5, "imu": 7, "rows_mine": 3}
    validate_step(make_step(**{name: np.zeros((length, size), F32) for name, size in rows.items()}))


def test_a_field_of_variable_length_counts_twice() -> None:
    rows = {f"rows_{number}": np.zeros((1, 2), F32) for number in range(44)}
    validate_step(make_step(**rows))
    assert len(rows) * 2 + len(make_step()) == MAX_FIELDS - 1
    more = {**rows, "rows_x": np.zeros((1, 2), F32)}
    assert code_of(validate_step, make_step(**more)) == "E112"


@pytest.mark.parametrize("name", ["points-offsets", "mine-offsets", "rows_x-offsets"])
def test_the_names_of_offsets_are_taken(name: str) -> None:
    assert code_of(validate_step, make_step(**{name: np.zeros(3)})) == "E103"


def test_a_name_leaves_room_for_that_of_its_offsets(tmp_path: Path) -> None:
    longest = "points_" + "x" * 49
    path = write_steps(tmp_path, [make_step(**{longest: cloud(2)})])
    assert len(read_episode(path).fields[longest][0]) == 2
    assert code_of(validate_step, make_step(**{longest + "x": cloud(2)})) == "E103"


@pytest.mark.parametrize(
    "value", [np.zeros((2, 3), F32), np.zeros((2, 4)), np.zeros(4, F32), [[0.0] * 4]]
)
def test_only_the_number_of_rows_may_change(value: Any) -> None:
    column = RaggedColumn("points", cloud(3))
    assert code_of(column.check, value) == "E305"
    column.check(cloud(0))


def test_a_column_knows_its_size() -> None:
    column = RaggedColumn("points", cloud(3))
    column.append(cloud(3))
    column.append(cloud(0))
    expected = column.size_with(cloud(2))
    assert expected == 5 * 16 + 4 * 8
    column.append(cloud(2))
    assert sum(array.nbytes for array in column.members().values()) == expected


# Through a file.


def test_what_is_written_comes_back(episode: Path) -> None:
    read = read_episode(episode)
    assert read.fields["points"] == Ragged.of(clouds())
    assert read_meta(episode)["ragged_fields"] == ["points"]
    for index, points in enumerate(clouds()):
        np.testing.assert_array_equal(read.step(index)["points"], points)
    assert "points: float32[4,P,4]" in repr(read)
    assert "points-offsets" not in read.fields
    assert validate_file(episode) == []


def test_numpy_alone_reads_the_rows_of_a_step(episode: Path) -> None:
    with np.load(episode, allow_pickle=False) as file:
        values, offsets = file["points"], file["points-offsets"]
    assert offsets.tolist() == [0, 3, 3, 5, 10]
    np.testing.assert_array_equal(values[offsets[3] : offsets[4]], clouds()[3])


def test_the_directory_tells_the_columns_without_reading_them(episode: Path) -> None:
    with EpisodeFile(episode) as file:
        assert file.ragged == ("points",)
        assert file.columns(["points", "q_a"]) == {
            "points": (np.dtype("f4"), (4, -1, 4)),
            "q_a": (np.dtype("f4"), (4, 3)),
        }


def test_an_episode_may_have_no_rows_at_all(tmp_path: Path) -> None:
    path = write_steps(
        tmp_path, [make_step(index, radar=np.zeros((0, 5), F32)) for index in (0, 1)]
    )
    radar = read_episode(path).fields["radar"]
    assert (radar.shape, len(radar.values), radar[1].shape) == ((2, -1, 5), 0, (0, 5))


def test_a_file_without_such_fields_says_nothing_of_them(tmp_path: Path) -> None:
    meta = read_meta(write_steps(tmp_path, [make_step()], ragged_fields=["points"]))
    assert "ragged_fields" not in meta


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
ROWS = st.integers(0, 4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def finite(shape: Any) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(F32, shape, elements=st.floats(-1e6, 1e6, width=32))


@st.composite
def episodes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Steps with fields of variable length, optional ones and unknown ones of any dtype."""
    count = draw(st.integers(1, 4))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(max_dims=3, min_side=0, max_side=3))
    elements = st.text(st.characters(exclude_categories=["Cs"]), max_size=2)
    steps = []
    for index in range(count):
        step = make_step(index, timestamp=index / 20, reward=draw(st.floats(-9, 9, width=32)))
        for name, size in (("points", 4), ("radar_rear", 5), ("imu", 7), ("rows_x", 2)):
            step[name] = draw(finite((draw(ROWS), size)))
        step["depth_top"] = draw(hnp.arrays(F32, (2, 3)))
        step["radar_map_a"] = draw(finite((3, 2)))
        step["rgb_surround_0"] = draw(hnp.arrays(np.uint8, (2, 2, 3)))
        step["phase"], step["note"] = draw(TEXTS), [draw(JSON)]
        step["mine"] = draw(
            hnp.arrays(dtype, shape, elements=elements if dtype.kind == "U" else None)
        )
        step["count"], step["ratio"] = draw(st.integers(-(2**63) + 1, 2**63 - 1)), draw(st.floats())
        steps.append(step)
    return steps


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(episodes(), st.sampled_from(["fast", "stored", "zlib"]))
def test_any_legal_steps_come_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[str, Any]], how: Any
) -> None:
    path = write_steps(tmp_path_factory.mktemp("any"), steps, how)
    read = read_episode(path)
    for index, step in enumerate(steps):
        back = read.step(index)
        assert back.keys() == step.keys()
        for name, value in step.items():
            assert _same(back[name], value), name


def _same(back: Any, value: Any) -> bool:
    if isinstance(value, np.ndarray):
        alike = back.dtype == value.dtype and back.shape == value.shape
        return bool(alike and back.tobytes() == value.tobytes())
    # np.float32: the grippers, which come back as Python numbers of the same value
    return bool(back == value or (back != back and value != value))


# The reader's guards.


def offsets(*values: int, dtype: Any = np.int64) -> dict[str, np.ndarray]:
    return {"points-offsets": np.array(values, dtype)}


def listed(*names: Any) -> dict[str, Any]:
    return {"meta": {"ragged_fields": [*names]}}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (listed(), "E115"),
        ({**listed(), "points-offsets": None}, "E241"),
        ({**listed(), "points-offsets": None, "points": np.zeros((4, 4), F32)}, "E113"),
        ({**listed("points", "q_a"), "q_a-offsets": np.arange(5)}, "E113"),
        ({**listed("points", "own"), "own": np.ones(4), "own-offsets": np.arange(5)}, "E113"),
        (listed("points", "nothing"), "E114"),
        (listed("points", "meta"), "E114"),
        (listed("points", "points"), "E114"),
        ({"points": None}, "E114"),
        ({"points-offsets": None}, "E115"),
        ({"other-offsets": np.arange(5)}, "E115"),
        ({"meta": {"ragged_fields": "points"}}, "E124"),
        (listed("points", 3), "E124"),
        (offsets(0, 3, 3, 5, 10, dtype=np.int32), "E116"),
        (offsets(0, 3, 3, 5, 10, dtype=">i8"), "E116"),
        (offsets(0, 3, 3, 5, 10, dtype=np.uint64), "E116"),
        (offsets(0, 3, 3, 10), "E116"),
        (offsets(0, 3, 3, 5, 10, 10), "E116"),
        ({"points-offsets": np.zeros((5, 1), np.int64)}, "E116"),
        ({"points-offsets": np.array(0)}, "E116"),
        (offsets(1, 3, 3, 5, 10), "E117"),
        (offsets(-1, 3, 3, 5, 10), "E117"),
        (offsets(0, 3, 2, 5, 10), "E118"),
        (offsets(0, 30, 3, 5, 10), "E118"),
        (offsets(0, -3, 3, 5, 10), "E118"),
        (offsets(0, 3, 3, 5, 9), "E119"),
        (offsets(0, 3, 3, 5, 11), "E119"),
        ({"points": np.zeros((9, 4), F32)}, "E119"),
        ({"points": np.zeros((10, 3), F32)}, "E106"),
        ({"points": np.zeros((10, 4))}, "E105"),
        ({"points": np.array(1.0, F32)}, "E106"),
    ],
)
def test_rows_and_offsets_agree(episode: Path, changes: dict[str, Any], code: str) -> None:
    assert code_of(read_episode, rewrite(episode, **changes)) == code


def test_the_field_of_damaged_offsets_is_named(episode: Path) -> None:
    rewrite(episode, **offsets(0, 3, 2, 5, 10))
    with pytest.raises(EpisodeError, match=r"points-offsets: .* falls at step 1"):
        read_episode(episode)


def test_a_damaged_field_is_refused_when_it_is_read_alone_too(episode: Path) -> None:
    rewrite(episode, **offsets(0, 3, 3, 5, 9))
    assert read_episode(episode, fields=["q_a"]).num_steps == 4
    with EpisodeFile(episode) as file:
        assert code_of(file.read, "points") == "E119"


def test_rows_have_an_axis(episode: Path) -> None:
    rewrite(episode, points=np.array(1.0, F32))
    with EpisodeFile(episode) as file:
        assert code_of(file.read, "points") == "E106"


def test_columns_that_vary_are_checked_without_a_file() -> None:
    column = {"points": (np.dtype("f4"), (4, -1, 4)), "radar": (np.dtype("f4"), (4, 2, 5))}
    found = list(validate_columns(column, (), 4, {}))
    assert [(error.where, error.code) for error in found] == [("radar", "E113")]
    assert all(isinstance(error, SchemaError) for error in found)
    assert str(found[0]) == "[E113] radar: expected float32[T,P,5], got float32[4,2,5]"

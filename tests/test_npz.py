"""The episode file: what is written comes back, and no bytes can hurt the reader."""

from __future__ import annotations

import io
import pickle
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sample_steps import (
    META,
    code_of,
    header,
    json_bytes,
    load,
    make_step,
    npy,
    npz_bytes,
    with_meta,
    write_episode,
    write_steps,
    zip_of,
)

from teamvla.data.codes import CODES
from teamvla.data.npz import Episode, EpisodeFile, read_episode, read_meta
from teamvla.data.zipcontainer import Member, MemberStream
from teamvla.errors import EpisodeError

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DTYPES = ["u1", "i2", "<i8", ">i4", "f2", "<f4", ">f4", "f8", "?", "c8", "<U3", ">U2", "S4"]


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return write_episode(tmp_path, note="ü")


# What is written comes back.


@FUZZ
@given(st.data(), st.sampled_from(["fast", "stored", "zlib"]))
def test_arrays_round_trip_bit_equal(tmp_path: Path, data: st.DataObject, how: Any) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=2)
    elements = texts if dtype.kind == "U" else None
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_side=0), elements=elements))
    path = tmp_path / "any.npz"
    path.write_bytes(npz_bytes({"meta": json_bytes(META), "x": array}, how))
    with EpisodeFile(path) as file:
        read = file.read("x")
    with np.load(path, allow_pickle=False) as archive:
        loaded = archive["x"]
    assert read.dtype == loaded.dtype == array.dtype
    assert read.shape == loaded.shape == array.shape
    assert read.tobytes() == loaded.tobytes() == array.tobytes()


@pytest.mark.parametrize("how", ["fast", "stored", "zlib"])
def test_bytes_depend_on_the_content_alone(how: Any) -> None:
    members = {"b": np.arange(9000) % 7, "a": np.ones((3, 2), np.float32)}
    assert npz_bytes(members, how) == npz_bytes(dict(reversed(members.items())), how)


def test_members_are_sorted_and_carry_no_clock() -> None:
    archive = zipfile.ZipFile(io.BytesIO(npz_bytes({"b": np.zeros(1), "a": np.zeros(1)})))
    assert archive.namelist() == ["a.npy", "b.npy"]
    assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_noise_is_stored_and_zeros_shrink() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)
    archive = zipfile.ZipFile(io.BytesIO(npz_bytes({"noise": noise, "zeros": np.zeros(50_000)})))
    methods = {info.filename: info.compress_type for info in archive.infolist()}
    assert methods == {"noise.npy": zipfile.ZIP_STORED, "zeros.npy": zipfile.ZIP_DEFLATED}
    assert archive.testzip() is None


def test_stored_members_can_be_found_in_the_file() -> None:
    array = np.zeros(50_000, np.uint8)
    assert array.tobytes() in npz_bytes({"x": array}, "stored")


def test_a_view_is_written_as_it_looks() -> None:
    array = np.arange(24).reshape(4, 6)[::2, ::-1].T
    loaded = np.load(io.BytesIO(npz_bytes({"x": array})))["x"]
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("array", [np.array([None]), np.zeros(2, "M8[s]"), np.zeros(1, "f4,i4")])
def test_what_needs_pickle_is_not_written(array: np.ndarray) -> None:
    assert code_of(npz_bytes, {"x": array}) == "E224"


def test_archives_of_numpy_are_read(episode: Path) -> None:
    with np.load(episode) as archive:
        members = dict(archive)
    members["q_a"] = np.asfortranarray(members["q_a"])
    for save in (np.savez, np.savez_compressed):
        other = episode.with_name(f"{save.__name__}.npz")
        save(other, **members)
        assert same(read_episode(other), read_episode(episode))


def same(one: Episode, other: Episode) -> bool:
    return (
        one.meta == other.meta
        and one.fields.keys() == other.fields.keys()
        and all(
            array.dtype == other.fields[name].dtype
            and array.shape == other.fields[name].shape
            and array.tobytes() == other.fields[name].tobytes()
            for name, array in one.fields.items()
        )
    )


def test_constants_are_expanded_on_reading(episode: Path) -> None:
    with np.load(episode) as archive:
        assert {"task", "instruction"}.isdisjoint(archive.files)
    read = read_episode(episode)
    assert read.fields["instruction"].tolist() == ["lift the tray"] * 4
    assert read.fields["task"].tolist() == ["lift"] * 4
    assert (read.task, read.instruction, read.episode_id) == ("lift", "lift the tray", "one")
    assert read.success
    assert read.num_steps == 4


def test_some_fields_can_be_read_alone(episode: Path) -> None:
    read = read_episode(episode, fields=["q_a", "instruction"])
    assert list(read.fields) == ["q_a", "instruction"]
    assert read.fields["q_a"].tobytes() == read_episode(episode).fields["q_a"].tobytes()


def test_what_is_read_may_be_written_to(episode: Path) -> None:
    read_episode(episode).fields["rgb_a"][:] = 0


def test_metadata_is_read_without_the_arrays(episode: Path) -> None:
    content = bytearray(episode.read_bytes())
    at = content.index(b"rgb_a.npy") + 20
    content[at : at + 40] = bytes(40)
    episode.write_bytes(content)
    assert read_meta(episode)["note"] == "ü"
    with pytest.raises(EpisodeError):
        read_episode(episode)


def test_the_repr_shows_shapes_and_no_numbers(episode: Path) -> None:
    text = repr(read_episode(episode))
    assert text.startswith("Episode(lift/one, 4 steps, action_a: float32[4,3]")
    assert len(text) < 600


# No bytes can hurt the reader.


def read_or_code(read: Callable[[], Episode]) -> Episode | None:
    """An episode, or ``None`` for a refusal with a known code; nothing else may happen."""
    try:
        return read()
    except EpisodeError as error:
        code = error.code
    assert code in CODES
    return None


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = write_steps(tmp_path, [make_step(0)])
    content, original = path.read_bytes(), read_episode(path)
    rng = random.Random(0)
    refused = 0
    for at in range(rng.randrange(2), len(content), 2):
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        read = read_or_code(lambda: read_episode(path))
        assert read is None or same(read, original), at
        refused += read is None
    assert refused > 0.3 * len(content)


def test_any_truncation_is_refused(tmp_path: Path) -> None:
    path = write_steps(tmp_path, [make_step(0)])
    content = path.read_bytes()
    for length in range(0, len(content), 5):
        path.write_bytes(content[:length])
        assert code_of(read_episode, path) in {"E201", "E203"}


@pytest.mark.parametrize("tail", [b"\0", b"more", bytes(100_000)])
def test_trailing_bytes_are_refused(episode: Path, tail: bytes) -> None:
    assert code_of(load, episode.read_bytes() + tail) == "E201"


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes) -> None:
    assert read_or_code(lambda: load(content)) is None


@FUZZ
@given(st.data())
def test_any_splice_gives_an_episode_or_an_error(episode: Path, data: st.DataObject) -> None:
    content = episode.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    read_or_code(lambda: load(content[:start] + data.draw(st.binary(max_size=40)) + content[stop:]))


@FUZZ
@given(st.binary(max_size=120))
def test_any_member_content_is_survived(content: bytes) -> None:
    read_or_code(lambda: load(with_meta(q_a=content)))


@FUZZ
@given(st.text(max_size=60))
def test_any_header_text_is_survived(text: str) -> None:
    text = text.encode("latin1", "replace").decode("latin1")
    read_or_code(lambda: load(with_meta(q_a=header(text))))


@FUZZ
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*META]) | st.text(), inner)
        ),
        max_leaves=12,
    )
)
def test_any_json_as_metadata_is_survived(value: Any) -> None:
    meta = {**META, **value} if isinstance(value, dict) else value
    read_or_code(lambda: load(zip_of({"meta.npy": npy(json_bytes(meta))})))


class _Payload:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("member", ["meta", "q_a", "steps"])
def test_a_pickle_is_never_executed(tmp_path: Path, member: str) -> None:
    marker = tmp_path / "executed"
    evil = npy(np.array([_Payload(marker)], dtype=object), allow_pickle=True)
    members = {"meta.npy": npy(json_bytes(META)), f"{member}.npy": evil}
    with pytest.raises(EpisodeError, match="pickled objects") as caught:
        load(zip_of(members))
    assert caught.value.code == "E223"
    assert not marker.exists()
    np.load(io.BytesIO(evil), allow_pickle=True)  # the payload does work
    assert marker.exists()


def test_a_bare_pickle_is_not_a_zip(tmp_path: Path) -> None:
    assert code_of(load, pickle.dumps(_Payload(tmp_path / "executed")) * 9) == "E201"
    assert not (tmp_path / "executed").exists()


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    zeros = np.zeros((10_000_000, 2, 2, 3), np.uint8)
    bomb = npz_bytes({"meta": json_bytes(META), "rgb_a": zeros})
    del zeros
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        assert code_of(load, bomb) == "E102"
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [0, 900, 1 << 20])
def test_inflating_stops_at_the_announced_size(announced: int) -> None:
    content = bytearray(npz_bytes({"x": np.zeros(40_000_000, np.uint8)}))
    content[6:8], content[14:26] = b"\x08\0", bytes(12)  # the sizes stand in the directory alone
    packed = content.index(b"PK\x01\x02") - 30 - len("x.npy")
    member = Member("x.npy", True, 0, packed, announced, 0)
    tracemalloc.start()
    try:
        stream = MemberStream(io.BytesIO(content), member, "x")
        stream.read(announced)
        assert code_of(stream.finish) == "E215"
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()

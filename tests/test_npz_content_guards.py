"""Guards over the arrays, metadata and columns of an episode file, by their codes."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import (
    META,
    array_header,
    code_of,
    header,
    json_bytes,
    load,
    npz_bytes,
    rewrite,
    with_meta,
    write_episode,
)

from teamvla.data import npz
from teamvla.data.npz import EpisodeFile, read_episode
from teamvla.errors import EpisodeError, InputError


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return write_episode(tmp_path, note="ü")


EMPTY = b"PK\x05\x06" + bytes(18)
TEXT = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    ("member", "code"),
    [
        (b"", "E221"),
        (b"\x93NUMPY\x01", "E221"),
        (b"\x93NUMPZ\x01\x00" + bytes(9), "E221"),
        (b"\x93NUMPY\x04\x00" + bytes(9), "E221"),
        (b"\x93NUMPY\x01\x01" + bytes(9), "E221"),
        (b"\x93NUMPY\x01\x00\xff\x00" + bytes(9), "E227"),
        (header(TEXT + " " * 5000) + bytes(8), "E227"),
        (header("", version=3), "E222"),
        (header("__import__('os').abort()"), "E222"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}; 1"), "E222"),
        (array_header("'<f4'", "(2, -1)"), "E222"),
        (array_header("'<f4'", "(2 ** 9,)"), "E222"),
        (array_header("[('a', '<f4')]", "(2,)"), "E222"),
        (array_header("'<f4'", "(2,)", "1"), "E222"),
        (array_header("'|O'", "(2,)") + bytes(16), "E223"),
        (array_header("'<M8'", "(2,)") + bytes(16), "E224"),
        (array_header("'<f3'", "(2,)") + bytes(6), "E224"),
        (array_header("'<f16'", "(2,)") + bytes(32), "E224"),
        (array_header("'<U0'", "(2,)"), "E224"),
        (array_header("'|V4'", "(2,)") + bytes(8), "E224"),
        (array_header("'<f4'", "(2,)") + bytes(7), "E225"),
        (array_header("'<f4'", "(2,)") + bytes(9), "E225"),
        (array_header("'<f4'", "(999999999999,)"), "E228"),
        (array_header("'<f4'", "(999999999999, 999999999999, 0)"), "E228"),
        (array_header("'<f4'", "(1, 1, 1, 1, 1, 1, 1, 1, 1)") + bytes(4), "E228"),
        (array_header("'|b1'", "(2,)") + b"\x00\x02", "E226"),
        (array_header("'<U1'", "(1,)") + struct.pack("<I", 0x110000), "E226"),
        (array_header("'>U1'", "(1,)") + struct.pack(">I", 0xD800), "E226"),
    ],
)
def test_array_guards(tmp_path: Path, member: bytes, code: str) -> None:
    path = tmp_path / "any.npz"
    path.write_bytes(with_meta(q=member))
    with EpisodeFile(path) as file:
        assert code_of(file.read, "q") == code


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_header_version_is_read(tmp_path: Path, version: int) -> None:
    text = "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 2), }   \n"
    path = tmp_path / "any.npz"
    path.write_bytes(with_meta(q=header(text, version) + struct.pack("<4h", 1, 2, 3, 4)))
    with EpisodeFile(path) as file:
        assert file.read("q").tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        (np.zeros(3, np.int8), "E231"),
        (np.zeros((1, 3), np.uint8), "E231"),
        (np.zeros(5 << 20, np.uint8), "E125"),
        (np.frombuffer(b"\xff{}", np.uint8), "E232"),
        (np.frombuffer(b"{", np.uint8), "E232"),
        (np.frombuffer(b"[" * 200_000, np.uint8), "E232"),
        (np.frombuffer(b"1" * 5000, np.uint8), "E232"),
        (json_bytes([META]), "E233"),
        (json_bytes({**META, "deep": json.loads("[" * 40 + "]" * 40)}), "E234"),
        (json_bytes({**META, "x": float("nan")}), "E121"),
        (np.frombuffer(b'{"task":"a","episode_id":"b","x":1e999}', np.uint8), "E121"),
        (np.frombuffer(b'{"task":"a","episode_id":"b","x":"\\ud800"}', np.uint8), "E121"),
        (json_bytes({**META, "version": 1}), "E126"),
        (json_bytes({**META, "task": "../x"}), "E123"),
        (json_bytes({**META, "num_steps": 2.0}), "E124"),
        (json_bytes({**META, "json_fields": {"a": 1}}), "E124"),
        (json_bytes({**META, "json_fields": [3]}), "E124"),
        (json_bytes({**META, "instruction": 3}), "E104"),
        *[(json_bytes({k: v for k, v in META.items() if k != key}), "E122") for key in META],
    ],
)
def test_metadata_guards(meta: np.ndarray, code: str) -> None:
    assert code_of(load, npz_bytes({"meta": meta})) == code


def test_a_file_without_metadata_is_refused() -> None:
    assert code_of(load, npz_bytes({"q": np.zeros(2)})) == "E231"
    assert code_of(load, EMPTY) == "E231"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"q_a": None}, "E102"),
        ({"q_a": np.zeros((4, 3))}, "E105"),
        ({"success": np.zeros(4, np.uint8)}, "E105"),
        ({"rgb_a": np.zeros((4, 4, 5), np.uint8)}, "E106"),
        ({"action_a": np.zeros((4, 2), np.float32)}, "E106"),
        ({"q_a": np.zeros((5, 3), np.float32)}, "E241"),
        ({"extra": np.array(1.0)}, "E241"),
        ({"meta": {"num_steps": 5}}, "E241"),
        ({"meta": {"num_steps": 0}}, "E303"),
    ],
)
def test_columns_keep_to_the_schema(episode: Path, changes: dict[str, Any], code: str) -> None:
    assert code_of(read_episode, rewrite(episode, **changes)) == code


def test_a_field_that_is_not_there_is_named(episode: Path) -> None:
    with pytest.raises(EpisodeError, match="a field called depth_a") as caught:
        read_episode(episode, fields=["depth_a"])
    assert caught.value.code == "E242"


def test_a_json_field_without_json_is_refused(episode: Path) -> None:
    rewrite(episode, note=np.array(["[1]", "{", "1", "1"]), meta={"json_fields": ["note"]})
    read = read_episode(episode)
    assert read.step(0)["note"] == [1]
    assert code_of(read.step, 1) == "E243"


@pytest.mark.parametrize("name", ["missing.npz", "."])
def test_what_is_not_a_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        read_episode(tmp_path / name)


@pytest.mark.parametrize(
    ("listed", "code"),
    [(["nothing"], "E127"), (["note", "note"], "E127"), (["meta"], "E127"), (["rgb_a"], "E128")],
)
def test_only_texts_of_the_file_are_parsed_as_json(
    episode: Path, listed: list[str], code: str
) -> None:
    rewrite(episode, note=np.array(["1"] * 4), meta={"json_fields": listed})
    assert code_of(EpisodeFile, episode) == code


def test_texts_of_two_axes_are_not_parsed_as_json(episode: Path) -> None:
    rewrite(episode, note=np.array([["1", "2"]] * 4), meta={"json_fields": ["note"]})
    assert code_of(EpisodeFile, episode) == "E128"


def test_the_largest_metadata_take_little_memory(tmp_path: Path) -> None:
    room = npz.MAX_META_BYTES - 1000
    bomb = json.dumps({**META, "x": [{}] * (room // 3)}, separators=(",", ":")).encode()
    path = tmp_path / "bomb.npz"
    path.write_bytes(npz_bytes({"meta": np.frombuffer(bomb, np.uint8)}))
    tracemalloc.start()
    try:
        with EpisodeFile(path) as file:
            assert len(file.meta["x"]) == room // 3
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()

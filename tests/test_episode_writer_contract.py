"""The contract that an episode begins with is the one that its steps keep, to the end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import CONTRACT, code_of, files, make_step

from teamvla.data.columns import NumberColumn
from teamvla.data.npz import read_episode
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import SchemaError


def begun(root: Path) -> EpisodeWriter:
    writer = EpisodeWriter(root)
    writer.start_episode({"task": "lift", "episode_id": "one", "contract": CONTRACT})
    return writer


@pytest.mark.parametrize("change", [{"contract": {"arms": []}}, {"contract_digest": "0" * 64}])
def test_another_contract_at_the_end_is_refused_and_the_episode_goes_on(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    writer = begun(tmp_path)
    writer.add_step(make_step())
    assert code_of(writer.end_episode, True, change) == "E313"
    assert files(tmp_path) == ["lift/.one.part"]
    path = writer.end_episode(True, {"contract": copy.deepcopy(CONTRACT)})
    assert read_episode(path).meta["contract"] == CONTRACT


def test_what_a_reader_would_refuse_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begun(tmp_path)
    writer.add_step(make_step())
    with monkeypatch.context() as patch:
        patch.setattr(NumberColumn, "members", lambda self: {self._name: np.zeros(3, self._dtype)})
        assert code_of(writer.end_episode) == "E241"
    assert files(tmp_path) == ["lift/.one.part"]
    assert read_episode(writer.end_episode()).num_steps == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"q_b": np.zeros(6, np.float32), "action_b": np.zeros(6, np.float32)}, "E412"),
        ({"rgb_a": np.zeros((5, 4, 3), np.uint8)}, "E413"),
    ],
)
def test_the_first_step_has_the_sizes_of_the_contract(
    tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    writer = begun(tmp_path)
    assert code_of(writer.add_step, make_step(**change)) == code
    writer.add_step(make_step())
    assert writer.end_episode().exists()


def test_arrays_of_a_memory_map_are_taken(tmp_path: Path) -> None:
    kept = np.memmap(tmp_path / "q", np.float32, "w+", shape=(2, 3))
    kept[:] = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer = begun(tmp_path)
    for index in range(2):
        writer.add_step(make_step(index, q_a=kept[index], extra=kept[index]))
    episode = read_episode(writer.end_episode())
    np.testing.assert_array_equal(episode.fields["q_a"], kept)
    np.testing.assert_array_equal(episode.fields["extra"], kept)


def test_masked_arrays_are_refused(tmp_path: Path) -> None:
    masked = np.ma.masked_array(np.zeros(3, np.float32), [True, False, False])
    with pytest.raises(SchemaError, match=r"got masked float32\[3\]"):
        begun(tmp_path).add_step(make_step(q_a=masked))


def test_an_unknown_field_that_grows_is_told_how_to_be_called(tmp_path: Path) -> None:
    writer = begun(tmp_path)
    writer.add_step(make_step(hits=np.zeros((2, 3), np.float32)))
    with pytest.raises(SchemaError, match="rows_NAME"):
        writer.add_step(make_step(hits=np.zeros((5, 3), np.float32)))

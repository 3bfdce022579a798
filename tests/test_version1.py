"""Version 1: every way NumPy writes it is read, and its actions are put where they belong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import META1, Entry, pickled, zip_bytes
from sample_steps import CONTRACT, make_step

from teamvla.data.pickles import load_objects
from teamvla.data.version1 import read_version1
from teamvla.errors import ConfigError, EpisodeError

STEPS = [make_step(n, note={"seen": [1, 2.5, None]}, count=n) for n in range(5)]
META = {**META1, "num_steps": 5, "seed": np.int64(3), "success": np.bool_(True)}


def objects(value: Any, *shape: int) -> np.ndarray:
    made = np.empty(shape, object)
    made[...] = value
    return made


def saved(path: Path, save: Any = np.savez_compressed, **members: Any) -> Path:
    save(path, **{"metadata": objects(META), "steps": objects(STEPS, 5), **members})
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return saved(tmp_path / "old.npz")


def test_actions_and_success_move_to_the_row_they_were_sent_from(old: Path) -> None:
    read = read_version1(old)
    assert read.num_steps == 4
    for row in range(4):
        for arm in "ab":
            sent, seen = STEPS[row + 1], STEPS[row]
            np.testing.assert_array_equal(read.fields[f"action_{arm}"][row], sent[f"action_{arm}"])
            np.testing.assert_array_equal(read.fields[f"q_{arm}"][row], seen[f"q_{arm}"])
            np.testing.assert_array_equal(read.fields[f"rgb_{arm}"][row], seen[f"rgb_{arm}"])
            assert read.fields[f"grip_{arm}"][row] == seen[f"grip_{arm}"]
        assert read.fields["success"][row] == STEPS[row + 1]["success"]


def test_the_last_success_flag_is_kept(tmp_path: Path) -> None:
    steps = [make_step(n, success=n == 4) for n in range(5)]
    read = read_version1(saved(tmp_path / "old.npz", steps=objects(steps, 5)))
    assert read.fields["success"].tolist() == [False, False, False, True]


def test_rows_stay_where_they_are_on_demand(old: Path) -> None:
    read = read_version1(old, legacy_actions="current")
    assert read.num_steps == 5
    for row in range(5):
        np.testing.assert_array_equal(read.fields["action_a"][row], STEPS[row]["action_a"])
    assert read.fields["success"].tolist() == [step["success"] for step in STEPS]
    assert read.meta["version1"] == {"legacy_actions": "current", "num_steps": 5}


def test_the_metadata_becomes_that_of_version_2(old: Path) -> None:
    meta = read_version1(old).meta
    assert meta == {
        "task": "lift", "episode_id": "x", "success": True, "seed": 3, "version": 2,
        "num_steps": 4, "instruction": "lift the tray", "json_fields": ["note"],
        "version1": {"legacy_actions": "previous", "num_steps": 5},
    }  # fmt: skip


def test_dtypes_are_those_of_the_schema(old: Path) -> None:
    read = read_version1(old)
    kinds = {name: read.fields[name].dtype.str for name in ("rgb_a", "q_a", "grip_a", "count")}
    assert kinds == {"rgb_a": "|u1", "q_a": "<f4", "grip_a": "<f4", "count": "<i8"}
    assert read.step(1)["note"] == {"seen": [1, 2.5, None]}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("meta", "steps"), [((), (5,)), ((1,), (5,)), ((), ())])
def test_every_layout_reads_alike(old: Path, save: Any, meta: Any, steps: Any) -> None:
    other = old.with_name("other.npz")
    held = objects(STEPS, 5)
    if not steps:
        held = np.empty((), object)
        held[()] = STEPS
    save(other, meta=objects(META, *meta), step_data=held)
    assert same(read_version1(other), read_version1(old))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_reads_alike(old: Path, protocol: int) -> None:
    other = old.with_name("other.npz")
    members = {"meta": pickled(META, protocol), "steps": pickled(STEPS, protocol)}
    other.write_bytes(zip_bytes([Entry(f"{n}.npy".encode(), c) for n, c in members.items()]))
    assert same(read_version1(other), read_version1(old))


def same(one: Any, other: Any) -> bool:
    return (
        one.meta == other.meta
        and one.fields.keys() == other.fields.keys()
        and all(one.fields[n].tobytes() == other.fields[n].tobytes() for n in one.fields)
    )


class _Pipe(io.BytesIO):
    """Cannot be rewound: sizes go behind the members, into data descriptors."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, *_: int) -> int:
        raise OSError


def test_an_archive_written_to_a_pipe_is_read(old: Path) -> None:
    pipe = _Pipe()
    np.savez_compressed(pipe, metadata=objects(META), steps=objects(STEPS, 5))
    other = old.with_name("other.npz")
    other.write_bytes(pipe.getvalue())
    assert same(read_version1(other), read_version1(old))


def test_points_of_any_number_become_one_column(tmp_path: Path) -> None:
    clouds = [np.full((n, 4), n, np.float32) for n in (2, 0, 3, 1, 1)]
    steps = [{**make_step(n), "points": clouds[n]} for n in range(5)]
    read = read_version1(saved(tmp_path / "old.npz", steps=objects(steps, 5)))
    assert read.meta["ragged_fields"] == ["points"]
    assert [len(cloud) for cloud in read.fields["points"]] == [2, 0, 3, 1]


def test_a_bad_step_is_named(tmp_path: Path) -> None:
    steps = [make_step(n) for n in range(5)]
    steps[3]["grip_b"] = 1.5
    with pytest.raises(EpisodeError, match=r"steps\[3\]\.grip_b") as caught:
        read_version1(saved(tmp_path / "old.npz", steps=objects(steps, 5)))
    assert caught.value.code == "E108"


def test_another_alignment_is_a_wrong_setting(old: Path) -> None:
    with pytest.raises(ConfigError, match="previous or current"):
        read_version1(old, legacy_actions="next")  # type: ignore[arg-type]


def test_arrays_are_views_of_the_stream() -> None:
    from teamvla.data.pickle_machine import Budget

    whole = pickled([np.arange(100_000)], 4)
    stream = bytearray(whole[whole.index(b"\n") + 1 :])
    (array,) = load_objects(stream, (1,), Budget(100_000, "x"))
    assert array.tolist()[-1] == 99_999
    assert not array.flags.owndata


def test_the_fields_are_those_of_the_contract_in_the_metadata(tmp_path: Path) -> None:
    contract = {"embodiment": "single_arm", "arms": CONTRACT["arms"][:1],
                "cameras": CONTRACT["cameras"][:1]}  # fmt: skip
    steps = [{k: v for k, v in step.items() if not k.endswith("_b")} for step in STEPS]
    path = saved(tmp_path / "old.npz", steps=objects(steps, 5),
                 metadata=objects({**META, "contract": contract}))  # fmt: skip
    read = read_version1(path)
    assert "q_b" not in read.fields
    np.testing.assert_array_equal(read.fields["action_a"][0], STEPS[1]["action_a"])
    saved(path, metadata=objects({**META, "contract": [1]}))
    with pytest.raises(EpisodeError) as caught:
        read_version1(path)
    assert caught.value.code == "E411"


@pytest.mark.parametrize(
    ("steps", "code", "mend"),
    [
        (STEPS[:1], "E276", "--legacy-actions current"),
        ([{**STEPS[0], "task": "other"}, *STEPS[1:]], "E277", "where it was written"),
        ([{k: v for k, v in step.items() if k != "q_a"} for step in STEPS], "E102", "where it was"),
        ([{**step, "extra": np.float32(1)} for step in STEPS], "E110", "Use a Python number"),
    ],
)
def test_sound_bytes_that_break_a_rule_are_not_to_be_copied_again(
    tmp_path: Path, steps: list[dict[str, Any]], code: str, mend: str
) -> None:
    said = objects({**META, "num_steps": len(steps)})
    path = saved(tmp_path / "old.npz", steps=objects(steps, len(steps)), metadata=said)
    with pytest.raises(EpisodeError) as caught:
        read_version1(path)
    assert caught.value.code == code
    assert mend in caught.value.mend
    assert "another copy" not in caught.value.mend

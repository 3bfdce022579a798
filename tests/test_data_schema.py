"""Steps, metadata, and the table of codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_steps import code_of, make_step, without

import teamvla.data
from teamvla.data.codes import CODES
from teamvla.data.schema import (
    EPISODE_FILE_VERSION,
    NAME,
    OPTIONAL_FIELDS,
    STEP_SPECS,
    EpisodeMeta,
    spec_of,
    validate_episode_meta,
    validate_step,
)
from teamvla.errors import SchemaError

F32 = np.float32


def test_a_legal_step_passes() -> None:
    validate_step(make_step())


@pytest.mark.parametrize("name", STEP_SPECS)
def test_every_required_field_is_required(name: str) -> None:
    assert code_of(validate_step, without(make_step(), name)) == "E102"


@pytest.mark.parametrize("step", [None, [], 3, "step"])
def test_a_step_is_a_mapping(step: Any) -> None:
    assert code_of(validate_step, step) == "E101"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("rgb_a", np.zeros((4, 5, 3), np.int8), "E105"),
        ("rgb_a", np.zeros((4, 5, 4), np.uint8), "E106"),
        ("rgb_a", np.zeros((4, 5), np.uint8), "E106"),
        ("rgb_a", np.zeros((0, 5, 3), np.uint8), "E106"),
        ("rgb_a", [[0, 0, 0]], "E104"),
        ("q_a", np.zeros(3), "E105"),
        ("q_a", np.zeros(3, ">f4"), "E105"),
        ("q_a", np.zeros((3, 1), F32), "E106"),
        ("q_a", np.zeros(0, F32), "E106"),
        ("q_a", [0.0, 0.0, 0.0], "E104"),
        ("q_a", 0.5, "E104"),
        ("q_a", np.array([0, np.nan, 0], F32), "E107"),
        ("q_a", np.array([0, 0, -np.inf], F32), "E107"),
        ("action_a", np.zeros(4, F32), "E106"),
        ("grip_a", 1, "E104"),
        ("grip_a", True, "E104"),
        ("grip_a", np.float64(0.5), "E104"),
        ("grip_a", np.zeros(1, F32), "E104"),
        ("grip_a", float("nan"), "E107"),
        ("grip_a", 1.01, "E108"),
        ("grip_a", F32(-0.01), "E108"),
        ("instruction", b"lift", "E104"),
        ("instruction", np.str_("lift"), "E104"),
        ("instruction", "", "E109"),
        ("instruction", "lift\0", "E109"),
        ("instruction", "\ud800", "E109"),
        ("success", 1, "E104"),
        ("success", "yes", "E104"),
        ("depth_a", np.zeros((4, 5)), "E105"),
        ("depth_a", np.zeros((4, 5, 1), F32), "E106"),
        ("qd_b", np.array([np.nan], F32), "E107"),
        ("grip_q_a", 1.2, "E108"),
        ("timestamp", F32(0.5), "E104"),
        ("timestamp", float("inf"), "E107"),
        ("phase", 3, "E104"),
        ("rgb_wrist_a", np.zeros((4, 5), np.uint8), "E106"),
    ],
)
def test_known_fields_are_checked(name: str, value: Any, code: str) -> None:
    assert code_of(validate_step, make_step(**{name: value})) == code


def test_a_large_array_is_checked_for_finite_values_too() -> None:
    values = np.zeros(500, F32)
    values[499] = np.nan
    with pytest.raises(SchemaError, match=r"qd_a: expected finite numbers, got 1 NaN"):
        validate_step(make_step(qd_a=values))


@pytest.mark.parametrize(
    "fields",
    [
        {"grip_a": 0.0, "grip_b": np.float32(1.0)},
        {"grip_a": np.zeros((), F32)},
        {"success": np.True_},
        {"depth_a": np.full((4, 5), np.nan, F32)},
        {"grip_q_a": 1.05, "timestamp": 0.05, "phase": "reach", "ee_a": np.zeros(7, F32)},
        {"points": np.zeros((9, 3)), "label": "x", "count": 3, "ratio": float("nan")},
        {"note": {"a": [1, None, "ü"]}, "tags": [], "nothing": None, "empty": ""},
        {"raw": np.array([b"ab"]), "words": np.array(["ab", "c"])},
    ],
)
def test_legal_fields_pass(fields: dict[str, Any]) -> None:
    validate_step(make_step(**fields))


@pytest.mark.parametrize("value", [np.float32(1), np.int64(3), np.bool_(True), np.zeros(())])
def test_numpy_scalars_in_unknown_fields_are_refused(value: Any) -> None:
    assert code_of(validate_step, make_step(extra=value)) == "E110"


@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, b"bytes", (1, 2), [np.float32(1)], {"a": float("nan")}, 1 << 63, {1: 2},
        np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")]), np.zeros(2, "f16"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    assert code_of(validate_step, make_step(extra=value)) == "E111"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Rgb",
        "../x",
        "a b",
        "a" * 65,
        "_x",
        "meta",
        3,
        "é",
        "q\n",
        "depth_*",
        "depth_../x",
        "qd_A",
        "rgb_wrist_" + "a" * 64,
    ],
)
def test_field_names_that_cannot_be_stored_are_refused(name: Any) -> None:
    assert code_of(validate_step, {**make_step(), name: 1.0}) == "E103"


def test_more_fields_than_a_file_has_room_for_are_refused() -> None:
    step = make_step(**{f"x{number}": 1 for number in range(90)})
    assert code_of(validate_step, step) == "E112"


def test_the_message_says_where_what_and_got() -> None:
    with pytest.raises(SchemaError) as caught:
        validate_step(make_step(q_a=np.zeros(3)))
    assert str(caught.value) == "[E105] q_a: expected float32[N], got float64[3]"


def test_patterns_need_something_in_place_of_the_star() -> None:
    assert spec_of("depth_") is None
    assert spec_of("depth_front") is OPTIONAL_FIELDS["depth_*"]
    assert spec_of("grip_q_a") is OPTIONAL_FIELDS["grip_q_*"]


def test_every_spec_is_described() -> None:
    for name, spec in {**STEP_SPECS, **OPTIONAL_FIELDS}.items():
        assert spec.name == name
        assert spec.description.endswith(".")


def test_metadata_is_coerced() -> None:
    meta = validate_episode_meta(
        {"task": "lift", "episode_id": "a-1", "success": True, "num_steps": 4, "seed": 7}
    )
    assert meta == EpisodeMeta("lift", "a-1", True, 4, EPISODE_FILE_VERSION, {"seed": 7})
    assert validate_episode_meta(meta) == meta
    assert meta.to_dict()["seed"] == 7


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "../lift"}, "E123"),
        ({"task": "Lift"}, "E123"),
        ({"task": 3}, "E123"),
        ({"episode_id": "a/b"}, "E123"),
        ({"episode_id": "a" * 65}, "E123"),
        ({"episode_id": "-a"}, "E123"),
        ({"episode_id": "a\n"}, "E123"),
        ({"success": 1}, "E124"),
        ({"num_steps": -1}, "E124"),
        ({"num_steps": True}, "E124"),
        ({"num_steps": 10**12}, "E124"),
        ({"version": 1}, "E126"),
        ({"version": "2"}, "E126"),
        ({"version": 2.0}, "E126"),
        ({"extra": float("nan")}, "E121"),
        ({"extra": np.float32(1)}, "E121"),
        ({"extra": "\ud800"}, "E121"),
        ({"extra": json.loads("[" * 40 + "]" * 40)}, "E234"),
    ],
)
def test_bad_metadata_is_refused(changes: dict[str, Any], code: str) -> None:
    assert code_of(validate_episode_meta, {"task": "lift", "episode_id": "x", **changes}) == code


@pytest.mark.parametrize(("meta", "code"), [(3, "E121"), ({}, "E122"), ({"task": "a"}, "E122")])
def test_incomplete_metadata_is_refused(meta: Any, code: str) -> None:
    assert code_of(validate_episode_meta, meta) == code


@given(st.text())
def test_a_name_is_never_a_path(name: str) -> None:
    if NAME.fullmatch(name):
        assert Path("root", name).parent == Path("root")
        assert name == name.strip().lower()


def test_every_code_that_is_raised_is_in_the_table_and_has_a_test() -> None:
    folder = Path(teamvla.data.__file__).parent
    # The index has codes of its own, outside this table.
    parts = ["schema", "columns", "npy", "npz", "zipcontainer", "writer", "validation"]
    raised = {c for part in parts for c in _codes(folder / f"{part}.py")}
    tested = {c for path in Path(__file__).parent.glob("test_*.py") for c in _codes(path)}
    assert raised == set(CODES)
    assert set(CODES) <= tested


def _codes(path: Path) -> set[str]:
    return set(re.findall(r'"(E\d{3})"', path.read_text(encoding="utf-8")))

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
from teamvla.contract import Arm, Contract
from teamvla.data.casting import as_step
from teamvla.data.codes import CODES
from teamvla.data.schema import (
    EPISODE_FILE_VERSION,
    NAME,
    OPTIONAL_FIELDS,
    STEP_SPECS,
    EpisodeMeta,
    spec_of,
    step_specs,
    validate_episode_meta,
    validate_step,
)
from teamvla.data.specs import VARIABLE, FieldSpec
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
        ("rgb_surround_0", np.zeros((4, 5, 1), np.uint8), "E106"),
        ("radar_map_a", np.zeros((4, 5, 1), F32), "E106"),
        ("radar_map_a", np.full((4, 5), np.inf, F32), "E107"),
        ("reward", 1, "E104"),
        ("reward", float("nan"), "E107"),
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
        {"cells": np.zeros((9, 3)), "label": "x", "count": 3, "ratio": float("nan")},
        {"note": {"a": [1, None, "ü"]}, "tags": [], "nothing": None, "empty": ""},
        {"raw": np.array([b"ab"]), "words": np.array(["ab", "c"])},
    ],
)
def test_legal_fields_pass(fields: dict[str, Any]) -> None:
    validate_step(make_step(**fields))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1), np.int64(3), np.bool_(True), np.zeros(()), [np.float32(1)], [np.int64(1)],
        {"a": np.float64(1)}, {"a": [{"b": np.float64(1)}]}, {np.str_("a"): 1},
    ],
)  # fmt: skip
def test_numpy_scalars_anywhere_in_unknown_fields_are_refused(value: Any) -> None:
    assert code_of(validate_step, make_step(extra=value)) == "E110"


@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, b"bytes", (1, 2), {"a": float("nan")}, 1 << 63, {1: 2},
        np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, [("a", "f4")]), np.zeros(2, "f16"),
        np.ma.masked_array([1.0, 2.0], [True, False]),
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


def spec_with(dtype: str, shape: tuple[int | str, ...], **ends: float) -> FieldSpec:
    return FieldSpec("x", np.dtype(dtype), shape, "X.", **ends)


@pytest.mark.parametrize(
    ("spec", "value", "said"),
    [
        (spec_with("f4", (2,), low=0), np.array([1, -2], F32), r">= 0, got -2 \(1 of 2 numbers"),
        (
            spec_with("f4", ("P", 1), high=1),
            np.full((3, 1), 2, F32),
            r"<= 1, got 2 \(3 of 3 numbers",
        ),
        (spec_with("u1", (1, 2), low=1, high=3), np.array([[0, 4]], "u1"), r"in \[1, 3\], got 0"),
        (spec_with("i8", (), low=0), -1, "a value >= 0, got -1"),
        (spec_with("i8", (), high=2), np.int64(3), "a value <= 2, got 3"),
        (spec_with("f8", (), low=0, high=1), 1.5, r"a value in \[0, 1\], got 1.5"),
    ],
)
def test_numbers_out_of_range_are_named(spec: FieldSpec, value: Any, said: str) -> None:
    with pytest.raises(SchemaError, match=said) as caught:
        spec.check("x", value)
    assert caught.value.code == "E108"


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (spec_with("f4", (2,), low=0), np.array([0, 9], F32)),
        (spec_with("f4", ("P", 1), low=5), np.zeros((0, 1), F32)),
        (spec_with("i8", (), low=0, high=2), 2),
        (spec_with("i8", ()), np.array(-7)),
        (spec_with("u1", ()), 255),
        (spec_with("?", ()), np.False_),
    ],
)
def test_numbers_in_range_pass(spec: FieldSpec, value: Any) -> None:
    spec.check("x", value)


@pytest.mark.parametrize(
    ("dtype", "value"), [("u1", 256), ("u1", -1), ("i8", 1 << 63), ("i8", True), ("?", 1)]
)
def test_whole_numbers_fit_their_dtype(dtype: str, value: Any) -> None:
    assert code_of(spec_with(dtype, ()).check, "x", value) == "E104"


def test_patterns_need_something_in_place_of_the_star() -> None:
    assert spec_of("depth_") is None
    assert spec_of("depth_front") is OPTIONAL_FIELDS["depth_*"]
    assert spec_of("grip_q_a") is OPTIONAL_FIELDS["grip_q_*"]


def test_the_longest_pattern_governs() -> None:
    assert spec_of("radar_map_front") is OPTIONAL_FIELDS["radar_map_*"]
    assert spec_of("radar_front") is OPTIONAL_FIELDS["radar_*"]
    assert spec_of("radar_map") is OPTIONAL_FIELDS["radar_*"]
    assert spec_of("radar") is OPTIONAL_FIELDS["radar"]


def test_every_spec_is_described() -> None:
    for name, spec in {**STEP_SPECS, **OPTIONAL_FIELDS}.items():
        assert spec.name == name
        assert spec.description.endswith(".")


def test_what_varies_stands_first_and_alone() -> None:
    shapes = [spec.shape for spec in {**STEP_SPECS, **OPTIONAL_FIELDS}.values()]
    assert {VARIABLE in shape[1:] for shape in shapes} == {False}
    assert sum(spec.is_ragged for spec in OPTIONAL_FIELDS.values()) == 7


# Your values in the schema's types.

CLOUD = np.arange(8.0).reshape(2, 4)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("q_a", [0, 1, 2.5], np.array([0, 1, 2.5], F32)),
        ("q_a", np.array([0.1, 0.2]), np.array([0.1, 0.2], F32)),
        ("q_a", np.array([1, 2], ">f4"), np.array([1, 2], F32)),
        ("q_a", np.array([1, 2], np.int64), np.array([1, 2], F32)),
        ("q_a", np.array([1 << 24]), np.array([1 << 24], F32)),
        ("depth_a", np.array([[1.0, np.nan, np.inf]]), np.array([[1, np.nan, np.inf]], F32)),
        ("rgb_a", np.full((2, 2, 3), 255), np.full((2, 2, 3), 255, np.uint8)),
        ("points", CLOUD, CLOUD.astype(F32)),
        ("grip_a", np.array([0.5]), 0.5),
        ("grip_a", np.float64(0.1), float(F32(0.1))),
        ("grip_a", 1, 1.0),
        ("timestamp", np.float64(0.1), 0.1),
        ("success", np.uint8(1), True),
        ("success", 0.0, False),
        ("task", b"lift", "lift"),
        ("task", np.str_("lift"), "lift"),
        ("instruction", np.array("hebe ü".encode()), "hebe ü"),
        ("own", np.float32(0.5), 0.5),
        ("own", np.array(3), 3),
        ("own", np.arange(3), np.arange(3)),
        ("own", {"a": [1]}, {"a": [1]}),
    ],
)
def test_values_are_cast_to_the_type_of_their_field(name: str, value: Any, expected: Any) -> None:
    step = {name: value}
    result = as_step(step)[name]
    assert step[name] is value
    assert type(result) is type(expected)
    if isinstance(expected, np.ndarray):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("rgb_a", np.ones((2, 2, 3)), "E105"),
        ("rgb_a", np.full((2, 2, 3), 256), "E108"),
        ("rgb_a", np.full((2, 2, 3), -1), "E108"),
        ("q_a", [1e39], "E108"),
        ("q_a", [(1 << 24) + 1], "E108"),
        ("q_a", [1 << 63], "E108"),
        ("q_a", [1 << 70], "E104"),
        ("timestamp", (1 << 53) + 1, "E108"),
        ("success", 2, "E108"),
        ("success", 0.5, "E108"),
        ("success", float("inf"), "E108"),
        ("grip_a", [0.1, 0.2], "E104"),
        ("q_a", [[1], [2, 3]], "E104"),
        ("q_a", "0 1 2", "E104"),
        ("q_a", None, "E104"),
        ("q_a", [1 + 2j], "E104"),
        ("task", b"\xff", "E109"),
    ],
)
def test_what_would_be_lost_is_not_cast(name: str, value: Any, code: str) -> None:
    assert code_of(as_step, {name: value}) == code


def test_pictures_of_floats_are_not_guessed_at() -> None:
    with pytest.raises(SchemaError, match=r"If they are 0\.\.1: np\.rint\(255 \* picture\)"):
        as_step({"rgb_a": np.ones((2, 2, 3))})


def test_a_cast_step_is_legal_and_a_legal_step_stays_as_it_is() -> None:
    mine = {n: v.astype(np.float64) if n[0] in "qa" else v for n, v in make_step().items()}
    assert code_of(validate_step, mine) == "E105"
    validate_step(as_step(mine))
    legal = make_step()
    cast = as_step(legal)
    assert all(cast[name] is legal[name] for name in legal if isinstance(legal[name], np.ndarray))


def test_fields_of_a_contract_are_cast_by_its_specs() -> None:
    contract = Contract(embodiment="single_arm", arms=(Arm(name="x", joints=("j",)),), cameras=())
    mine = {"q_x": [1.0], "action_x": [1.0], "grip_x": np.float64(0.5)}
    cast = as_step(mine, step_specs(contract))
    assert (cast["q_x"].dtype, cast["grip_x"]) == (F32, 0.5)
    assert as_step(mine)["q_x"] is mine["q_x"]


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
    texts = {"codes.py", "explanations.py", "reasons.py"}
    raised = _codes(Path(teamvla.data.__file__).parent, texts)
    tested = _codes(Path(__file__).parent, set())
    # E5xx: the index has codes of its own, outside this table.
    assert {code for code in raised if not code.startswith("E5")} == set(CODES)
    assert set(CODES) <= tested


def _codes(folder: Path, passed_over: set[str]) -> set[str]:
    sources = (path for path in folder.rglob("*.py") if path.name not in passed_over)
    return {
        code
        for path in sources
        for code in re.findall(r'"([EWI]\d{3})"', path.read_text(encoding="utf-8"))
    }

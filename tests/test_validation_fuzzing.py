"""Validating whatever a file holds: odd names, arms, lengths and dtypes give findings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import CONTRACT, META, json_bytes, npz_bytes

from teamvla.data.codes import CODES
from teamvla.data.overview.survey import Facts, look
from teamvla.data.validation import Finding, Selection, validate_file, validate_roots
from teamvla.data.validation import run as validating

T = 14
_NAMES = (
    "q_x", "action_x", "grip_x", "grip_", "grip_q_a", "grip_q_x", "q_", "q_c", "action_c", "q_a",
    "action_b", "grip_b", "qd_a", "qd_x", "ee_a", "ee_x", "timestamp", "success", "rgb_a", "rgb_x",
    "depth_a", "front", "phase", "task", "instruction", "points", "reward",
)  # fmt: skip
_DTYPES = ("f4", "f8", "f2", "u1", "i8", "?", "U3", "c8", "S2")
_SHAPES = (
    (T,), (T, 1), (T, 0), (T, 3), (T, 7), (T, 2, 2, 3), (T, 0, 2, 3), (T, 1, 1, 3), (T, 9, 9, 3),
    (T + 1,), (T - 1, 3), (1,), (0,), (0, 3), (), (12, 3),
)  # fmt: skip
_ARMS = ("a", "b", "c", "x", "left_arm", "q_a")
_STEPS = (0, 1, 9, T - 1, T + 1, 100, 10**6, 10**12)
_KINDS = ("absolute_joint_position", "delta_joint_position")


def columns(dice: random.Random, arms: dict[str, int]) -> dict[str, np.ndarray]:
    """An episode of these arms that breaks no rule."""
    rng = np.random.default_rng(dice.getrandbits(32))
    made: dict[str, np.ndarray] = {"success": np.arange(T) > 9, "timestamp": np.arange(T) / 20}
    for arm, joints in arms.items():
        q = rng.normal(0, 0.05, (T, joints)).cumsum(axis=0).astype("f4")
        made |= {f"q_{arm}": q, f"action_{arm}": np.roll(q, -1, axis=0)}
        made[f"grip_{arm}"] = rng.random(T).astype("f4")
        made[f"rgb_{arm}"] = rng.integers(0, 255, (T, 8, 8, 3), np.uint8)
        made[f"rgb_{arm}"][5] = 0  # found wherever judging comes so far
    return made


def contract(dice: random.Random, arms: dict[str, int]) -> dict[str, Any]:
    said = [
        {"name": arm, "joints": [f"{arm}{n}" for n in range(joints + (dice.random() < 0.1))]}
        for arm, joints in arms.items()
    ]
    cameras = [{"field": f"rgb_{arm}", "height": 8, "width": 8} for arm in arms]
    return {"arms": said, "cameras": cameras, "control_hz": 20.0, "embodiment": "mine",
            "action": dice.choice(_KINDS)}  # fmt: skip


def odd(dice: random.Random) -> np.ndarray:
    shape = dice.choice(_SHAPES)
    values = np.random.default_rng(dice.getrandbits(32)).integers(0, 255, shape)
    array = np.asarray(values).astype(dice.choice(_DTYPES))
    if array.dtype.kind in "fc" and array.size and dice.random() < 0.3:
        array.reshape(-1)[-1] = dice.choice((np.nan, np.inf))
    return array


def case(number: int) -> bytes:
    """File ``number``, always the same one."""
    dice = random.Random(number)
    sizes = {arm: dice.choice((1, 2, 6, 7)) for arm in dice.sample(_ARMS, dice.randint(1, 4))}
    members = columns(dice, sizes)
    meta: dict[str, Any] = {**META, "num_steps": T}
    if dice.random() < 0.7:
        meta["contract"] = contract(dice, sizes)
    if dice.random() < 0.3:
        meta["num_steps"] = dice.choice(_STEPS)
    for _ in range(dice.randint(0, 4)):
        members[dice.choice((*_NAMES, *members))] = odd(dice)
    for _ in range(dice.randint(0, 1)):
        members.pop(dice.choice(list(members)))
    return npz_bytes({**members, "meta": json_bytes(meta)})


@pytest.mark.parametrize("block", range(4))
def test_any_columns_give_findings_with_known_codes(tmp_path: Path, block: int) -> None:
    path = tmp_path / "lift" / "x.npz"
    path.parent.mkdir()
    judged: set[str] = set()
    for number in range(100 * block, 100 * (block + 1)):
        path.write_bytes(case(number))
        found = validate_file(path)
        assert not [(number, f.message) for f in found if f.code == "E440"]
        assert {f.code for f in found} <= set(CODES), number
        assert isinstance(look(path), Facts | Finding), number
        validate_roots([path], quick=True)
        judged |= {f.code for f in found}
    assert {"E106", "E241"} <= judged
    assert "W405" in judged


def test_what_goes_wrong_in_one_file_costs_no_other_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lift").mkdir()
    paths = [tmp_path / "lift" / f"{name}.npz" for name in "xyz"]
    for path in paths:
        path.write_bytes(npz_bytes({"meta": json_bytes({**META, "num_steps": 3})}))
    usual = validating.summarise

    def failing(path: Path, *rest: Any) -> Any:
        if path == paths[1]:
            raise IndexError("no such joint")
        return usual(path, *rest)

    monkeypatch.setattr(validating, "summarise", failing)
    report = validate_roots([tmp_path], selection=Selection(select=("E440", "E102")))
    assert {f.path for f in report.findings if f.code == "E102"} == set(paths)
    (lost,) = (f for f in report.findings if f.code == "E440")
    assert lost.path == paths[1]
    assert "IndexError('no such joint')" in lost.message


def test_memory_that_ends_is_said_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: Any) -> Any:
        raise MemoryError

    path = tmp_path / "x.npz"
    path.write_bytes(npz_bytes({"meta": json_bytes(META)}))
    monkeypatch.setattr(validating, "judge", full)
    assert "not enough memory" in next(f.message for f in validate_file(path) if f.code == "E440")


def test_the_sound_base_of_the_cases_is_sound(tmp_path: Path) -> None:
    (tmp_path / "lift").mkdir()
    path = tmp_path / "lift" / "x.npz"
    arms = [{**CONTRACT["arms"][0], "name": arm} for arm in "ab"]
    cameras = [{"field": f"rgb_{arm}", "height": 8, "width": 8} for arm in "ab"]
    meta = {**META, "num_steps": T, "contract": {"arms": arms, "cameras": cameras}}
    members = columns(random.Random(1), {"a": 3, "b": 3})
    path.write_bytes(npz_bytes({**members, "meta": json_bytes(meta)}))
    assert [f for f in validate_file(path) if f.level == "error"] == []

"""Unusual robots and files: judged by what is theirs, and never a crash or a false finding."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import META, json_bytes, npz_bytes

from teamvla.data.index import IndexConfig, build_index
from teamvla.data.splits import assign_splits
from teamvla.data.validation import Finding, Selection, validate_file, validate_roots

T = 60
RATE = 20.0


def motion(arms: dict[str, int], seed: int = 0, speed: float = 0.02) -> dict[str, np.ndarray]:
    """Smooth joints that follow their commands a step later."""
    time = np.arange(T + 1)[:, None]
    made: dict[str, np.ndarray] = {"success": np.arange(T) > 50, "timestamp": np.arange(T) / RATE}
    rng = np.random.default_rng(seed)
    for arm, joints in arms.items():
        phase = rng.uniform(0, 6, joints)
        path = (10 * speed * np.sin(time / 10 + phase)).astype(np.float32)
        made |= {f"q_{arm}": path[:-1], f"action_{arm}": path[1:]}
        made[f"grip_{arm}"] = np.linspace(0, 1, T, dtype=np.float32)
    return made


def films(names: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(60, 255, (T, 16, 16, 3), np.uint8) for name in names}


def contract(arms: dict[str, int], cameras: list[str], **more: Any) -> dict[str, Any]:
    described = [{"name": a, "joints": [f"{a}_{n}" for n in range(j)]} for a, j in arms.items()]
    seen = [{"field": name, "height": 16, "width": 16} for name in cameras]
    kind = "two_arm" if set(arms) == {"a", "b"} else "my_robot"
    return {"arms": described, "cameras": seen, "control_hz": RATE, **more, "embodiment": kind}


def write(path: Path, columns: dict[str, np.ndarray], **meta: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {**META, "episode_id": path.stem, "num_steps": T, **meta}
    path.write_bytes(npz_bytes({**columns, "meta": json_bytes(said)}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lift" / "x.npz"


@pytest.fixture
def sound() -> dict[str, np.ndarray]:
    return motion({"a": 6, "b": 6}) | films(["rgb_a", "rgb_b"])


def codes(found: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.code, finding.field) for finding in found]


def everything(path: Path) -> list[Finding]:
    return list(validate_roots([path], selection=Selection(level="info")).findings)


def test_the_base_is_sound(path: Path, sound: dict[str, np.ndarray]) -> None:
    assert codes(validate_file(write(path, sound))) == []


@pytest.mark.parametrize(
    "field",
    [
        {"grip_left": np.zeros((T, 2), np.float32)},
        {"grip_style": np.array(["soft"] * T)},
        {"grip_closed": np.zeros(T, bool)},
        {"q_c": np.zeros((T, 0), np.float32), "action_c": np.zeros((T, 0), np.float32)},
        {"q_c": np.full((T, 2), np.nan, np.float32), "action_c": np.ones((T, 2), np.float32)},
        {"q_des_a": np.ones((T, 6), np.float32)},
        {"action_valid": np.ones(T, bool)},
        {"timestamp_ok": np.ones(T, bool)},
    ],
)
def test_fields_of_ones_own_are_nobodys_arm(
    path: Path, sound: dict[str, np.ndarray], field: dict[str, np.ndarray]
) -> None:
    write(path, sound | field)
    assert codes(validate_file(path)) == []
    assert validate_roots([path], quick=True).findings == ()


def test_three_arms_of_different_sizes(path: Path) -> None:
    arms = {"a": 6, "b": 7, "c": 6}
    columns = motion(arms) | films(["rgb_a"])
    said = contract(arms, ["rgb_a"])
    assert codes(validate_file(write(path, columns, contract=said))) == []
    for arm, way in (("a", -1), ("c", 1)):  # far enough apart to be told from each other
        for kind in ("q", "action"):
            columns[f"{kind}_{arm}"] = columns[f"{kind}_{arm}"] + np.float32(way)
    columns["q_a"], columns["q_c"] = columns["q_c"], columns["q_a"]
    assert ("E419", "q_a") in codes(validate_file(write(path, columns, contract=said)))


@pytest.mark.parametrize("steps", [1, T - 1, T + 1, 5 * T, 10**6])
def test_a_false_length_is_the_only_finding(
    path: Path, sound: dict[str, np.ndarray], steps: int
) -> None:
    found = validate_file(write(path, sound, num_steps=steps))
    assert codes(found) == [("E241", "metadata.num_steps")]


def test_a_false_length_hides_no_judgement(path: Path, sound: dict[str, np.ndarray]) -> None:
    sound["rgb_a"][7] = 0
    found = validate_file(write(path, sound, num_steps=T + 3))
    assert codes(found) == [("E241", "metadata.num_steps"), ("W405", "rgb_a")]


def test_quick_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    found: list[Any] = []
    looking = threading.Thread(
        target=lambda: found.append(validate_roots([tmp_path], quick=True)), daemon=True
    )
    looking.start()
    looking.join(5)
    (report,) = found
    assert [(f.code, f.message) for f in report.findings] == [
        ("E217", "expected an episode file, got no plain file")
    ]


@pytest.mark.parametrize("camera", ["front", "wrist_left"])
def test_cameras_of_any_name_are_judged(path: Path, camera: str) -> None:
    columns = motion({"a": 6}) | films([camera])
    said = contract({"a": 6}, [camera])
    assert codes(validate_file(write(path, columns, contract=said))) == []
    columns[camera][5] = 0
    assert codes(validate_file(write(path, columns, contract=said))) == [("W405", camera)]
    columns = motion({"a": 6}) | films([camera, "extra"])
    columns["extra"][5] = 0
    assert codes(validate_file(write(path, columns, contract=said))) == [("W405", "extra")]


def test_a_covered_lens_is_dark_in_spite_of_its_sensor_s_noise(
    path: Path, sound: dict[str, np.ndarray]
) -> None:
    rng = np.random.default_rng(1)
    sound["rgb_b"] = rng.integers(0, 12, sound["rgb_b"].shape).astype(np.uint8)
    sound["rgb_b"][:, 3, 4, 1] = 250  # a hot pixel
    assert codes(validate_file(write(path, sound))) == [("W405", "rgb_b")]


def test_a_small_lamp_in_the_night_is_light(path: Path, sound: dict[str, np.ndarray]) -> None:
    night = np.random.default_rng(1).integers(0, 6, sound["rgb_b"].shape).astype(np.uint8)
    night[:, 4:6, 4:6] = 200
    assert codes(validate_file(write(path, sound | {"rgb_b": night}))) == []


@pytest.mark.parametrize("step", [0, 1, 30, T - 2, T - 1])
def test_an_outlier_is_no_shift_and_no_offset(
    path: Path, sound: dict[str, np.ndarray], step: int
) -> None:
    sound["q_a"] = sound["q_a"].copy()
    sound["q_a"][step, 2] += 3
    found = codes(validate_file(write(path, sound)))
    assert found in ([("W401", "q_a")], [("W403", "q_a")])


def test_a_small_spike_of_a_slow_joint_is_found(path: Path, sound: dict[str, np.ndarray]) -> None:
    sound["q_b"] = sound["q_b"].copy()
    sound["q_b"][30, 1] += 0.2
    (finding,) = validate_file(write(path, sound))
    assert (finding.code, finding.field, finding.step) == ("W401", "q_b", 30)


def test_a_noisy_sensor_has_no_spikes(path: Path, sound: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(0, 0.08, sound["q_b"].shape).astype(np.float32)
    noisy = sound | {"q_b": sound["q_b"] + noise}
    assert not {"W401", "W403"} & {code for code, _ in codes(validate_file(write(path, noisy)))}


def test_a_failure_whose_last_step_succeeds(path: Path, sound: dict[str, np.ndarray]) -> None:
    flags = np.arange(T) >= T - 2
    (finding,) = validate_file(write(path, sound | {"success": flags}, success=False))
    assert (finding.code, finding.step) == ("W425", T - 2)


def test_swapped_deltas_are_not_called_shifted(path: Path) -> None:
    columns = motion({"a": 6, "b": 6}) | films(["rgb_a", "rgb_b"])
    deltas = {f"action_{arm}": columns[f"action_{arm}"] - columns[f"q_{arm}"] for arm in "ab"}
    swapped = {"action_a": deltas["action_b"], "action_b": deltas["action_a"]}
    said = contract({"a": 6, "b": 6}, ["rgb_a", "rgb_b"], action="delta_joint_position")
    assert codes(validate_file(write(path, columns | deltas, contract=said))) == []
    found = codes(validate_file(write(path, columns | swapped, contract=said)))
    assert ("W412", "action_a") not in found


def test_deltas_that_repeat_the_way_just_made_are_shifted(path: Path) -> None:
    columns = motion({"a": 6}) | films(["rgb_a"])
    rng = np.random.default_rng(0)
    q = rng.normal(0, 0.05, (T, 6)).cumsum(axis=0).astype(np.float32)
    columns |= {"q_a": q, "action_a": np.diff(q, axis=0, prepend=q[:1])}
    said = contract({"a": 6}, ["rgb_a"], action="delta_joint_position")
    found = codes(validate_file(write(path, columns, contract=said)))
    assert ("W412", "action_a") in found


def test_short_episodes_that_are_copies(tmp_path: Path) -> None:
    short = {name: of[:5] for name, of in (motion({"a": 6}) | films(["rgb_a"])).items()}
    said = contract({"a": 6}, ["rgb_a"])
    for name in ("one", "two"):
        write(tmp_path / "lift" / f"{name}.npz", short, num_steps=5, success=False, contract=said)
    assert {f.code for f in validate_roots([tmp_path]).findings} & {"W432", "E433"}


def test_single_pictures_that_come_twice_are_worth_knowing(path: Path) -> None:
    columns = motion({"a": 6}, speed=0.1) | films(["rgb_a"])
    columns["rgb_a"][31] = columns["rgb_a"][30]
    write(path, columns, contract=contract({"a": 6}, ["rgb_a"]))
    assert validate_file(path) == []
    (finding,) = everything(path)
    assert (finding.code, finding.level, finding.step) == ("I446", "info", 31)


def test_an_odd_contract_in_a_folder_of_its_own_can_be_indexed_there(tmp_path: Path) -> None:
    for number, (task, arms) in enumerate([("lift", 6), ("lift", 6), ("push", 7)]):
        columns = motion({"a": arms}, number) | films(["rgb_a"], number)
        said = contract({"a": arms}, ["rgb_a"])
        write(tmp_path / task / f"t{number}.npz", columns, contract=said, task=task)
    (found,) = [f for f in validate_roots([tmp_path]).findings if f.code == "W436"]
    assert found.message == (
        "expected the contract of the others, got another one in 1 of 3 episodes: "
        "arms[0].joints: 6 entries != 7 entries. "
        f"Use it as a root of its own: teamvla index {tmp_path / 'push'}"
    )
    assert build_index([tmp_path / "push"]).num_episodes == 1


def test_splits_are_those_of_the_index_that_stands(tmp_path: Path) -> None:
    def split(name: str, config: IndexConfig) -> str:
        names = [("lift", name)]
        return str(assign_splits(names, config.val_fraction, config.test_fraction)[0])

    usual, own = IndexConfig(), IndexConfig(val_fraction=0.45, test_fraction=0.45)
    names = [f"t{number}" for number in range(300)]
    one = next(n for n in names if split(n, own) == "test" and split(n, usual) == "train")
    two = next(n for n in names if split(n, own) == "val" and split(n, usual) == "train")
    rest = [n for n in names if split(n, own) == "train"][:3]
    said = contract({"a": 6}, ["rgb_a"])
    for seed, name in enumerate([*rest, one, two]):
        columns = motion({"a": 6}, min(seed, 3)) | films(["rgb_a"], min(seed, 3))
        write(tmp_path / "lift" / f"{name}.npz", columns, contract=said)
    assert [f.code for f in validate_roots([tmp_path]).findings] == ["W432"]
    build_index([tmp_path], config=own)
    assert [f.code for f in validate_roots([tmp_path]).findings] == ["E433"]


def test_long_columns_are_judged_by_their_beginning(path: Path, monkeypatch: Any) -> None:
    columns = motion({"a": 6, "b": 6}) | films(["rgb_a", "rgb_b"])
    columns["q_a"] = columns["q_a"].copy()
    columns["q_a"][50, 2] += 3
    write(path, columns)
    assert codes(validate_file(path)) == [("W401", "q_a")]
    monkeypatch.setattr("teamvla.data.validation.record.MOST_NUMBERS", 40 * 12)
    assert codes(validate_file(path)) == []
    monkeypatch.setattr("teamvla.data.validation.record.MOST_NUMBERS", 9 * 12)
    assert codes(validate_file(path)) == []

"""Validating files: every finding by its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import CONTRACT, make_step, rewrite, write_episode, write_steps
from validation_roots import mixed_root as mixed_root

from teamvla.data.npz import read_episode
from teamvla.data.validation import Finding, validate_file, validate_roots
from teamvla.errors import InputError

STEPS = 4


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return write_episode(tmp_path, STEPS)


def column(path: Path, name: str, changes: dict[Any, Any]) -> np.ndarray:
    """A column of the file with some entries changed."""
    array = read_episode(path).fields[name].copy()
    for index, value in changes.items():
        array[index] = value
    return array


def contract(**changes: Any) -> dict[str, Any]:
    return {"contract": {**CONTRACT, **changes}}


def test_a_sound_episode_has_no_findings(episode: Path) -> None:
    assert validate_file(episode) == []


def test_recorded_episodes_have_no_findings(lift_root: Path) -> None:
    report = validate_roots([lift_root])
    assert report.findings == ()
    assert report.episodes == 4


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"q_a": None}, "E102", "q_a"),
        ({"q_a": np.zeros((STEPS, 3))}, "E105", "q_a"),
        ({"rgb_a": np.zeros((STEPS, 4, 5), np.uint8)}, "E106", "rgb_a"),
        ({"extra": np.zeros(STEPS + 1)}, "E241", "extra"),
        ({"extra": np.array(3)}, "E241", "extra"),
        ({"meta": {"num_steps": 9}}, "E241", "metadata.num_steps"),
        ({"meta": {"num_steps": 0}}, "E303", "metadata.num_steps"),
        ({"meta": {"task": "drawer"}}, "E401", "task"),
        ({"meta": {"episode_id": "two"}}, "E401", "episode_id"),
        ({"success": np.zeros(STEPS, bool)}, "E402", "success"),
        ({"instruction": np.array(["drop it"] * STEPS)}, "E403", "instruction"),
        ({"task": np.array(["lift", "lift", "drawer", "lift"])}, "E404", "task"),
        ({"phase": np.array(["reach", "", "", "lift"])}, "E109", "phase"),
        ({"note": np.array(["{}", "{", "{}", "{}"]), "meta": {"json_fields": ["note"]}},
         "E243", "note"),
        ({"meta": contract(arms=3)}, "E411", "contract"),
        ({"meta": {"contract_digest": "0"}}, "E411", "contract_digest"),
        ({"meta": {"contract": None}}, "E411", "contract"),
        ({"meta": contract(cameras=[{"field": "rgb_c", "height": 4, "width": 5}])},
         "E413", "rgb_c"),
        ({"meta": contract(cameras=[{"field": "rgb_a", "height": 5, "width": 5}])},
         "E413", "rgb_a"),
        ({"timestamp": np.array([0, 0.05, 0.05, 0.1])}, "E415", "timestamp"),
        ({"timestamp": np.arange(STEPS) / 10}, "E416", "timestamp"),
    ],
)  # fmt: skip
def test_findings(episode: Path, changes: dict[str, Any], code: str, field: str) -> None:
    found = validate_file(rewrite(episode, **changes))
    assert (code, field) in [(finding.code, finding.field) for finding in found]


@pytest.mark.parametrize("joints", [2, 4])
def test_arms_that_do_not_fit_the_contract(episode: Path, joints: int) -> None:
    one, other = CONTRACT["arms"]
    arms = [{**one, "links": (one["links"] * 2)[:joints]}, other]
    found = validate_file(rewrite(episode, meta=contract(arms=arms)))
    assert [(f.code, f.field) for f in found] == [("E412", "q_a"), ("E412", "action_a")]
    assert found[0].message == f"expected [{joints}], the contract's arm, got [3]"


def test_an_arm_without_its_actions(episode: Path) -> None:
    found = validate_file(rewrite(episode, action_b=None))
    assert [(f.code, f.field) for f in found] == [("E102", "action_b"), ("E412", "action_b")]


def test_a_lie_about_the_length_is_one_finding(episode: Path) -> None:
    (finding,) = validate_file(rewrite(episode, meta={"num_steps": 9}))
    assert finding.message == "expected 4, the length of every column, got 9"


def test_time_that_runs_back_has_no_rate(episode: Path) -> None:
    found = validate_file(rewrite(episode, timestamp=np.array([0.3, 0.2, 0.1, 0.0])))
    assert [finding.code for finding in found] == ["E415"]


def test_time_is_optional(tmp_path: Path, episode: Path) -> None:
    assert validate_file(rewrite(episode, timestamp=None)) == []
    assert validate_file(write_steps(tmp_path, [make_step(3, timestamp=0.0)])) == []


@pytest.mark.parametrize(
    ("name", "entries", "code", "step", "message"),
    [
        ("q_b", {(2, 1): np.nan, (3, 0): np.inf}, "E107", 2,
         "expected finite numbers, got nan (2 of 4 steps)"),
        ("action_a", {(1, 2): -np.inf}, "E107", 1,
         "expected finite numbers, got -inf (1 of 4 steps)"),
        ("grip_a", {1: 1.5, 2: -0.5, 3: 9}, "E108", 1,
         "expected values in [0, 1], got 1.5 (3 of 4 steps)"),
        ("grip_b", {3: np.nan}, "E107", 3, "expected finite numbers, got nan (1 of 4 steps)"),
        ("action_b", {(3, 1): 1.75}, "E414", 3,
         "expected b_1 in [-1.5, 1.5] rad, got 1.75 (1 of 4 steps)"),
        ("timestamp", {2: 0.0}, "E415", 2, "expected time to increase, got 0.0 (1 of 4 steps)"),
        ("success", {3: False}, "E402", 3,
         "expected True at the last step of a success, got False"),
    ],
)  # fmt: skip
def test_the_first_step_at_fault_and_the_count_are_named(
    episode: Path, name: str, entries: dict[Any, Any], code: str, step: int, message: str
) -> None:
    changed = rewrite(episode, **{name: column(episode, name, entries)})
    assert Finding(code, changed, step, name, message) in validate_file(changed)


def test_an_action_at_its_limit_is_legal(episode: Path) -> None:
    action = column(episode, "action_a", {(0, 0): np.float32(1.5) + np.float32(5e-5)})
    assert validate_file(rewrite(episode, action_a=action)) == []


def test_a_failure_may_end_on_a_step_that_succeeds(episode: Path) -> None:
    assert validate_file(rewrite(episode, meta={"success": False})) == []


def test_depth_may_be_infinite(episode: Path) -> None:
    depth = np.full((STEPS, 2, 2), np.inf, np.float32)
    assert validate_file(rewrite(episode, depth_a=depth)) == []


def test_an_episode_needs_no_contract(episode: Path) -> None:
    with np.load(episode) as archive:
        members = dict(archive)
    meta = json.loads(members["meta"].tobytes())
    del meta["contract"]
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(episode, **members)
    assert validate_file(episode) == []


def test_everything_wrong_with_a_file_is_found(episode: Path) -> None:
    changed = rewrite(
        episode,
        q_a=np.zeros((STEPS, 3)),
        grip_b=column(episode, "grip_b", {0: 2.0}),
        q_b=column(episode, "q_b", {(1, 0): np.nan}),
        meta={"episode_id": "two", "contract_digest": "0"},
    )
    assert {f.code for f in validate_file(changed)} == {"E105", "E108", "E107", "E401", "E411"}


@pytest.mark.parametrize(
    ("damage", "code", "field"),
    [
        (lambda content: content[:-7], "E201", None),
        (lambda content: content[:200], "E201", None),
        (lambda content: b"", "E201", None),
        (lambda content: b"not a zip" * 9, "E201", None),
    ],
)
def test_a_damaged_file_is_one_finding(
    episode: Path, damage: Any, code: str, field: str | None
) -> None:
    episode.write_bytes(damage(episode.read_bytes()))
    (finding,) = validate_file(episode)
    assert (finding.code, finding.field) == (code, field)


def test_damage_in_one_column_is_named_and_the_others_are_checked(episode: Path) -> None:
    rewrite(episode, grip_a=column(episode, "grip_a", {0: 5.0}))
    content = bytearray(episode.read_bytes())
    content[content.index(b"rgb_a.npy") + 150] ^= 1
    episode.write_bytes(content)
    found = {(finding.field, finding.code) for finding in validate_file(episode)}
    assert ("grip_a", "E108") in found
    assert {field for field, _ in found} == {"grip_a", "rgb_a"}


def test_a_file_that_vanished_is_a_finding(tmp_path: Path) -> None:
    (finding,) = validate_file(tmp_path / "lift" / "gone.npz")
    assert finding.code == "E217"


def test_a_file_at_the_top_of_its_root_may_have_any_name(episode: Path, tmp_path: Path) -> None:
    moved = episode.rename(tmp_path / "sample.npz")
    assert validate_roots([tmp_path]).findings == ()
    assert {finding.code for finding in validate_file(moved)} == {"E401"}


@pytest.mark.parametrize("workers", [2, 5])
def test_the_report_is_the_same_for_any_number_of_workers(mixed_root: Path, workers: int) -> None:
    alone = validate_roots([mixed_root], workers=1)
    assert validate_roots([mixed_root], workers=workers) == alone
    assert (alone.episodes, alone.invalid, len(alone.findings)) == (10, 5, 10)
    assert [f.path for f in alone.findings] == sorted(f.path for f in alone.findings)


def test_a_root_may_be_a_file(mixed_root: Path) -> None:
    paths = [mixed_root / "lift" / f"episode-{number}.npz" for number in (1, 2)]
    report = validate_roots(paths)
    assert (report.episodes, len(report.findings)) == (2, 2)


def test_a_root_given_twice_counts_once(mixed_root: Path) -> None:
    assert validate_roots([mixed_root, mixed_root]).episodes == 10


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_missing_or_empty_root_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        validate_roots([tmp_path / name])


# Looking at directories alone.


def test_quick_finds_what_the_directory_shows(mixed_root: Path) -> None:
    one, two, three = (mixed_root / "lift" / f"episode-{n}.npz" for n in (0, 2, 4))
    four = write_episode(mixed_root, 12, "four")
    rewrite(one, action_b=None)
    rewrite(two, grip_a=np.zeros(STEPS + 1, np.float32))
    three.write_bytes(three.read_bytes()[:-9])
    four.with_name("five.npz").write_bytes(four.read_bytes())
    found = validate_roots([mixed_root], quick=True).findings
    assert [(f.path, f.code, f.field) for f in found if f.code[0] == "E" and f.code != "E433"] == [
        (one, "E102", "action_b"),
        (two, "E241", "grip_a"),
        (three, "E201", None),
    ]
    assert found[-1].code in ("W432", "E433")
    assert len(found) == 4


def test_quick_inflates_nothing(episode: Path) -> None:
    content = bytearray(episode.read_bytes())
    content[content.index(b"rgb_a.npy") + 150] ^= 1
    episode.write_bytes(content)
    assert validate_roots([episode], quick=True).findings == ()
    assert validate_roots([episode]).findings != ()

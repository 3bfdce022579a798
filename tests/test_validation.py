"""Validating files: every finding by its code, and the command that shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import CONTRACT, make_step, rewrite, write_episode, write_steps

from teamvla.cli.app import run
from teamvla.data.codes import CODES
from teamvla.data.explanations import ELSEWHERE, MENDS
from teamvla.data.npz import read_episode
from teamvla.data.validation import Finding, validate_file, validate_roots
from teamvla.data.validation.reasons import REASONS
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


@pytest.fixture
def mixed_root(tmp_path: Path) -> Path:
    """Ten episodes; the odd ones have two findings each."""
    root = tmp_path / "mixed"
    for number in range(10):
        path = write_episode(root, STEPS, f"episode-{number}")
        if number % 2:
            grips = {f"grip_{arm}": column(path, f"grip_{arm}", {0: 2.0}) for arm in "ab"}
            rewrite(path, **grips)
    return root


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


# The command.


def test_the_command_on_sound_episodes(episode: Path, capsys: pytest.CaptureFixture) -> None:
    root = str(episode.parent.parent)
    assert run(["validate", root]) == 0
    out, err = capsys.readouterr()
    assert out == "ok  1 episodes, no findings\n"
    assert f"teamvla index {root}" in err


def test_the_command_on_invalid_episodes(mixed_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["validate", str(mixed_root)]) == 1
    out = capsys.readouterr().out
    assert str(mixed_root / "lift" / "episode-1.npz") in out
    assert "E108  step 0  grip_a  expected values in [0, 1], got 2.0 (1 of 4 steps)" in out
    assert "E108  error       10      5  a number is out of its range" in out
    assert "invalid  10 errors in 5 of 10 episodes" in out


def test_the_command_s_json(mixed_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["validate", str(mixed_root), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "teamvla.validate/1"
    assert document["status"] == "findings"
    assert (document["episodes"], document["invalid"]) == (10, 5)
    assert document["findings"][0] == {
        "code": "E108",
        "level": "error",
        "file": str(mixed_root / "lift" / "episode-1.npz"),
        "step": 0,
        "field": "grip_a",
        "message": "expected values in [0, 1], got 2.0 (1 of 4 steps)",
    }


def test_the_command_s_json_has_a_summary(mixed_root: Path, capsys: pytest.CaptureFixture) -> None:
    run(["validate", str(mixed_root), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["levels"] == {"error": 10, "warning": 0, "info": 0}
    assert document["summary"] == [
        {
            "code": "E108",
            "level": "error",
            "title": "a number is out of its range",
            "count": 10,
            "files": 5,
        }
    ]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 1),
        (["--ignore", "E108"], 0),
        (["--ignore", "E1"], 0),
        (["--ignore", "E4,W"], 1),
        (["--select", "W"], 0),
        (["--select", "E4,E108"], 1),
        (["--select", "E1", "--ignore", "E108"], 0),
        (["--select", "E108", "--ignore", "E1"], 1),
        (["--select", "e1", "--ignore", "e1"], 0),
        (["--level", "error"], 1),
        (["--level", "info"], 1),
        (["--quick"], 0),
    ],
)
def test_what_is_shown_decides_the_exit_code(
    mixed_root: Path, options: list[str], code: int
) -> None:
    assert run(["validate", str(mixed_root), *options]) == code


def test_warnings_are_not_shown_at_the_level_of_errors(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_episode(tmp_path, 12, name)
    assert run(["validate", str(tmp_path)]) == 1
    assert run(["validate", str(tmp_path), "--level", "error"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--select", "W999"], "--select: expected a code or its beginning, got 'W999'"),
        (["--ignore", "x"], "--ignore: expected a code or its beginning, got 'X'"),
        (["--level", "loud"], "level: expected error or warning or info, got 'loud'"),
        ([], "expected a folder of episodes, got none"),
        (["--explain", "W499"], "--explain: expected a code such as E107 or W412, got 'W499'"),
    ],
)
def test_wrong_options_are_usage_errors(
    mixed_root: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    roots = [str(mixed_root)] if arguments else []
    assert run(["validate", *roots, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_mistyped_code_gets_a_suggestion(capsys: pytest.CaptureFixture) -> None:
    assert run(["validate", "--explain", "WE107"]) == 2
    assert "Did you mean E107?" in capsys.readouterr().err


# Explanations.


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_explained(code: str, capsys: pytest.CaptureFixture) -> None:
    assert run(["validate", "--explain", code.lower(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["code"], document["title"]) == (code, CODES[code])
    assert all(len(document[part]) > 6 for part in ("why", "how", "mend"))


def test_every_judgement_has_reasons_of_its_own() -> None:
    judged = {code for code in CODES if code[:2] in ("W4", "I4")}
    assert judged <= set(REASONS) <= set(CODES)


def test_the_page_of_codes_and_the_explanations_say_the_same() -> None:
    page = Path(__file__).parent.parent / "docs" / "codes.md"
    rows = re.findall(r"^\| ([A-Z]\d{3}) \| (.*?) \| (.*) \|$", page.read_text("utf-8"), re.M)
    mends = {code: mend for code, _, mend in rows}
    assert {code: mends[code] for code in MENDS} == MENDS
    assert {code: title for code, title, _ in rows if code in ELSEWHERE} == ELSEWHERE


def test_an_explanation_reads_well(capsys: pytest.CaptureFixture) -> None:
    assert run(["validate", "--explain", "W412"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "W412  actions are shifted: they belong to the row before"
    assert [line[:5] for line in rest if line[0] != " "] == ["why  ", "found", "mend "]


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


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_the_command_on_no_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["validate", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path / name) in err


def test_the_command_shows_a_screenful(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(60):
        folder = tmp_path / "lift"
        folder.mkdir(exist_ok=True)
        (folder / f"e{number:02d}.npz").touch()
    assert run(["validate", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "... and 10 more; --json lists them all" in out
    assert "60 errors in 60 of 60 episodes" in out

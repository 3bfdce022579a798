"""The command that validates: what it shows, which findings count, and explanations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sample_steps import rewrite, write_episode
from validation_roots import mixed_root as mixed_root

from teamvla.cli.app import run
from teamvla.data.codes import CODES
from teamvla.data.explanations import ELSEWHERE, MENDS
from teamvla.data.validation import validate_roots
from teamvla.data.validation.reasons import REASONS

STEPS = 4


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    return write_episode(tmp_path, STEPS)


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


# Which options are refused, and what files cannot do to a terminal.


@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize("codes", [",", "", " , ", "E5", "E601", "C1"])
def test_lists_that_no_finding_can_match_are_usage_errors(
    mixed_root: Path, capsys: pytest.CaptureFixture, option: str, codes: str
) -> None:
    assert run(["validate", str(mixed_root), option, codes]) == 2
    assert f"{option}: expected" in capsys.readouterr().err


def test_the_level_counts_unless_a_code_is_named_in_full(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_episode(tmp_path, 12, name)
    (found,) = validate_roots([tmp_path]).findings  # W432, or E433 in another split
    if found.code != "W432":
        pytest.fail("choose other names: the two must fall into one split")
    assert run(["validate", str(tmp_path), "--select", "W4", "--level", "error"]) == 0
    assert run(["validate", str(tmp_path), "--select", "W432", "--level", "error"]) == 1


def test_a_wrong_level_is_called_by_its_option(
    mixed_root: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(["validate", str(mixed_root), "--level", "bogus"]) == 2
    assert "--level: expected error or warning or info" in capsys.readouterr().err


def test_what_a_file_says_moves_no_cursor_and_fills_no_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_episode(tmp_path, STEPS)
    evil = "\x1b[2J\x1b]0;owned\x07\u202e" + "x" * 5000
    rewrite(path, instruction=np.array([evil] * STEPS))
    other = write_episode(tmp_path, 5, "two")
    rewrite(other, meta={"episode_id": "three"})
    moved = other.rename(other.with_name("\x1b[1m.npz"))
    assert moved.exists()
    assert run(["validate", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "\\x1b[2J" in shown
    assert max(len(f.message) for f in validate_roots([tmp_path]).findings) < 2000


def test_left_overs_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_episode(tmp_path, STEPS)
    assert validate_roots([tmp_path]).leftovers == ()
    journal = path.with_name(".two.part")
    journal.write_bytes(b"cut off")
    assert validate_roots([tmp_path]).leftovers == (journal,)
    assert run(["validate", str(tmp_path)]) == 0
    assert "1 left-over of interrupted recordings: see teamvla repair" in capsys.readouterr().out


def test_a_root_with_nothing_but_left_overs_names_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift" / ".two.part").write_bytes(b"cut off")
    assert run(["validate", str(tmp_path)]) == 2
    assert f"teamvla repair {tmp_path}" in capsys.readouterr().err

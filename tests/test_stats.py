"""A look at recordings: the figures, the table, and the page."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_steps import CONTRACT, make_step, rewrite, write_episode, write_steps

from teamvla.cli.app import run
from teamvla.data.overview import survey
from teamvla.data.overview.report import render
from teamvla.data.overview.samples import choose
from teamvla.data.overview.spread import Histogram, Spread
from teamvla.data.overview.survey import Take
from teamvla.data.overview.words import duration, interval, share, size
from teamvla.data.validation.findings import printable

B_FIELDS = ("rgb_b", "q_b", "action_b", "grip_b")
EVIL = '<script>alert("x")</script> $x^{ \x1b[31m'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three episodes of ``lift``: 4, 6 and 10 steps, the last one a failure."""
    root = tmp_path / "arms"
    for steps, name in ((4, "one"), (6, "two")):
        write_episode(root, steps, name, software={"teamvla": "1.0"})
    steps = [make_step(index, success=False, instruction="push it") for index in range(10)]
    write_steps(root, steps, contract=CONTRACT, episode_id="three")
    return root


def one_arm(path: Path, **limits: Any) -> Path:
    """Turn an episode into one of a single arm with one camera and named joints."""
    arm = {"name": "a", "joints": ["base", "$elbow", "<u>wrist</u>"], **limits}
    contract = {
        "embodiment": "single_arm",
        "control_hz": 10.0,
        "action": "delta_joint_position",
        "arms": [arm],
        "cameras": CONTRACT["cameras"][:1],
    }
    return rewrite(path, meta={"contract": contract}, **dict.fromkeys(B_FIELDS))


def as_json(capsys: Any, *words: object) -> dict[str, Any]:
    assert run(["stats", *map(str, words), "--json", "-q"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_figures_are_those_of_the_recordings(root, capsys):
    answer = as_json(capsys, root, "--no-html", "--no-validate")
    assert (answer["schema"], answer["status"]) == ("teamvla.stats/1", "ok")
    assert (answer["files"], answer["episodes"], answer["successes"]) == (3, 3, 2)
    assert answer["report"] is None
    (task,) = answer["tasks"]
    assert (task["task"], task["steps"], task["seconds"]) == ("lift", 20, 1.0)
    assert task["length"] == {"min": 4, "median": 6.0, "max": 10}
    assert task["bytes"] == sum(path.stat().st_size for path in root.rglob("*.npz"))
    assert task["instructions"] == {"lift the tray": 2, "push it": 1}
    assert task["fields"]["rgb_a"] == {"uint8[4,5,3]": 3}
    assert task["fields"]["timestamp"] == {"float64": 2}
    assert task["contract"]["arms"][0]["name"] == "a"
    assert task["software"] == [["teamvla", "1.0", 2]]


def test_the_columns_are_counted_over_all_steps(root):
    rows = [make_step(index)["q_b"] for steps in (4, 6, 10) for index in range(steps)]
    q_b = np.array(rows, np.float64)
    columns = survey([root], validate=False).groups[0].to_dict()["columns"]["q_b"]
    assert columns["count"] == [20, 20, 20]
    np.testing.assert_array_equal(columns["min"], q_b.min(axis=0))
    np.testing.assert_array_equal(columns["max"], q_b.max(axis=0))
    np.testing.assert_allclose(columns["mean"], q_b.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(columns["std"], q_b.std(axis=0), rtol=1e-9)


def test_any_number_of_workers_gives_the_same(root):
    one, four = (survey([root], workers=count) for count in (1, 4))
    assert [group.to_dict() for group in one.groups] == [group.to_dict() for group in four.groups]
    assert one.findings == four.findings


def test_the_table_shows_them_without_colours_in_a_pipe(root, capsys):
    assert run(["stats", str(root), "--no-html"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0].split() == ["task", "episodes", "success", "steps", "seconds", "length", "size"]
    assert lines[1].split()[:9] == ["lift", "3", "66.7", "%", "20", "1.0", "4", "-", "6"]
    assert "  contract      two_arm, 20 Hz, absolute joint position" in lines
    assert "  cameras       rgb_a 4 x 5, rgb_b 4 x 5" in lines
    assert re.search(r"^ +2 x  lift the tray$", shown, re.M)
    some = r"0\.\d\d \.\. 0\.\d\d"
    assert re.search(rf"^  a a_0 +{some} +{some}  -1\.50 \.\. 1\.50$", shown, re.M)
    assert max(map(len, lines)) <= 80


def test_tasks_and_contracts_stand_apart(root, tmp_path):
    other = write_episode(root, 4, "slow")
    rewrite(other, meta={"contract": {**CONTRACT, "control_hz": 5.0}})
    write_steps(root, [make_step(0, task="push")], task="push")
    groups = survey([root], validate=False).groups
    described = [(group.task, group.episodes, group.seconds) for group in groups]
    assert sorted(described, key=str) == [("lift", 1, 0.8), ("lift", 3, 1.0), ("push", 1, None)]
    page = render(survey([root], validate=False))
    assert "lift (1 of 2 contracts)" in page
    assert "none in these files" in page


class Page(HTMLParser):
    """The tags, addresses and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_part_and_needs_nothing_else(root, tmp_path, capsys):
    page = tmp_path / "deep" / "page.html"
    answer = as_json(capsys, root, "--out", page)
    assert answer["report"] == str(page)
    text = page.read_text(encoding="utf-8")
    addresses = set(re.findall(r"\w+://[^\s\"'<>)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    parsed = Page(text)
    assert all(address.startswith(("data:image/", "#")) for address in parsed.addresses)
    # three episodes, two cameras, three frames; lengths, and for each arm histograms and traces
    assert (parsed.tags["img"], parsed.tags["svg"]) == (18, 1 + 2 + 2 * 3)
    for part in (
        "Key figures", "Findings", "First, middle and last frames", "Joints and actions over time",
        "Ranges of the joints", "Histograms", "Instructions (2)", "Fields (12)", "Recorded with",
        "gripper", "1.0 (2 episodes)", "lift the tray",
    ):  # fmt: skip
        assert part in parsed.text, part


def test_two_runs_give_the_same_page(root):
    assert render(survey([root])) == render(survey([root]))


def test_what_strangers_wrote_is_shown_and_does_nothing(tmp_path, capsys):
    root = tmp_path / "<u>root"
    steps = [make_step(index, instruction=EVIL, phase="</span><img onerror=x>") for index in (0, 3)]
    path = write_steps(root, steps, contract=CONTRACT, software={"<u>x</u>": "<img src=y>"})
    one_arm(path, limits=[[-1.0, 1.0]] * 3)
    page = Page(render(survey([root])))
    assert (page.tags["script"], page.tags["u"]) == (0, 0)
    assert page.handlers == []
    assert page.tags["img"] == 3
    for text in (EVIL[:24], "<u>wrist</u>", "$elbow", "<img src=y>", "<u>root"):
        assert text in page.text
    assert run(["stats", str(root), "--no-html"]) == 0
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert r"\x1b[31m" in shown


def test_one_arm_and_one_camera_are_enough(tmp_path):
    path = one_arm(write_episode(tmp_path, 4), limits=[[-0.5, 0.5]] * 3)
    overview = survey([path], validate=False)
    assert overview.groups[0].arms == ["a"]
    page = Page(render(overview))
    assert page.tags["svg"] == 3
    assert "single_arm, 10 Hz, delta joint position" in page.text
    assert "arm b" not in page.text


def test_files_without_a_contract_are_shown_by_their_fields(tmp_path):
    write_steps(tmp_path, [make_step(index) for index in range(3)])
    overview = survey([tmp_path], validate=False)
    assert (overview.groups[0].arms, overview.groups[0].seconds) == (["a", "b"], None)
    assert "joint 2" in Page(render(overview)).text


def test_an_episode_of_one_step_is_drawn(tmp_path):
    write_steps(tmp_path, [make_step(0)], contract=CONTRACT)
    assert Page(render(survey([tmp_path], validate=False))).tags["svg"] == 5


@pytest.mark.parametrize("validate", [True, False])
def test_a_damaged_file_is_a_finding_and_the_rest_is_shown(root, capsys, tmp_path, validate):
    damaged = root / "lift" / "two.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    page = tmp_path / "page.html"
    flag = "--validate" if validate else "--no-validate"
    answer = as_json(capsys, root, "--out", page, flag)
    assert (answer["files"], answer["episodes"]) == (3, 2)
    found = [(one["code"], one["file"]) for one in answer["findings"] if one["level"] == "error"]
    assert found == [("E201", str(damaged))]
    assert answer["next"] == f"teamvla validate {root}"
    text = Page(page.read_text(encoding="utf-8")).text
    assert str(damaged) in text
    assert "not a zip file, or cut short at its end" in text
    assert ("the content was not checked" in text) is not validate


def test_pictures_that_cannot_be_read_are_found_when_they_are_drawn(root):
    path = root / "lift" / "one.npz"
    rewrite(path, rgb_a=np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))
    content = bytearray(path.read_bytes())
    end = content.index(b"PK\x03\x04", content.index(b"rgb_a.npy"))
    content[end - 12] ^= 0xFF
    path.write_bytes(content)
    overview = survey([root], validate=False)
    assert (overview.episodes, overview.findings) == (3, ())
    page = Page(render(overview))
    assert page.tags["img"] == 12
    assert str(path) in page.text


def test_without_a_readable_episode_there_is_still_an_answer(tmp_path, capsys):
    (tmp_path / "lift").mkdir()
    (tmp_path / "lift" / "x.npz").write_bytes(b"nothing")
    page = tmp_path / "page.html"
    assert run(["stats", str(tmp_path), "--out", str(page)]) == 1
    assert "1 could not be read" in capsys.readouterr().out
    assert "E201" in page.read_text(encoding="utf-8")


def test_the_page_has_the_name_of_its_root(root, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_json(capsys, "arms", "--no-validate")["report"] == "arms-stats.html"
    assert (tmp_path / "arms-stats.html").is_file()


def test_a_folder_in_the_page_s_place_is_said_before_the_work(root, tmp_path, capsys):
    assert run(["stats", str(root), "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: expected a file to write, got a folder" in capsys.readouterr().err


def test_missing_recordings_are_a_wrong_call(tmp_path, capsys):
    assert run(["stats", str(tmp_path / "none")]) == 2
    assert "expected a folder of episodes" in capsys.readouterr().err


def test_stats_never_imports_torch(root, tmp_path):
    from test_layers import modules_after

    loaded = modules_after("stats", str(root), "--out", str(tmp_path / "page.html"))
    assert "matplotlib" in loaded
    assert not loaded & {"torch", "mujoco"}
    loaded = modules_after("stats", str(root), "--no-html")
    assert not loaded & {"torch", "mujoco", "matplotlib", "PIL", "jinja2"}


def test_a_histogram_counts_each_value_in_its_bin():
    values = np.random.default_rng(0).normal(2.0, 0.3, 5000)
    histogram = Histogram()
    for piece in np.split(values, [1, 10, 2000]):
        histogram.add(piece)
    edges, counts = histogram.bars(40)
    assert 20 < len(counts) <= 40
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    assert counts.sum() == 5000


def test_a_histogram_is_the_same_in_any_order():
    rng = np.random.default_rng(1)
    pieces = [rng.normal(0, 10.0**power, 50) for power in range(-6, 6)]
    one, other = Histogram(), Histogram()
    for forward, backward in zip(pieces, reversed(pieces), strict=True):
        one.add(forward)
        other.add(backward)
    for left, right in zip(one.bars(), other.bars(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "values", [[0.0], [1.5] * 9, [1e300, -1e300], [3e38, 3e38], [1e-300, 0.0], [-0.25, 1e12]]
)
def test_a_histogram_takes_any_finite_numbers(values):
    histogram = Histogram()
    histogram.add(np.array(values))
    edges, counts = histogram.bars()
    assert counts.sum() == len(values)
    assert edges[0] <= min(values) <= max(values) <= edges[-1]


def test_what_is_not_finite_is_left_out():
    spread = Spread(2)
    spread.add(np.array([[1.0, np.nan], [np.inf, np.nan], [3.0, np.nan]]))
    assert spread.to_dict() == {
        "count": [2, None], "min": [1.0, None], "max": [3.0, None],
        "mean": [2.0, None], "std": [1.0, None],
    }  # fmt: skip


def takes(successes: int, failures: int) -> list[Take]:
    outcomes = [True] * successes + [False] * failures
    return [Take(Path(f"e{i:02}"), outcome, 10 + i) for i, outcome in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("successes", "failures", "expected"),
    [(20, 0, (0, 8)), (20, 2, (2, 6)), (20, 20, (4, 4)), (1, 20, (7, 1)), (2, 1, (1, 2))],
)
def test_half_of_the_places_are_for_failures(successes, failures, expected):
    chosen = choose(takes(successes, failures), 8)
    failed = sum(not take.success for take in chosen)
    assert (failed, len(chosen) - failed) == expected


def test_the_shortest_and_the_longest_are_shown():
    steps = [take.steps for take in choose(takes(30, 0), 8)]
    assert (steps[0], steps[-1]) == (10, 39)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (share(2, 3), "66.7 %"), (share(0, 0), "-"), (share(9999, 10000), "99.9 %"),
        (share(1, 10000), "0.1 %"), (share(3, 3), "100 %"), (share(0, 3), "0 %"),
        (duration(1.04), "1.0 s"), (duration(600), "10.0 min"), (duration(9000), "2.5 h"),
        (size(900), "1 kB"), (size(2_345_678), "2.3 MB"), (size(5_000_000_000), "5.0 GB"),
        (interval((-0.001, 1.0)), "0.00 .. 1.00"), (interval(None), "-"),
        (printable("a\x1b[2J\u202eb é"), r"a\x1b[2J\u202eb é"),
    ],
)  # fmt: skip
def test_words(said, expected):
    assert said == expected

"""A conversion as a whole: resumed, refused, killed, without its extras, on the command line."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kills import run_and_kill
from sample_steps import rewrite
from synthetic import write_episodes

from teamvla.cli.app import run
from teamvla.data import find_episodes, read_episode
from teamvla.data.formats import FORMATS, ConvertConfig, Target, convert
from teamvla.data.formats.building import building
from teamvla.errors import InputError, MissingDependencyError, SchemaError

PNG = ConvertConfig(images="png")
WRITABLE = [name for name in FORMATS if issubclass(FORMATS.get(name), Target)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_episodes(tmp_path / "eps", 3)
    return tmp_path / "eps"


def below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("name", WRITABLE)
def test_running_again_changes_nothing(root, tmp_path, name):
    convert(root, name, tmp_path / "out", config=PNG)
    before = below(tmp_path / "out")
    again = convert(root, name, tmp_path / "out", config=PNG)
    after = below(tmp_path / "out")
    for content in (before, after):
        content.pop("conversion.json")
    assert after == before
    assert again.skipped == 3


def test_a_conversion_goes_on_where_it_stopped(root, tmp_path):
    convert(root, "episodes", tmp_path / "out")
    find_episodes(tmp_path / "out")[1].unlink()
    assert convert(root, "episodes", tmp_path / "out").skipped == 2
    assert len(find_episodes(tmp_path / "out")) == 3


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_something_else_is_never_replaced(root, tmp_path, name):
    convert(root, name, tmp_path / "out", config=PNG)
    write_episodes(tmp_path / "others", 1)
    other = ConvertConfig(images="png", crf=10)
    with pytest.raises(InputError, match="E602"):
        convert(root, name, tmp_path / "out", config=other)


def test_the_report_lies_in_the_output(root, tmp_path):
    done = convert(root, "aloha", tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert stored["report"] == done.report.to_dict()
    assert stored["schema"] == "teamvla.conversion/1"


@pytest.mark.parametrize("name", ["lerobot", "aloha", "robomimic"])
def test_after_an_error_nothing_is_left(root, tmp_path, name, monkeypatch):
    def fails(*arguments: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("teamvla.data.formats.folders.verify", fails)
    with pytest.raises(OSError, match="no space"):
        convert(root, name, tmp_path / "out", config=PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["eps"]


def test_two_processes_do_not_build_one_folder(tmp_path):
    with (
        building(tmp_path / "out"),
        pytest.raises(InputError, match="E613"),
        building(tmp_path / "out"),
    ):
        pass


def kill_rounds(root: Path, out: Path, name: str, rounds: int) -> int:
    """Kill conversions at random; whatever is visible afterwards is whole. How many died."""
    config, died = ConvertConfig(images="png", compression="stored"), 0
    convert(root, name, out.with_name("first"), config=config)  # imports what it needs

    def work(acknowledge: object) -> None:
        convert(root, name, out, config=config)

    begin = time.perf_counter()
    assert not run_and_kill(work, 0, within_s=1000.0).killed
    duration = time.perf_counter() - begin
    shutil.rmtree(out)
    for seed in range(rounds):
        died += run_and_kill(work, seed, within_s=1.1 * duration).killed
        if name == "episodes":
            found = find_episodes(out) if any(out.glob("*/*.npz")) else []
            assert all(read_episode(path).num_steps for path in found)
            if len(found) == len(find_episodes(root)):
                shutil.rmtree(out)
        elif out.exists():
            convert(out, "episodes", out.parent / f"back-{seed}", dry_run=True)
            shutil.rmtree(out)
    convert(root, name, out, config=config)
    return died


@pytest.mark.parametrize(("name", "rounds"), [("episodes", 5), ("aloha", 5)])
def test_a_killed_conversion_leaves_nothing_half(root, tmp_path, name, rounds):
    assert kill_rounds(root, tmp_path / "out", name, rounds) > 0
    convert(tmp_path / "out", "episodes", tmp_path / "again")
    assert len(find_episodes(tmp_path / "again")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["episodes", "aloha", "robomimic", "lerobot"])
def test_many_killed_conversions_leave_nothing_half(root, tmp_path, name):
    assert kill_rounds(root, tmp_path / "out", name, 165) > 60


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("lerobot", "pyarrow", "lerobot"), ("aloha", "h5py", "hdf5"), ("robomimic", "h5py", "hdf5")],
)
def test_a_missing_package_names_its_extra(root, tmp_path, monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"teamvla\[{extra}\]"):
        convert(root, name, tmp_path / "out", config=PNG)
    assert not (tmp_path / "out").exists()


def test_without_av_pictures_can_still_be_png(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="av"):
        convert(root, "lerobot", tmp_path / "video")
    assert convert(root, "lerobot", tmp_path / "png", config=PNG).episodes == 3


def test_the_format_of_a_source_must_be_clear(tmp_path):
    (tmp_path / "some.txt").write_text("nothing")
    with pytest.raises(SchemaError, match="E601"):
        convert(tmp_path, "episodes", tmp_path / "out")


def test_the_command_converts_and_says_what_became_of_everything(root, tmp_path, capsys):
    out = str(tmp_path / "out")
    options = ["--to", "lerobot", "--out", out, "--images", "png"]
    assert run(["convert", str(root), *options, "--dry-run"]) == 0
    assert "would convert  3 episodes" in capsys.readouterr().out
    assert not Path(out).exists()
    assert run(["convert", str(root), *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "teamvla.convert/1"
    assert {note["fate"] for note in said["report"]} == {"aside", "carried"}
    assert run(["convert", out, "--to", "episodes", "--out", str(tmp_path / "back")]) == 0
    assert f"teamvla validate {tmp_path / 'back'}" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "lerobt"], "Did you mean 'lerobot'?"),
        (["--to", "version1"], "E612"),
        (["--to", "aloha", "--images", "gif"], "images"),
        (["--to", "aloha", "--set", "crv=3"], "did you mean 'crf'?"),
    ],
)
def test_a_wrong_option_is_one_clear_line(root, tmp_path, capsys, arguments, message):
    assert run(["convert", str(root), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_every_setting_is_where_a_user_looks_for_it(capsys):
    assert run(["convert", "-h"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    page = (Path(__file__).parent.parent / "docs" / "your_robot.md").read_text(encoding="utf-8")
    table = page.partition("| setting | default |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines() if row.count("|") == 4]
    for name, field in ConvertConfig.model_fields.items():
        assert name in said.partition("Settings:")[2].partition("Arguments:")[0], name
        (row,) = (row for row in rows if f"`{name}`" in row[1])
        default = "null" if field.default is None else str(field.default)
        assert f"`{default}`" in row[2], name


@pytest.mark.parametrize(("legacy", "first"), [("previous", 1.0), ("current", 0.0)])
def test_version_1_is_found_out_and_rewritten(tmp_path, legacy, first):
    from synthetic import make_steps

    steps = make_steps(4, 0, measured=False)
    for tick, step in enumerate(steps):
        step["action_a"] = np.full(6, tick, np.float32)
    meta = np.array({"task": "lift", "episode_id": "old", "success": True}, dtype=object)
    (tmp_path / "old" / "lift").mkdir(parents=True)
    np.savez(tmp_path / "old" / "lift" / "old.npz", metadata=meta, steps=np.array(steps, object))
    example = write_episodes(tmp_path / "example", 1)[0]
    options = ["--to", "episodes", "--out", str(tmp_path / "new"), "--legacy-actions", legacy]
    options += ["--set", f"contract={example}"]
    assert run(["convert", str(tmp_path / "old"), *options]) == 0
    episode = read_episode(find_episodes(tmp_path / "new")[0])
    assert episode.fields["action_a"][0, 0] == first
    assert episode.num_steps == (3 if legacy == "previous" else 4)
    assert episode.meta["contract"] == read_episode(example).meta["contract"]


@pytest.mark.parametrize("name", WRITABLE)
def test_numbers_that_are_not_finite_are_refused_in_the_source(root, tmp_path, name):
    path = find_episodes(root)[1]
    q = read_episode(path).fields["q_b"].copy()
    q[2, 0] = np.nan
    rewrite(path, q_b=q)
    with pytest.raises(SchemaError, match=rf"{path}: step 2: q_b") as caught:
        convert(root, name, tmp_path / "out", config=PNG)
    assert caught.value.code == "E107"

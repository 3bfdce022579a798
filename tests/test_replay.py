"""Replay: what was recorded comes again, and what does not is measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from PIL import Image, ImageSequence
from pydantic import Field
from small_env import CONTRACT, SmallConfig, SmallEnv

from teamvla.cli.app import run
from teamvla.config import Project, Settings, shipped_configs
from teamvla.data import EpisodeWriter, Ragged, read_episode
from teamvla.errors import ContractError, EpisodeError, InputError
from teamvla.record import RecordConfig, Recorder, record
from teamvla.replay import animation, cameras_of, execute, open_recorded_env
from teamvla.sim import make_env
from teamvla.sim.tasks import TASKS, TaskConfig


def recorded(out: Path, *, trouble: str = "", **config: object) -> Path:
    one = Recorder(SmallConfig(trouble=trouble), RecordConfig(**config), out, 0)
    record(one, 1)
    return one.path(0)


def rewritten(path: Path, out: Path, fields: dict | None = None, **meta: object) -> Path:
    """The episode with other fields and metadata (``None`` removes one)."""
    episode = read_episode(path)
    data = {k: v for k, v in {**episode.meta, **meta}.items() if v is not None}
    columns = {**episode.fields, **(fields or {})}
    with EpisodeWriter(out) as writer:
        writer.start_episode(data)
        for step in range(episode.num_steps):
            row = {**episode.step(step), **{k: columns[k][step] for k in fields or {}}}
            writer.add_step(row)
        return writer.end_episode()


def replayed(path: Path):
    episode = read_episode(path)
    env = open_recorded_env(episode.meta, str(path))
    assert env is not None
    return execute(episode, env)


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project.load("lift", ["task.camera.height=16", "task.camera.width=16"])
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    one = Recorder(task, config, tmp_path_factory.mktemp("lift"), 0)
    record(one, 1)
    return one.path(0)


def test_a_noisy_demonstration_is_repeated_to_the_bit(lift):
    again = replayed(lift)
    assert again.noise
    assert again.is_exact
    assert again.joints == {"a": 0.0, "b": 0.0}
    assert {"rgb_a", "rgb_b", "grip_q_a", "reward"} <= {one.field for one in again.deviations}
    assert again.outcome.success


def test_without_its_noise_it_goes_astray_and_that_is_measured(lift, tmp_path):
    again = replayed(rewritten(lift, tmp_path, noise=None))
    assert not again.is_exact
    assert all(0.003 < apart < 0.3 for apart in again.joints.values())
    first = {one.field: one.step for one in again.deviations}
    assert first["q_a"] in (1, 2)  # the first row was seen before any command
    assert not again.within(0.001)


@pytest.mark.parametrize("trouble", ["", "stateless"])
def test_other_environments_are_repeated_from_state_or_seed(tmp_path, trouble):
    again = replayed(recorded(tmp_path, trouble=trouble))
    assert again.is_exact
    assert again.start == ("reset_seed" if trouble else "reset_state")
    assert {"radar", "gear", "pedals", "ahead"} <= {one.field for one in again.deviations}


def test_the_greatest_difference_and_the_first_step_of_a_field(tmp_path):
    path = recorded(tmp_path / "a")
    fields = read_episode(path).fields
    q = fields["q_arm"].copy()
    q[3, 1] += 0.25
    q[5, 0] -= 0.5
    picture = fields["rgb_arm"].copy()
    picture[4] ^= 1
    changed = rewritten(path, tmp_path / "b", {"q_arm": q, "rgb_arm": picture})
    found = {one.field: one for one in replayed(changed).deviations}
    assert (found["q_arm"].largest, found["q_arm"].step) == (pytest.approx(0.5), 3)
    assert (found["rgb_arm"].largest, found["rgb_arm"].step) == (1.0, 4)
    assert found["rgb_arm"].is_picture
    assert found["radar"].step is None


def test_a_recorded_field_that_the_replay_lacks_is_named_and_not_exact(tmp_path):
    path = recorded(tmp_path)
    episode = read_episode(path)
    episode.fields["depth_arm"] = episode.fields["rgb_arm"][..., 0].astype(np.float32)
    again = execute(episode, SmallEnv(SmallConfig()))
    assert again.not_compared == ("depth_arm",)
    assert not again.is_exact
    assert again.within(1e-9)


def test_a_replay_that_ends_early_is_beyond_any_tolerance(tmp_path):
    path = recorded(tmp_path)
    episode = read_episode(path)
    for name, column in [*episode.fields.items()]:
        if isinstance(column, Ragged):
            del episode.fields[name]
        else:
            episode.fields[name] = np.append(column, column[-1:], axis=0)
    episode.meta["num_steps"] += 1
    again = execute(episode, SmallEnv(SmallConfig()))
    assert (again.outcome.success, again.recorded_steps - again.outcome.steps) == (True, 1)
    assert not again.within(1e9)


def test_another_number_of_rows_cannot_be_within_any_tolerance(tmp_path):
    path = recorded(tmp_path / "a")
    rows = [np.zeros((4, 5), np.float32)] * read_episode(path).num_steps
    again = replayed(rewritten(path, tmp_path / "b", {"radar": rows}))
    assert not again.within(1e9)


def test_a_success_that_does_not_come_again_is_beyond_any_tolerance(tmp_path):
    path = recorded(tmp_path / "a")
    again = replayed(rewritten(path, tmp_path / "b", success=False))
    assert again.outcome.success
    assert not again.within(1e9)


def test_an_episode_of_no_simulator_has_no_environment(tmp_path):
    meta = read_episode(recorded(tmp_path)).meta
    del meta["task_config"]
    assert open_recorded_env(meta, "it") is None


def test_neither_state_nor_seed_is_an_error(tmp_path):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", reset_state=None, reset_seed=None)
    with pytest.raises(EpisodeError, match="expected reset_state or reset_seed"):
        replayed(path)


def test_a_state_that_cannot_be_restored_is_no_success_at_any_tolerance(tmp_path):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", reset_state={"q": []}, success=False)
    again = replayed(path)
    assert "the recorded state: expected no exception, got KeyError" in again.outcome.failure
    assert not again.within(1e9)


@pytest.mark.parametrize("other", [{"noise": "much"}, {"noise": {"kind": "pink"}}, {"index": "x"}])
def test_noise_that_is_not_ours_is_not_laid_over(tmp_path, other):
    assert not replayed(rewritten(recorded(tmp_path / "a"), tmp_path / "b", **other)).noise


def test_commands_that_are_missing_are_named(tmp_path):
    episode = read_episode(recorded(tmp_path))
    del episode.fields["gear"]
    with pytest.raises(EpisodeError, match="got no gear"):
        execute(episode, SmallEnv(SmallConfig()))


def test_another_contract_is_refused(lift):
    with pytest.raises(ContractError, match="do not mean the same"):
        execute(read_episode(lift), SmallEnv(SmallConfig()))


def test_settings_of_another_version_are_named(tmp_path):
    meta = read_episode(recorded(tmp_path)).meta
    meta["task_config"] = json.dumps({**json.loads(meta["task_config"]), "colour": "red"})
    with pytest.raises(InputError, match=r"it: task_config.colour: expected a setting of this"):
        open_recorded_env(meta, "it")


@pytest.mark.parametrize("text", ["{", "[]", {"name": "small"}, None])
def test_settings_that_are_no_text_of_settings_are_refused(text):
    with pytest.raises(InputError, match="task_config: expected JSON text of settings"):
        open_recorded_env({"task_config": text}, "it")


class Part(Settings):
    hook: str = Field(default="", json_schema_extra={"code": True})


class Other(SmallConfig):
    """Settings with which a file could name code."""

    name: str = "small"
    plugin: str = Field(default="", json_schema_extra={"code": True})
    part: Part = Part()


@pytest.mark.parametrize("named", [{"plugin": "antigravity"}, {"part": {"hook": "antigravity"}}])
def test_a_file_chooses_no_code(monkeypatch, named):
    monkeypatch.setattr("small_env.SmallTask.Config", Other)
    meta = {"task_config": json.dumps({"name": "small", **named})}
    with pytest.raises(InputError, match="code that a data file chose"):
        open_recorded_env(meta, "it")


def grid() -> dict:
    return Project.load("minigrid_empty").section("task", TaskConfig).model_dump(mode="json")


@pytest.mark.parametrize("key", ["id", "module", "wrap", "kwargs", "expert", "state"])
def test_no_key_of_a_shipped_environment_can_be_turned_to_other_code(tmp_path, monkeypatch, key):
    (tmp_path / "planted.py").write_text("raise SystemError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    value = {"kwargs": {"planted": 1}, "state": ["planted"]}.get(key, "planted:Planted")
    with pytest.raises(InputError, match="code that a data file chose"):
        open_recorded_env({"task_config": json.dumps(grid() | {key: value})}, "it")


def test_a_folder_cannot_plant_a_shipped_configuration(tmp_path, monkeypatch):
    planted = grid() | {"expert": "planted:Expert"}
    for name in shipped_configs():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump({"task": planted}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="code that a data file chose"):
        open_recorded_env({"task_config": json.dumps(planted)}, "it")


def texts_of(kind: type[Settings], prefix: str = "") -> set[str]:
    """Settings without the mark of code that could hold its name all the same: any text."""
    found = set()
    for name, field in kind.model_fields.items():
        if (field.json_schema_extra or {}).get("code"):
            continue
        for one in plain_types(field.annotation):
            if one in (str, Any, dict):
                found.add(prefix + name)
            elif isinstance(one, type) and issubclass(one, Settings):
                found |= texts_of(one, f"{prefix}{name}.")
    return found


def plain_types(annotation: Any) -> list[Any]:
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return [one for part in inner for one in plain_types(part)] or [annotation]


def test_every_setting_of_an_environment_that_can_name_code_is_marked():
    shipped = [name for name in TASKS if TASKS.get(name).__module__.startswith("teamvla")]
    texts = {text for name in shipped for text in texts_of(TASKS.get(name).Config)}
    # Whoever adds a text marks it as code, or, if nothing is ever imported by it, adds it here.
    harmless = {"name", "slug", "instructions", "phrasings", "mapping"}
    assert {text.partition(".")[0] for text in texts} == harmless


# The picture.


def frames_of(content: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(content)) as picture:
        return [np.asarray(one.convert("RGB")) for one in ImageSequence.Iterator(picture)]


def test_all_cameras_stand_side_by_side_in_every_frame(lift):
    episode = read_episode(lift)
    frames = frames_of(animation(episode))
    assert len(frames) == episode.num_steps
    height, width = frames[0].shape[:2]
    assert (height, width) == (26 + 18 + 192, 2 * 192 + 4)
    left, right = frames[7][44:, :192], frames[7][44:, 196:]
    for shown, field in ((left, "rgb_a"), (right, "rgb_b")):
        expected = episode.fields[field][7].repeat(12, 0).repeat(12, 1)
        assert np.abs(shown.astype(int) - expected).mean() < 8  # WebP is lossy


def test_the_cameras_of_the_contract_are_shown_in_its_order_and_no_other_numbers(lift):
    episode = read_episode(lift)
    episode.meta["contract"]["cameras"].reverse()
    episode.fields["symbols"] = episode.fields["rgb_a"]
    assert cameras_of(episode) == ["rgb_b", "rgb_a"]
    del episode.meta["contract"]
    assert cameras_of(episode) == ["rgb_a", "rgb_b", "symbols"]


def test_each_of_several_cameras_is_named_and_a_single_one_is_not(lift, tmp_path):
    label = frames_of(animation(read_episode(lift)))[0][26:44]
    assert label[:, :80].min() < 120
    assert label[:, 196:276].min() < 120
    assert frames_of(animation(read_episode(recorded(tmp_path))))[0].shape[0] == 26 + 192


def test_the_phase_is_written_above_the_pictures(tmp_path):
    path = recorded(tmp_path / "a")
    episode = read_episode(path)
    plain = frames_of(animation(episode))
    del episode.fields["phase"]
    without = frames_of(animation(episode))
    assert np.abs(plain[2][:26].astype(int) - without[2][:26]).max() > 100


def test_an_episode_without_pictures_cannot_be_shown(tmp_path):
    episode = read_episode(recorded(tmp_path))
    del episode.fields["rgb_arm"]
    assert cameras_of(episode) == []
    with pytest.raises(InputError, match="expected pictures to show, got none"):
        animation(episode)


# The command.


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    code = run(["replay", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_command_shows_and_executes(tmp_path, capsys):
    path = recorded(tmp_path)
    code, data = said_by(capsys, path)
    assert (code, data["executed"]["exact"], data["executed"]["tolerance"]) == (0, True, 0.0)
    assert data["picture"] == str(path.with_suffix(".webp"))
    assert path.with_suffix(".webp").read_bytes()[:4] == b"RIFF"


def test_a_deviation_is_a_finding_unless_it_is_tolerated(tmp_path, capsys):
    path = recorded(tmp_path / "a")
    q = read_episode(path).fields["q_arm"].copy()
    q[2] += 0.01
    changed = rewritten(path, tmp_path / "b", {"q_arm": q})
    code, data = said_by(capsys, changed, "--no-picture")
    assert (code, data["executed"]["joints"]) == (1, {"arm": pytest.approx(0.01, rel=1e-3)})
    assert said_by(capsys, changed, "--no-picture", "--tolerance", "0.02")[0] == 0


def test_other_versions_may_deviate_a_little(tmp_path, capsys):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", software={"mujoco": "0.1"})
    code, data = said_by(capsys, path, "--no-picture")
    assert (code, data["executed"]["tolerance"]) == (0, 0.001)


def test_an_episode_of_a_real_robot_is_shown_and_not_executed(tmp_path, capsys):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", task_config=None)
    code, data = said_by(capsys, path, "--out", tmp_path / "pictures")
    assert (code, data["executed"]) == (0, None)
    assert (tmp_path / "pictures" / f"{path.stem}.webp").exists()
    assert run(["replay", str(path), "--no-picture"]) == 0
    assert "names no simulator (task_config): it is shown, not" in capsys.readouterr().err


def test_a_configuration_tells_the_environment_that_a_file_does_not(lift, tmp_path, capsys):
    path = rewritten(lift, tmp_path, task_config=None)
    size = ["--set", "task.camera.height=16", "--set", "task.camera.width=16"]
    code, data = said_by(capsys, path, "--config", "lift", "--no-picture", *size)
    assert (code, data["executed"]["exact"]) == (0, True)


def test_settings_are_laid_over_the_recorded_ones(lift, tmp_path, monkeypatch, capsys):
    (tmp_path / "lift").write_text("task: {name: nothing}")  # no configuration is looked for
    monkeypatch.chdir(tmp_path)
    code, data = said_by(capsys, lift, "--no-picture", "--set", "task.hold_steps=9")
    assert code == 1
    assert data["executed"]["steps"] == data["steps"]  # it takes longer to succeed
    assert data["executed"]["joints"] == {"a": 0.0, "b": 0.0}
    assert said_by(capsys, lift, "--no-picture", "--set", "task.hold_stops=9")[0] == 2


def test_pictures_of_another_size_are_told_which_size_was_recorded(lift, capsys):
    code, data = said_by(capsys, lift, "--no-picture", "--config", "lift")
    assert code == 1
    advice = f"like those of {lift}: --set task.camera.height=16 --set task.camera.width=16"
    assert advice in data["error"]["message"]


def test_settings_need_an_environment_to_be_laid_over(tmp_path, capsys):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", task_config=None)
    code, data = said_by(capsys, path, "--no-picture", "--set", "task.max_steps=9")
    assert code == 2
    assert "--set: expected --config NAME beside it" in data["error"]["message"]


def test_a_task_that_is_not_known_here_tells_how_it_becomes_known(tmp_path, capsys):
    path = rewritten(recorded(tmp_path / "a"), tmp_path / "b", task_config='{"name": "meet"}')
    code, data = said_by(capsys, path, "--no-picture")
    assert code == 2
    assert "task 'meet': expected a known name" in data["error"]["message"]
    assert "entry point of the group teamvla.tasks" in data["error"]["message"]


def test_an_episode_without_pictures_is_executed(tmp_path, monkeypatch, capsys):
    real = SmallEnv._observe
    monkeypatch.setattr("small_env.CONTRACT", CONTRACT.model_copy(update={"cameras": ()}))
    monkeypatch.setattr(SmallEnv, "_observe", lambda env: without(real(env), "rgb_arm"))
    blind = recorded(tmp_path)
    code, data = said_by(capsys, blind)
    assert (code, data["picture"], data["executed"]["exact"]) == (0, None, True)
    assert run(["replay", str(blind)]) == 0
    assert "has no pictures to show" in capsys.readouterr().err
    assert not [*blind.parent.glob("*.webp")]


def without(observation: dict, field: str) -> dict:
    return {name: value for name, value in observation.items() if name != field}


def test_nothing_is_written_without_a_picture_nor_run_without_execution(tmp_path, capsys):
    path = recorded(tmp_path)
    code, data = said_by(capsys, path, "--no-picture", "--no-execute")
    assert (code, data["picture"], data["executed"]) == (0, None, None)
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == [path.name]


def test_the_small_environment_is_one_of_the_registry(tmp_path):
    assert isinstance(make_env(SmallConfig()), SmallEnv)

"""Recording any environment: its fields, its troubles, and its expert's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_env import CONTRACT, Scripted, SmallConfig, SmallEnv

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.contract import Arm, Contract, Signal
from teamvla.data import read_episode, read_meta, validate_roots
from teamvla.errors import ConfigError, InputError, SchemaError, SimulationError
from teamvla.record import ActionNoise, NoiseConfig, RecordConfig, Recorder, record
from teamvla.record.noise import joint_places
from teamvla.rollout import rollout
from teamvla.seeds import Domain, reset_seed
from teamvla.sim.tasks import TwoArmTaskConfig


def recorder(out: Path, *, trouble: str = "", seed: int = 0, **config: object) -> Recorder:
    return Recorder(SmallConfig(trouble=trouble), RecordConfig(**config), out, seed)


def first(out: Path, **config: object):
    record(recorder(out, **config), 1)
    return read_episode(out / "small" / "s0-000000.npz")


def test_an_episode_of_any_environment_passes_validation(tmp_path):
    record(recorder(tmp_path), 3)
    report = validate_roots([tmp_path])
    assert (report.episodes, report.findings) == (3, ())


def test_valid_rows_are_stored_and_padding_and_mask_are_not(tmp_path):
    episode = first(tmp_path)
    assert "radar_mask" not in episode.fields
    radar = episode.fields["radar"]
    assert [len(rows) for rows in radar] == [step % 3 for step in range(episode.num_steps)]
    assert all((rows == step).all() for step, rows in enumerate(radar))


def test_every_part_of_a_command_is_a_field_of_its_own(tmp_path):
    fields = first(tmp_path).fields
    assert fields["action_arm"].shape[1] == 2
    assert set(fields["grip_arm"].tolist()) == {0.5}
    assert fields["pedals"][0].tolist() == [0.5, 0.25]
    assert fields["gear"].dtype == np.int64
    assert fields["gear"][:3].tolist() == [1, 0, 1]


def test_targets_stand_in_the_row_of_the_observation_they_came_with(tmp_path):
    ahead = first(tmp_path).fields["ahead"]
    assert ahead[:, 0, 0].tolist() == list(range(len(ahead)))


def test_phase_reward_and_time_of_every_step(tmp_path):
    fields = first(tmp_path).fields
    assert fields["phase"][:4].tolist() == ["far", "far", "far", "near"]
    assert set(fields["reward"].tolist()) == {0.25}
    assert fields["timestamp"][:3].tolist() == [0.0, 0.05, 0.1]


def test_the_metadata_tell_how_to_get_there_again(tmp_path):
    meta = first(tmp_path).meta
    assert meta["reset_seed"] == reset_seed(0, Domain.RECORD, 0)
    assert meta["reset_state"]["steps"] == [0]
    assert json.loads(meta["task_config"]) == SmallConfig().model_dump(mode="json")


def test_a_simulator_that_cannot_tell_its_state_is_recorded_without(tmp_path):
    meta = first(tmp_path, trouble="stateless").meta
    assert "reset_state" not in meta
    assert "reset_seed" in meta


def test_the_greatest_seed_can_be_recorded(tmp_path):
    record(recorder(tmp_path, seed=2**63 - 1), 1)
    path = next(tmp_path.rglob("*.npz"))
    assert read_meta(path)["reset_seed"] == reset_seed(2**63 - 1, Domain.RECORD, 0)


# Noise.


def contract(action: str, *sizes: int) -> Contract:
    names = [("x", "y", "z")[:size] for size in sizes]
    arms = tuple(Arm(name=f"n{i}", joints=names[i]) for i in range(len(sizes)))
    signals = (Signal(field="gear", role="action", dtype="int64", choices=("a", "b")),)
    return Contract(embodiment="own", action=action, arms=arms, cameras=(), signals=signals)


def test_arms_of_different_sizes_are_disturbed_each_at_its_own_pace():
    noise = ActionNoise(
        NoiseConfig(), np.random.default_rng(0), contract("absolute_joint_position", 3, 1)
    )
    noise(np.zeros(7))
    moved = noise(np.array([0.1, 0.1, 0.1, 0.7, 0.0, 0.7, 1.0]))
    assert np.all(moved[:3] != 0.1)
    assert moved[3:].tolist() == [0.7, 0.0, 0.7, 1.0]  # a gripper, an arm at rest, and a gear


def test_steps_of_joints_are_disturbed_as_fast_as_they_are():
    noise = ActionNoise(
        NoiseConfig(), np.random.default_rng(0), contract("delta_joint_position", 2)
    )
    moving = np.array([0.05, 0.05, 0.0, 0.0])
    assert np.all(noise(moving)[:2] != moving[:2])
    assert np.all(noise(moving)[:2] != moving[:2])  # the same command again is the same speed


@pytest.mark.parametrize(
    "without", [contract("delta_tool_position", 3), contract("absolute_joint_position")]
)
def test_commands_that_are_no_joints_have_no_places_for_noise(without):
    assert joint_places(without) == []


def test_the_executed_command_is_noisy_and_the_stored_one_is_not(tmp_path):
    env = SmallEnv(SmallConfig())
    commands = []
    outcome = rollout(
        env, Scripted(env), reset_seed(0, Domain.RECORD, 0),
        on_tick=lambda tick: commands.append(tick.action[0][:2]),
    )  # fmt: skip
    stored = first(tmp_path).fields
    assert outcome.success
    assert np.array_equal(stored["action_arm"][:4], commands[:4])
    clean = np.cumsum(np.zeros(2))
    for command in commands[:3]:
        clean = clean + 0.5 * (command - clean)
    assert np.abs(stored["q_arm"][3] - clean).max() > 1e-3


def test_another_choice_is_executed_than_the_stored_one_which_is_the_experts(tmp_path, monkeypatch):
    executed = []
    real = SmallEnv.step
    monkeypatch.setattr(SmallEnv, "step", lambda env, a: executed.append(a[-1]) or real(env, a))
    stored = first(tmp_path, noise={"sigma": 0, "signals": {"gear": (1.0,)}}).fields["gear"]
    assert np.array_equal(stored, (1 + np.arange(len(stored))) % 2)
    assert np.array_equal(executed, 1 - stored)


def test_noise_that_has_no_place_is_told_and_not_in_the_metadata(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "teamvla")
    monkeypatch.setattr("teamvla.record.recorder.disturbs", lambda *_: False)
    assert "noise" not in first(tmp_path).meta
    assert "no noise is laid over its commands" in caplog.text


# What goes wrong.


@pytest.mark.parametrize(
    ("expert", "said"),
    {
        "Raises": "the expert: expected no exception, got ZeroDivisionError: no way",
        "GivesNan": "the expert's command: expected finite numbers, got NaN or others",
        "Misshapen": "the expert's command: expected parts of [3, 2, 1] numbers, "
        "got parts of [2, 2, 1]",
        "ShiftsTooFar": "the expert's command, signal gear: expected int64, got [1.e+30]",
        "GripsTooHard": "grip_arm: expected a value in [0, 1], got 1.5",
        "Exits": "the expert: expected no exception, got SystemExit: 0",
        "Moody": "the expert's phase: expected no exception, got LookupError: in no mood",
    }.items(),
)
def test_an_expert_that_breaks_off_costs_its_episode_and_no_other(tmp_path, expert, said):
    total = record(recorder(tmp_path, expert=f"small_env:{expert}"), 4)
    assert dict(total.failures) == {said: total.broken}
    assert total.broken >= 1
    assert (len(total.kept), total.attempts) == (4, 4 + total.broken)
    assert not validate_roots([tmp_path]).findings


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("reset", "the environment's reset: expected no exception, got RuntimeError: no power"),
        ("nan", "q_arm: expected finite numbers, got 1 NaN or infinite"),
    ],
)
def test_an_environment_that_breaks_off_costs_one_episode(tmp_path, trouble, said):
    total = record(recorder(tmp_path, trouble=trouble), 4)
    assert [*total.failures] == [said]
    assert len(total.kept) == 4


def test_an_attempt_that_broke_off_is_never_kept_but_one_without_success_is(tmp_path):
    broken = recorder(tmp_path / "broken", expert="small_env:Raises", keep_failures=True)
    assert all(one.outcome.success for one in record(broken, 4).kept)
    failed = recorder(tmp_path / "failed", expert="small_env:GivesUp", keep_failures=True)
    total = record(failed, 4)
    assert total.failures["no success"] == 4 - total.successes > 0
    assert total.broken == 0


def test_where_every_attempt_breaks_off_the_first_episode_ends_the_recording(tmp_path):
    total = record(recorder(tmp_path, expert="small_env:AlwaysRaises"), 3)
    said = "the expert: expected no exception, got KeyError: 'nothing works'"
    assert dict(total.failures) == {said: 20}
    assert (total.is_hopeless, total.given_up, total.kept) == (True, [0], [])
    assert not total.interrupted


def test_an_episode_that_always_breaks_off_is_given_up_and_the_others_are_recorded(tmp_path):
    total = record(recorder(tmp_path, expert="small_env:RaisesAtOneEpisode"), 3)
    assert (total.given_up, [one.index for one in total.kept]) == ([1], [0, 2])
    assert (total.attempts, total.broken, total.is_hopeless) == (22, 20, False)
    assert not total.interrupted


def test_a_quickstart_does_not_train_on_less_than_was_asked_for(tmp_path):
    from teamvla.quickstart import Quickstart

    expert = {"expert": "small_env:RaisesAtOneEpisode"}
    project = Project.from_data({"task": {"name": "small"}, "record": expert})
    with pytest.raises(SimulationError, match=r"episode 1: .* got the expert: .*nothing works"):
        Quickstart(tmp_path, project, episodes=3, workers=1).run()


@pytest.mark.parametrize("raised", [SystemExit(0), RuntimeError("no display\nat all")])
def test_an_environment_that_cannot_be_made_is_an_error(tmp_path, monkeypatch, raised):
    def fails(*_: object) -> None:
        raise raised

    monkeypatch.setattr(SmallEnv, "__init__", fails)
    said = f"the environment: expected no exception, got {type(raised).__name__}"
    with pytest.raises(SimulationError, match=said):
        record(recorder(tmp_path), 1)


def test_failures_without_success_among_them_end_the_recording_as_ever(tmp_path):
    with pytest.raises(SimulationError, match=r"20 failed, at last: the expert: .*nothing works"):
        record(recorder(tmp_path, expert="small_env:GivesUpThenRaises"), 3)


def test_environments_are_closed_when_the_recording_is_over(tmp_path, monkeypatch):
    opened, closed = [], []
    real = SmallEnv.__init__
    monkeypatch.setattr(SmallEnv, "__init__", lambda env, c: opened.append(env) or real(env, c))
    monkeypatch.setattr(SmallEnv, "close", lambda env: closed.append(env))
    record(recorder(tmp_path), 2)
    assert opened == closed != []
    with pytest.raises(ConfigError):
        record(recorder(tmp_path / "other", expert="small_env:Unmakeable"), 2)
    assert opened == closed


def test_the_steps_of_an_episode_under_way_are_shown(tmp_path, caplog):
    caplog.set_level("DEBUG", "teamvla.progress")
    total = record(recorder(tmp_path), 2)
    lines = caplog.text.splitlines()
    first = [line for line in lines if "0/2 episodes" in line and "steps" in line]
    assert [int(line.rpartition(" steps ")[2]) for line in first][:3] == [1, 2, 3]
    assert f"steps {total.steps}, success 2/2" in lines[-1]


@pytest.mark.parametrize(
    ("expert", "said"),
    {
        "nosuchmodule:Expert": "ModuleNotFoundError: No module named 'nosuchmodule'",
        "small_env:Nobody": "got no Nobody in small_env",
        "small_env": "got no MODULE:NAME",
        "small_env:CONTRACT": "got a Contract",
        "small_env:Unmakeable": "ValueError: not today",
        "small_env:ExitsWhenMade": "takes the environment: SystemExit\\. ",
        "exits_when_imported:Expert": "SystemExit: 0",
        "small_env:Actless": "got one without act",
    }.items(),
)
def test_an_expert_that_cannot_be_had_is_one_error_before_anything_starts(
    tmp_path, monkeypatch, expert, said
):
    (tmp_path / "exits_when_imported.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said):
        record(recorder(tmp_path / "out", expert=expert), 3, workers=2)
    assert not (tmp_path / "out").exists()


def test_a_field_of_the_wrong_kind_is_an_error_and_no_failed_attempt(tmp_path, monkeypatch):
    real = SmallEnv._observe
    monkeypatch.setattr(SmallEnv, "_observe", lambda env: real(env) | {"q_arm": env.q})
    with pytest.raises(SchemaError, match=r"E105.*q_arm: expected float32\[N\]"):
        record(recorder(tmp_path), 1)


def test_an_environment_that_does_not_tell_its_task_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(SmallEnv, "_info", lambda env, won: {"success": won, "task": "small"})
    with pytest.raises(ConfigError, match="expected success, task, instruction, got no instr"):
        record(recorder(tmp_path), 1)


def test_a_seed_has_so_many_episodes_and_no_more(tmp_path):
    with pytest.raises(ConfigError, match="--episodes: expected 1 to 16777216"):
        record(recorder(tmp_path), (1 << 24) + 1)


def test_an_environment_that_calls_its_task_otherwise_is_an_error(tmp_path, monkeypatch):
    real = SmallEnv._info
    monkeypatch.setattr(SmallEnv, "_info", lambda env, won: real(env, won) | {"task": "other"})
    with pytest.raises(InputError, match="expected 'small', got 'other'"):
        record(recorder(tmp_path), 1)


# The command.


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    code = run(["record", "--task", "small", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("expert", "code"), [("Raises", 1), ("GivesUp", 0)])
def test_attempts_that_broke_off_are_findings_and_those_without_success_are_not(
    tmp_path, capsys, expert, code
):
    words = ["--out", tmp_path, "-n", 4, "--expert", f"small_env:{expert}"]
    ended, data = said_by(capsys, *words)
    assert ended == code
    assert data["attempts"] == data["successes"] + sum(data["failures"].values()) > 4
    assert data["success_rate"] == data["successes"] / data["attempts"]
    assert data["interval_95"][0] < data["success_rate"] < data["interval_95"][1]
    again, same = said_by(capsys, *words)
    assert again == code
    for key in ("attempts", "successes", "failures", "success_rate"):
        assert same[key] == data[key]  # also where nothing was recorded


def test_the_expert_is_part_of_what_an_episode_is(tmp_path, capsys):
    assert said_by(capsys, "--out", tmp_path, "-n", 1, "--expert", "small_env:GivesUp")[0] == 0
    assert read_meta(next(tmp_path.rglob("*.npz")))["expert"] == "small_env:GivesUp"
    code, data = said_by(capsys, "--out", tmp_path, "-n", 1)
    assert code == 2
    assert "an episode of other settings" in data["error"]["message"]


def test_a_rate_below_the_asked_one_is_a_finding(tmp_path, capsys):
    words = ["--out", tmp_path, "-n", 4, "--expert", "small_env:GivesUp", "--min-success"]
    assert said_by(capsys, *words, "0.9")[0] == 1
    assert said_by(capsys, *words, "0.1")[0] == 0


def test_a_shard_without_episodes_is_below_no_rate(tmp_path, capsys):
    words = ["--out", tmp_path, "-n", 2, "--shard", "5/6", "--min-success", "0.9"]
    code, data = said_by(capsys, *words)
    assert (code, data["recorded"], data["attempts"]) == (0, 0, 0)
    assert "next" not in data
    assert run(["record", "--task", "small", *map(str, words)]) == 0
    said = capsys.readouterr()
    assert said.out == "nothing to record: no episode falls to shard 5/6\n"
    assert "Next" not in said.err


def test_an_expert_that_never_works_is_told_with_its_reasons_and_no_next_command(tmp_path, capsys):
    words = ["--out", str(tmp_path), "-n", "3", "--expert", "small_env:AlwaysRaises"]
    code, data = said_by(capsys, *words)
    assert (code, data["given_up"], data["broken"], data["attempts"]) == (1, [0], 20, 20)
    assert "next" not in data
    assert run(["record", "--task", "small", *words]) == 1
    said = capsys.readouterr().out
    assert "every attempt broke off, so the rest was not tried: mend the expert" in said
    assert "20 x the expert: expected no exception, got KeyError: 'nothing works'" in said
    assert "noise" not in said


def test_the_words_fit_one_episode_and_a_run_that_had_nothing_to_do(tmp_path, capsys):
    words = ["record", "--task", "small", "-n", "1", "--out", str(tmp_path)]
    assert run(words) == 0
    first = capsys.readouterr()
    size = next(tmp_path.rglob("*.npz")).stat().st_size
    assert f"1 episode, 8 steps, {size / 1000:.3g} kB in" in first.out
    assert "speed" in first.out
    assert "1 episode needs at most" in first.err
    assert run(words) == 0
    assert "speed" not in capsys.readouterr().out


def test_a_task_that_is_not_known_tells_how_it_becomes_known(tmp_path, capsys):
    code, data = said_by(capsys, "--task", "meet", "--out", tmp_path)
    assert code == 2
    assert "expected a known name" in data["error"]["message"]
    assert "entry point of the group teamvla.tasks" in data["error"]["message"]


def test_failures_are_kept_or_dropped_by_option(tmp_path, capsys):
    words = ["-n", 4, "--expert", "small_env:GivesUp", "--out"]
    kept = said_by(capsys, *words, tmp_path / "kept", "--keep-failures")[1]
    dropped = said_by(capsys, *words, tmp_path / "dropped", "--drop-failures")[1]
    assert (kept["recorded"], kept["attempts"]) == (4, 4)
    assert kept["successes"] < dropped["successes"] == dropped["recorded"] == 4


def test_an_id_stands_alone(tmp_path, capsys):
    code, data = said_by(capsys, "--env", "teamvla/TwoArmLift-v0", "--out", tmp_path)
    assert code == 2
    assert (
        "--env: expected neither --task nor --config beside it, got --task. "
        in (data["error"]["message"])
    )


def test_the_contract_of_the_small_environment_has_every_kind_of_field():
    assert CONTRACT.command_sizes == (3, 2, 1)


def test_the_numbers_of_a_segmentation_are_named_in_the_file(tmp_path):
    small = {"height": 8, "width": 8, "segmentation": True}
    task = TwoArmTaskConfig.model_validate({"camera": small, "max_steps": 1})
    record(Recorder(task, RecordConfig(keep_failures=True), tmp_path, 0), 1)
    episode = read_episode(tmp_path / "lift" / "s0-000000.npz")
    names = episode.meta["segments"]
    assert set(np.unique(episode.fields["seg_a"])) <= {0, *names.values()}
    assert {"tray", "gripper_a"} <= set(names)

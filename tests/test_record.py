"""Recording: same bytes for any number of workers, nothing lost, nothing mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teamvla import seeds
from teamvla.config import Project
from teamvla.contract import Arm, Contract, Signal
from teamvla.data import EpisodeWriter, read_episode
from teamvla.data.journal import Journal, journal_path
from teamvla.errors import ConfigError, InputError, SimulationError
from teamvla.record import ActionNoise, NoiseConfig, RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig

JOINTS = np.tile([True] * 6 + [False], 2)
SIX = ("one", "two", "three", "four", "five", "six")
ARMS = Contract(arms=(Arm(name="a", joints=SIX), Arm(name="b", joints=SIX)), cameras=())


def recorder(out: Path, *overrides: str, seed: int = 0) -> Recorder:
    small = ["task.camera.height=16", "task.camera.width=16"]
    project = Project.load("lift", [*small, *overrides])
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    return Recorder(task, config, out, seed)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.npz"))}


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        record(recorder(tmp_path / str(workers)), 3, workers=workers)
    assert len(contents(tmp_path / "1")) == 3
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_stored_command_is_the_experts_and_the_joints_show_the_noise(tmp_path):
    record(recorder(tmp_path / "noisy"), 1)
    record(recorder(tmp_path / "clean", "record.noise.sigma=0"), 1)
    fields = [
        read_episode(next((tmp_path / kind).rglob("*.npz"))).fields for kind in ("noisy", "clean")
    ]
    steps = [np.abs(np.diff(one["action_a"], 2, axis=0))[:20].max() for one in fields]
    drift = np.abs(fields[0]["q_a"][:20] - fields[1]["q_a"][:20]).max()
    assert drift > 0.01  # the arm was pushed off its path
    assert steps[0] < 2 * steps[1] + 0.01  # the label stays smooth


def test_an_interrupted_recording_goes_on_to_the_same_set(tmp_path):
    record(recorder(tmp_path / "whole"), 3)
    asked = []
    part = recorder(tmp_path / "parts")
    first = record(part, 3, stop=lambda: asked.append(1) or len(asked) > 1)
    assert first.interrupted
    assert len(contents(tmp_path / "parts")) == 1
    second = record(part, 3)
    assert sum(one.existed for one in second.kept) == 1
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_what_a_killed_recording_left_is_recorded_again(tmp_path):
    record(recorder(tmp_path / "whole"), 2)
    again = recorder(tmp_path / "killed")
    path = journal_path(again.path(1))
    path.parent.mkdir(parents=True)
    left = Journal.create(path)
    left.start({"task": "lift", "episode_id": again.episode_id(1)}, "fast")
    left.release()
    record(again, 2)
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert not path.exists()


def test_an_attempt_that_is_not_kept_leaves_nothing(tmp_path):
    with pytest.raises(SimulationError):
        record(recorder(tmp_path, "task.max_steps=3"), 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_steps_stand_in_the_journal_while_they_are_recorded(tmp_path, monkeypatch):
    sizes = []
    real = EpisodeWriter.add_step

    def watched(self, step):
        real(self, step)
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob(".*.part")))

    monkeypatch.setattr(EpisodeWriter, "add_step", watched)
    record(recorder(tmp_path), 1)
    assert sizes[0] > 0
    assert sizes == sorted(set(sizes))


def test_episodes_of_other_settings_are_not_continued(tmp_path):
    record(recorder(tmp_path), 1)
    with pytest.raises(InputError, match="an episode of other settings"):
        record(recorder(tmp_path, "record.noise.sigma=0.01"), 1)


def test_an_expert_that_cannot_succeed_ends_the_recording_with_a_reason(tmp_path):
    with pytest.raises(SimulationError, match=r"got 0 successes in \d+ attempts"):
        record(recorder(tmp_path, "task.max_steps=3"), 1)
    assert contents(tmp_path) == {}


def test_failures_are_kept_on_request_and_counted_either_way(tmp_path):
    total = record(recorder(tmp_path, "task.max_steps=3", "record.keep_failures=true"), 2)
    assert (total.attempts, total.successes, len(total.kept)) == (2, 0, 2)
    assert not read_episode(total.kept[0].path).meta["success"]


def test_grippers_are_never_disturbed_and_resting_arms_hardly():
    noise = ActionNoise(NoiseConfig(), np.random.default_rng(0), ARMS)
    still = np.zeros(14)
    assert np.array_equal(noise(still), still.astype(np.float32))
    moved = noise(np.where(JOINTS, 0.1, 0.7))
    assert moved[[6, 13]] == pytest.approx([0.7, 0.7])
    assert np.all(moved[:6] != np.float32(0.1))


PEDALS = Contract(
    embodiment="car",
    cameras=(),
    signals=(
        Signal(field="pedals", role="action", shape=(2,)),
        Signal(field="horn", role="action"),
    ),
)


def test_signals_are_disturbed_as_much_as_each_is_told_to_be():
    config = NoiseConfig(signals={"pedals": (0.5, 0.0)})
    noise = ActionNoise(config, np.random.default_rng(0), PEDALS)
    moved = np.stack([noise(np.array([1.0, 2.0, 3.0])) for _ in range(2000)])
    assert moved[:, 0].std() == pytest.approx(0.5, rel=0.2)
    assert np.array_equal(moved[:, 1:], np.tile(np.float32([2.0, 3.0]), (2000, 1)))


@pytest.mark.parametrize("signals", [{"pedal": (1.0, 1.0)}, {"pedals": (1.0,)}])
def test_noise_for_other_signals_than_there_are_is_refused(signals):
    name, numbers = next(iter(signals)), len(next(iter(signals.values())))
    known = r"expected pedals \(numbers: 2\), horn \(numbers: 1\)"
    got = rf"got {name} \(numbers: {numbers}\)"
    with pytest.raises(ConfigError, match=f"record.noise.signals: {known}, {got}"):
        ActionNoise(NoiseConfig(signals=signals), np.random.default_rng(0), PEDALS)


MOVES = ("left", "right", "forward", "wait")
WORLD = Contract(
    embodiment="grid",
    cameras=(),
    signals=(
        *PEDALS.signals,
        Signal(field="action", role="action", dtype="int64", choices=MOVES),
    ),
)


def test_of_a_choice_any_other_is_made_with_the_chance_it_is_told():
    noise = ActionNoise(NoiseConfig(signals={"action": (0.3,)}), np.random.default_rng(0), WORLD)
    chosen = np.arange(4000) % len(MOVES)
    made = np.stack([noise(np.array([1.0, 2.0, 3.0, move], np.float32)) for move in chosen])
    assert np.array_equal(made[:, :3], np.tile(np.float32([1.0, 2.0, 3.0]), (4000, 1)))
    others = made[:, 3].astype(int)
    assert np.array_equal(others, made[:, 3])
    assert (others != chosen).mean() == pytest.approx(0.3, abs=0.03)
    for move in range(len(MOVES)):
        instead = others[(chosen == move) & (others != chosen)]
        shares = np.bincount(instead, minlength=len(MOVES)) / len(instead)
        assert shares == pytest.approx([0 if k == move else 1 / 3 for k in range(4)], abs=0.08)


def test_with_a_chance_of_one_a_choice_is_never_the_same():
    noise = ActionNoise(NoiseConfig(signals={"action": (1.0,)}), np.random.default_rng(0), WORLD)
    assert all(noise(np.array([0.0, 0.0, 0.0, 2.0]))[3] != 2 for _ in range(300))


@pytest.mark.parametrize("chance", [1.5, -0.1])
def test_what_is_no_chance_is_refused_of_a_choice(chance):
    config = NoiseConfig(signals={"action": (chance,)})
    expected = f"record.noise.signals.action: expected a chance from 0 to 1.* got {chance}"
    with pytest.raises(ConfigError, match=expected):
        ActionNoise(config, np.random.default_rng(0), WORLD)


@pytest.mark.parametrize("contract", [PEDALS, WORLD])
def test_who_disturbs_no_choice_draws_what_was_ever_drawn(contract):
    """Episodes that were recorded are replayed with the noise of their seed."""
    config = NoiseConfig(signals={"pedals": (0.5, 0.1)})
    noise = ActionNoise(config, np.random.default_rng(3), contract)
    rng, drift = np.random.default_rng(3), np.zeros(contract.action_dim)
    deviations = np.zeros(contract.action_dim)
    deviations[:2] = 0.5, 0.1
    for _ in range(20):
        drift = 0.85 * drift + np.sqrt(1 - 0.85**2) * rng.standard_normal(contract.action_dim)
        expected = (1.0 + deviations * drift).astype(np.float32)
        assert np.array_equal(noise(np.ones(contract.action_dim, np.float32)), expected)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**40), st.sampled_from(seeds.Domain), st.integers(0, 2**31)),
        min_size=2, max_size=6, unique=True,
    )
)  # fmt: skip
def test_no_two_initial_states_share_a_seed_whatever_the_seeds(triples):
    assert len({seeds.reset_seed(*triple) for triple in triples}) == len(triples)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError])
def test_what_breaks_off_and_can_be_made_again_leaves_no_journal(tmp_path, monkeypatch, reason):
    real = EpisodeWriter.add_step

    def breaks(writer, step):
        real(writer, step)
        if step["timestamp"] > 0.1:
            assert list(tmp_path.rglob(".*.part"))
            raise reason

    monkeypatch.setattr(EpisodeWriter, "add_step", breaks)
    with pytest.raises(reason):
        record(recorder(tmp_path), 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

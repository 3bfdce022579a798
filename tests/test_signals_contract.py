"""Contracts with signals: discrete moves and driving, from the writer to every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from sample_steps import code_of, rewrite, without

from teamvla.checkpoint import write_checkpoint
from teamvla.cli.app import run
from teamvla.contract import Arm, Camera, Contract, Signal
from teamvla.data import as_step, build_index
from teamvla.data.fields import meaning_in
from teamvla.data.npz import read_episode
from teamvla.data.overview import survey
from teamvla.data.overview.report import render
from teamvla.data.overview.words import contract_facts
from teamvla.data.ragged import Ragged
from teamvla.data.schema import step_specs, validate_columns, validate_sizes, validate_step
from teamvla.data.validation import validate_file, validate_roots
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import ContractError

F32 = np.float32
MOVES = ("left", "right", "forward")
VIEW = Camera(field="rgb", height=4, width=5)
ARM = Arm(name="a", joints=("shoulder", "elbow"))

GRID = Contract(
    embodiment="grid",
    control_hz=5,
    cameras=(VIEW,),
    signals=(
        Signal(field="action", role="action", dtype="int64", choices=MOVES),
        Signal(field="direction", dtype="int64", choices=("east", "south", "west", "north")),
        Signal(field="carrying", dtype="bool"),
        Signal(field="cells", dtype="uint8", shape=(3, 3, 2), high=10),
    ),
)
DRIVING = Contract(
    embodiment="driving",
    control_hz=10,
    cameras=(Camera(field="rgb_surround_front", height=4, width=5),),
    signals=(
        Signal(field="points", shape=(-1, 4), unit="m"),
        Signal(field="radar", shape=(-1, 5)),
        Signal(field="imu", shape=(-1, 7)),
        Signal(field="speed", unit="m/s", low=0),
        Signal(field="controls", role="action", shape=(2,), low=-1, high=1),
        Signal(field="trajectory", role="target", shape=(3, 2), unit="m"),
    ),
)
MIXED = Contract(
    embodiment="single_arm",
    arms=(ARM,),
    cameras=(VIEW,),
    signals=(
        Signal(field="goal", shape=(2,), unit="m"),
        Signal(field="lamp", role="action", dtype="bool"),
        Signal(field="base", role="action", shape=(2, 2)),
    ),
)


def grid_step(index: int = 0, **changes: Any) -> dict[str, Any]:
    words = {"instruction": "get to the goal", "task": "empty", "success": index == 5}
    step = {
        "rgb": np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8),
        "action": np.array(index % 3),
        "direction": index % 4,
        "carrying": False,
        "cells": np.full((3, 3, 2), index, np.uint8),
    }
    return {**step, **words, **changes}


def driving_step(index: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(index)
    step = {
        "rgb_surround_front": rng.integers(0, 256, (4, 5, 3), np.uint8),
        "points": rng.random((3 * index, 4), F32),
        "radar": rng.random((5 - index, 5), F32),
        "imu": rng.random((10, 7), F32),
        "speed": np.array(index, F32),
        "controls": rng.random(2, F32),
        "trajectory": rng.random((3, 2), F32),
        "timestamp": index / 10,
    }
    words = {"instruction": "turn left", "task": "drive", "success": index == 5}
    return {**step, **words, **changes}


STEPS = {"grid": (GRID, grid_step), "driving": (DRIVING, driving_step)}


def write(root: Path, contract: Contract, steps: list[dict[str, Any]]) -> Path:
    with EpisodeWriter(root) as writer:
        meta = {"contract": contract.to_dict(), "contract_digest": contract.digest}
        writer.start_episode({"task": steps[0]["task"], **meta})
        for step in steps:
            writer.add_step(step)
        return writer.end_episode()


def record(root: Path, kind: str) -> Path:
    contract, step = STEPS[kind]
    return write(root, contract, [step(index) for index in range(6)])


def errors(path: Path) -> list[tuple[str, str | None, int | None]]:
    found = (one for one in validate_file(path) if one.code.startswith("E"))
    return [(one.code, one.field, one.step) for one in found]


# What a contract may say.


def test_a_contract_without_signals_is_written_as_before() -> None:
    alone = Contract(embodiment="single_arm", arms=(ARM,), cameras=(VIEW,))
    assert "signals" not in alone.to_dict()
    assert alone.digest != MIXED.digest


@pytest.mark.parametrize("contract", [GRID, DRIVING, MIXED])
def test_signals_survive_json(contract: Contract) -> None:
    again = Contract.parse(json.loads(json.dumps(contract.to_dict())), "here")
    assert again == contract
    assert again.digest == contract.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"field": "Lidar"}, "a signal's field"),
        ({"shape": (3, -1)}, "-1 stands first alone"),
        ({"shape": (0,)}, "sizes are 1 or more"),
        ({"shape": (-2,)}, "sizes are 1 or more"),
        ({"shape": (-1, 2), "role": "action"}, "same length in each step"),
        ({"low": 1, "high": 1}, "low is not smaller than high"),
        ({"dtype": "bool", "low": 0}, "bool has no low"),
        ({"choices": ("x",)}, "choices go with int64"),
        ({"dtype": "int64", "choices": ("x",), "shape": (2,)}, "choices go with int64"),
        ({"dtype": "int64", "choices": ("x",), "high": 3}, "choices go with int64"),
        ({"dtype": "int64", "choices": ("x", "x")}, "a name of its own"),
        ({"dtype": "int64", "choices": ("x", " y")}, "a choice matches"),
        ({"dtype": "float64"}, "float32"),
    ],
)
def test_a_signal_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Signal(**{"field": "x", **changes})


def several(*fields: str) -> tuple[Signal, ...]:
    return tuple(Signal(field=field) for field in fields)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"signals": several("goal", "goal")}, "goal: arms and cameras need .*, signals too"),
        ({"signals": several("rgb")}, "rgb: arms"),
        ({"signals": several("q_a")}, "q_a: arms"),
        ({"signals": several("success")}, "success: arms"),
        ({"signals": several("q_x", "action_x")}, "these are an arm's, not signals"),
        ({"signals": (Signal(field="p", shape=(-1, 2)), *several("p_mask"))}, "p_mask: arms"),
        ({"arms": ()}, "single_arm has arms: 1, not 0"),
        ({"arms": (), "embodiment": "grid", "signals": several("x")}, "nothing is commanded"),
        ({"action": "delta_tool_position"}, "joints x, y, z, not shoulder, elbow"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Contract(**{**dict(MIXED), **changes})


def test_a_tool_may_be_told_how_far_to_go() -> None:
    arm = Arm(name="a", joints=("x", "y", "z"))
    contract = Contract(
        embodiment="single_arm", action="delta_tool_position", arms=(arm,), cameras=()
    )
    assert (contract.action_dim, contract.grippers) == (4, [3])


@pytest.mark.parametrize(
    ("signals", "lines"),
    [
        (GRID.signals[::-1], [
            "signals[0]: 'action' != 'cells'", "signals[1]: 'direction' != 'carrying'",
            "signals[2]: 'carrying' != 'direction'", "signals[3]: 'cells' != 'action'",
        ]),
        ((GRID.signals[0], *GRID.signals[2:], Signal(field="extra", shape=(-1, 3), unit="m")), [
            "signals.direction: 'observation int64 0..3 east|south|west|north' != None",
            "signals.extra: None != 'observation float32[P,3] m'",
        ]),
        ((GRID.signals[0].model_copy(update={"choices": MOVES[::-1]}), *GRID.signals[1:]), [
            "signals.action: 'action int64 0..2 left|right|forward' != "
            "'action int64 0..2 forward|right|left'",
        ]),
    ],
)  # fmt: skip
def test_differences_of_signals_are_readable(signals: tuple[Signal, ...], lines: list[str]) -> None:
    other = GRID.model_copy(update={"signals": signals})
    assert GRID.diff(other) == lines
    assert GRID.diff(GRID) == []
    with pytest.raises(ContractError, match="do not mean the same"):
        GRID.require(other, "the data", "the simulator")


# The command.


def test_the_command_has_arms_first_and_signals_behind_them() -> None:
    assert (MIXED.command_sizes, MIXED.action_dim, MIXED.grippers) == ((3, 1, 4), 8, [2])
    joined = np.array([0.1, 0.2, 0.5, 1, 2, 3, 4, 5], F32)
    arm, lamp, base = MIXED.split_command(joined)
    assert (arm.tolist(), lamp.shape, bool(lamp)) == (joined[:3].tolist(), (), True)
    assert base.tolist() == [[2, 3], [4, 5]]
    fields = MIXED.command_fields([arm, lamp, base])
    assert [*fields] == ["action_a", "grip_a", "lamp", "base"]
    assert fields["action_a"].tolist() == joined[:2].tolist()
    assert fields["grip_a"] == F32(0.5)
    assert fields["lamp"].dtype == bool


def test_parts_as_an_expert_gives_them_become_fields() -> None:
    fields = GRID.command_fields([np.array([2.0], F32)])
    assert fields == {"action": 2}
    assert (fields["action"].dtype, fields["action"].shape) == (np.int64, ())
    validate_step(grid_step(**fields), step_specs(GRID))


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=6, max_size=6), st.integers(0, 1))
def test_splitting_and_joining_are_inverse(numbers: list[float], lamp: int) -> None:
    joined = np.array([*numbers[:3], lamp, *numbers[:4]], F32)
    parts = MIXED.split_command(joined)
    assert np.array_equal(np.concatenate([part.ravel() for part in parts], dtype=F32), joined)
    fields = MIXED.command_fields(parts)
    whole = [*fields["action_a"], fields["grip_a"], fields["lamp"], *fields["base"].ravel()]
    assert np.array_equal(np.array(whole, F32), joined)


@pytest.mark.parametrize(
    ("joined", "said"),
    [
        (np.zeros(7), r"expected 8 finite numbers, got shape \(7,\)"),
        (np.zeros((1, 8)), r"got shape \(1, 8\)"),
        (np.full(8, np.nan), "got others"),
        (np.array([0, 0, 0, 2, 0, 0, 0, 0]), r"signal lamp: expected bool, got \[2\]"),
    ],
)
def test_a_joined_command_that_does_not_fit_is_refused(joined: np.ndarray, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        MIXED.split_command(joined)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([np.zeros(3)], r"parts of \[3, 1, 4\] numbers, got parts of \[3\]"),
        ([np.zeros(3), np.zeros(1), np.zeros(3)], r"got parts of \[3, 1, 3\]"),
        ([np.zeros(3), np.array(np.nan), np.zeros(4)], "signal lamp: expected bool"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: list[np.ndarray], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        MIXED.command_fields(parts)


# Which fields a step must have.


def test_signals_decide_the_fields() -> None:
    specs = step_specs(DRIVING)
    assert [*specs] == [
        "rgb_surround_front", "points", "radar", "imu", "speed", "controls", "trajectory",
        "instruction", "task", "success",
    ]  # fmt: skip
    assert str(specs["points"]) == "float32[P,4]"
    assert str(specs["controls"]) == "float32[2]"
    assert (specs["points"].is_ragged, specs["trajectory"].is_ragged) == (True, False)
    assert (step_specs(GRID)["action"].low, step_specs(GRID)["action"].high) == (0, 2)
    assert meaning_in({"contract": DRIVING.to_dict()}).specs == specs
    assert all(spec.description.endswith(".") for spec in specs.values())


def test_values_of_other_types_are_converted_if_told() -> None:
    given = grid_step(
        action=[2.0], direction=np.int32(1), carrying=1, cells=[[[3, 4]] * 3] * 3
    )  # fmt: skip
    step = as_step(given, step_specs(GRID))
    validate_step(step, step_specs(GRID))
    assert (step["action"], step["direction"], step["carrying"]) == (2, 1, True)
    assert step["cells"][0, 0].tolist() == [3, 4]
    assert code_of(as_step, grid_step(action=1.5), step_specs(GRID)) == "E108"


BAD = [
    ("grid", "action", np.array(3), "E108"),
    ("grid", "action", -1, "E108"),
    ("grid", "action", 1.0, "E104"),
    ("grid", "action", np.array([1]), "E104"),
    ("grid", "action", np.int32(1), "E104"),
    ("grid", "action", True, "E104"),
    ("grid", "direction", 1 << 70, "E104"),
    ("grid", "carrying", 0, "E104"),
    ("grid", "cells", np.full((3, 3, 2), 11, np.uint8), "E108"),
    ("grid", "cells", np.zeros((3, 3, 3), np.uint8), "E106"),
    ("driving", "controls", np.zeros(3, F32), "E106"),
    ("driving", "controls", np.zeros(2), "E105"),
    ("driving", "controls", np.array([0, 1.5], F32), "E108"),
    ("driving", "controls", np.array([0, np.nan], F32), "E107"),
    ("driving", "speed", np.array(-0.5, F32), "E108"),
    ("driving", "speed", float("nan"), "E107"),
    ("driving", "points", np.zeros((2, 3), F32), "E106"),
    ("driving", "points", np.full((2, 4), np.inf, F32), "E107"),
    ("driving", "trajectory", np.zeros((2, 2), F32), "E106"),
]


@pytest.mark.parametrize(("kind", "field", "value", "code"), BAD)
def test_fields_of_signals_are_checked(
    tmp_path: Path, kind: str, field: str, value: Any, code: str
) -> None:
    contract, step = STEPS[kind]
    validate_step(step(), step_specs(contract))
    validate_sizes(step(), contract)
    assert code_of(validate_step, step(**{field: value}), step_specs(contract)) == code
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": step()["task"], "contract": contract.to_dict()})
        assert code_of(writer.add_step, step(**{field: value})) == code


@pytest.mark.parametrize("kind", STEPS)
def test_every_signal_is_required(kind: str) -> None:
    contract, step = STEPS[kind]
    for signal in contract.signals:
        assert code_of(validate_step, without(step(), signal.field), step_specs(contract)) == "E102"


def test_columns_of_signals_are_checked_by_their_headers() -> None:
    columns = {
        name: (spec.dtype, (4, *[-1 if size == "P" else 4 if size == "H" else 5 if size == "W"
                                 else size for size in spec.shape]))
        for name, spec in step_specs(DRIVING).items()
    }  # fmt: skip
    assert [*validate_columns(columns, (), 4, step_specs(DRIVING))] == []
    changed = {
        "points": (np.dtype("f4"), (4, 7, 4)),
        "imu": (np.dtype("f4"), (4, -1, 6)),
        "controls": (np.dtype("f8"), (4, 2)),
    }
    found = validate_columns(columns | changed, (), 4, step_specs(DRIVING))
    assert {(error.where, error.code) for error in found} == {
        ("points", "E113"), ("imu", "E106"), ("controls", "E105"),
    }  # fmt: skip


# From the writer to the reader, and what the commands make of them.


@pytest.mark.parametrize("kind", STEPS)
def test_an_episode_comes_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    contract, step = STEPS[kind]
    path = record(tmp_path, kind)
    episode = read_episode(path)
    for name, spec in step_specs(contract).items():
        column = episode.fields[name]
        assert isinstance(column, Ragged) == spec.is_ragged, name
        if not spec.is_text:
            assert column.dtype == spec.dtype, name
    for index in range(6):
        for name, value in step(index).items():
            assert np.array_equal(episode.step(index)[name], value), name
    assert errors(path) == []


DTYPES = {"float32": st.floats(-9, 9, width=32), "int64": st.integers(-9, 9),
          "uint8": st.integers(0, 255), "bool": st.booleans()}  # fmt: skip


@st.composite
def signals_and_steps(draw: Any) -> tuple[Contract, list[dict[str, Any]]]:
    """Any signals, and three steps that have them."""
    signals, columns = [], {}
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from([*DTYPES]))
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        varies = draw(st.booleans())
        signals.append(Signal(field=f"s{number}", dtype=dtype, shape=(-1,) * varies + shape))
        rows = st.integers(0, 3).map(lambda n, one=shape: (n, *one))
        shapes = rows if varies else st.just(shape)
        columns[f"s{number}"] = [
            draw(hnp.arrays(dtype, draw(shapes), elements=DTYPES[dtype])) for _ in range(3)
        ]
    move = Signal(field="move", role="action", dtype="int64", choices=MOVES)
    contract = Contract(embodiment="own", cameras=(), signals=(move, *signals))
    words = {"instruction": "go", "task": "go", "success": True, "move": 1}
    steps = [{name: values[at] for name, values in columns.items()} | words for at in range(3)]
    return contract, steps


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(signals_and_steps())
def test_any_signals_come_back_to_the_bit(
    tmp_path: Path, made: tuple[Contract, list[dict[str, Any]]]
) -> None:
    contract, steps = made
    path = write(tmp_path, contract, steps)
    read = read_episode(path)
    for index, step in enumerate(steps):
        for name, value in step.items():
            assert np.array_equal(read.step(index)[name], value), name
    for signal in contract.signals:
        column = read.fields[signal.field]
        assert (column.dtype, isinstance(column, Ragged)) == (signal.dtype, signal.varies)
    assert errors(path) == []


@pytest.mark.parametrize("kind", STEPS)
def test_the_commands_take_such_episodes(tmp_path: Path, kind: str, capsys: Any) -> None:
    contract, step = STEPS[kind]
    steps = [step(index % 5, timestamp=index / contract.control_hz) for index in range(40)]
    write(tmp_path, contract, [*steps, step(5, timestamp=40 / contract.control_hz)])
    assert run(["validate", str(tmp_path)]) == 0
    assert f"Next: teamvla index {tmp_path}\n" in capsys.readouterr().err
    assert run(["validate", str(tmp_path), "-q", "--quick"]) == 0
    assert run(["stats", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    out, err = capsys.readouterr()
    assert f"  observations  {contract.signals[kind == 'grid'].field} " in out
    assert f"Next: teamvla index {tmp_path}\n" in err


def reset_alike(root: Path, contract: Contract, *seeds: int) -> list[str]:
    """Codes found in episodes that are alike, but for the seeds of their resets."""
    step = next(step for one, step in STEPS.values() if one.embodiment == contract.embodiment)
    for seed in seeds:
        path = write(root, contract, [step(index) for index in range(6)])
        meta = dict(read_episode(path).meta)
        rewrite(path, meta={**meta, "reset_seed": seed})
    return [one.code for one in validate_roots([root]).findings if one.code in ("W432", "E433")]


def test_a_discrete_world_may_repeat_itself_after_another_reset(tmp_path: Path) -> None:
    assert reset_alike(tmp_path / "other", GRID, 1, 2) == []
    assert len(reset_alike(tmp_path / "same", GRID, 1, 1)) == 1
    assert len(reset_alike(tmp_path / "continuous", DRIVING, 1, 2)) == 1


@pytest.mark.parametrize(("success", "odd"), [(True, 0), (False, 1)])
def test_a_success_of_one_move_is_not_odd_in_a_discrete_world(
    tmp_path: Path, success: bool, odd: int
) -> None:
    for number in range(40):
        count = 1 if number == 7 else 30
        rng = np.random.default_rng(number)
        rows = [{"rgb": rng.integers(0, 256, (4, 5, 3), np.uint8)} for _ in range(count)]
        steps = [grid_step(at % 9, success=False) | row for at, row in enumerate(rows)]
        steps[-1]["success"] = success or number != 7
        write(tmp_path, GRID, steps)
    found = [one.code for one in validate_roots([tmp_path]).findings]
    assert found.count("W445") == odd


def test_a_signal_of_three_small_numbers_is_no_dark_picture(tmp_path: Path) -> None:
    cells = GRID.signals[-1].model_copy(update={"shape": (3, 3, 3)})
    contract = GRID.model_copy(update={"signals": (*GRID.signals[:-1], cells)})
    steps = [grid_step(index, cells=np.zeros((3, 3, 3), np.uint8)) for index in range(6)]
    assert "W405" not in {one.code for one in validate_file(write(tmp_path, contract, steps))}


def test_mixed_contracts_are_told_by_what_differs_and_what_to_do(
    tmp_path: Path, capsys: Any
) -> None:
    for seed in range(3):
        write(tmp_path, GRID, [grid_step(index + seed) for index in range(6)])
    other = write(tmp_path, DRIVING, [driving_step(index) for index in range(6)])
    (found,) = [one for one in validate_roots([tmp_path]).findings if one.code == "W436"]
    assert found.path == other
    assert "1 of 4 episodes: cameras" in found.message
    assert "control_hz: 5.0 != 10.0" in found.message
    assert found.message.endswith(f"a root of its own: teamvla index {other.parent}")
    assert run(["stats", str(tmp_path), "--no-html", "--no-validate"]) == 0
    assert f"Next: teamvla validate {tmp_path}\n" in capsys.readouterr().err
    beside = write(tmp_path, DRIVING, [driving_step(0, task="empty")])
    (found,) = [one for one in validate_roots([tmp_path]).findings if one.code == "W436"]
    assert found.path in (other, beside)
    assert found.message.endswith("Put them into a folder of their own")


@pytest.mark.parametrize(
    ("kind", "field", "value", "found"),
    [
        ("grid", "action", np.array([0, 1, 2, 3, 0, 3]), ("E108", "action", 3)),
        ("grid", "action", np.zeros(6), ("E105", "action", None)),
        ("grid", "cells", np.full((6, 3, 3, 2), 11, np.uint8), ("E108", "cells", 0)),
        ("driving", "controls", np.full((6, 2), -2, F32), ("E108", "controls", 0)),
        ("driving", "controls", np.zeros((6, 3), F32), ("E106", "controls", None)),
        ("driving", "speed", np.array([0, 1, np.nan, 3, 4, 5], F32), ("E107", "speed", 2)),
        ("driving", "trajectory", np.full((6, 3, 2), np.nan, F32), ("E107", "trajectory", 0)),
        ("driving", "trajectory", None, ("E102", "trajectory", None)),
    ],
)
def test_validate_names_what_is_wrong(
    tmp_path: Path, kind: str, field: str, value: Any, found: tuple[str, str, int | None]
) -> None:
    path = rewrite(record(tmp_path, kind), **{field: value})
    assert errors(path) == [found]


def test_validate_looks_at_the_rows_of_a_signal_that_varies(tmp_path: Path) -> None:
    points = DRIVING.signals[0].model_copy(update={"high": 100.0})
    contract = DRIVING.model_copy(update={"signals": (points, *DRIVING.signals[1:])})
    path = write(tmp_path, contract, [driving_step(index) for index in range(6)])
    rows = read_episode(path).fields["points"].values.copy()
    rows[9, 2] = 101  # step 0 has 0 rows, 1 has 3, 2 has 6
    assert errors(rewrite(path, points=rows)) == [("E108", "points", 3)]
    rows[9, 2] = np.nan
    assert errors(rewrite(path, points=rows)) == [("E107", "points", 3)]


def test_stats_and_its_page_show_signals(tmp_path: Path) -> None:
    record(tmp_path, "driving")
    record(tmp_path, "grid")
    overview = survey([tmp_path])
    driving, grid = (dict(contract_facts(group)) for group in overview.groups)
    assert driving["contract"] == "driving, 10 Hz, no arms"
    assert driving["actions"] == "controls float32[2] -1..1"
    assert driving["targets"] == "trajectory float32[3,2] m"
    assert driving["observations"].startswith("points float32[P,4] m; radar float32[P,5]; imu")
    assert grid["actions"] == "action int64 0..2 left|right|forward"
    assert "left|right|forward" in render(overview)


def test_a_checkpoint_s_signals_are_shown(tmp_path: Path, capsys: Any) -> None:
    meta = {"kind": "policy", "contract": GRID.to_dict()}
    weights = {"model.weight": np.ones(1, F32)}
    assert run(["ckpt-inspect", str(write_checkpoint(tmp_path / "a.ckpt", meta, weights))]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    (shown,) = (line[1] for line in lines if line[:1] == ["signals"])
    assert shown.startswith("action (action left|right|forward), direction (observation east|")


@pytest.mark.parametrize("format", ["lerobot", "aloha", "robomimic"])
def test_formats_of_joined_vectors_ask_for_arms(tmp_path: Path, format: str, capsys: Any) -> None:
    record(tmp_path / "in", "grid")
    command = ["convert", str(tmp_path / "in"), "--to", format, "--out", str(tmp_path / "out")]
    assert run([*command, "-q"]) == 1
    assert "expected arms, whose joints make up the vectors, got grid" in capsys.readouterr().err


@pytest.mark.parametrize("kind", STEPS)
def test_the_index_takes_commands_that_are_no_arms(tmp_path: Path, kind: str) -> None:
    record(tmp_path, kind)
    contract = STEPS[kind][0]
    index = build_index(tmp_path)
    assert index.layout.action_dim == contract.action_dim
    assert index.layout.state_dim == sum(contract.state_sizes) == (kind == "driving")
    assert run(["index", str(tmp_path), "-q"]) == 0
    assert run(["index", str(tmp_path), "--verify", "-q"]) == 0


def test_the_state_has_the_plain_vectors_behind_the_arms(tmp_path: Path) -> None:
    contract = MIXED.model_copy(update={"signals": MIXED.signals[:1]})
    arm = {"q_a": np.zeros(2, F32), "action_a": np.ones(2, F32), "grip_a": 0.0}
    shown = {**arm, "goal": np.ones(2, F32), "rgb": np.zeros((4, 5, 3), np.uint8)}
    words = {"instruction": "go", "task": "push", "success": True}
    write(tmp_path, contract, [{**shown, **words}] * 3)
    index = build_index(tmp_path)
    assert (index.layout.state_dim, index.layout.action_dim) == (5, 3)
    assert index.cache.take("state", np.arange(3)).tolist() == [[0, 0, 0, 1, 1]] * 3


def test_tool_positions_are_not_judged_as_angles(tmp_path: Path) -> None:
    tool = Arm(name="a", joints=("x", "y", "z"))
    places = np.cumsum(np.random.default_rng(0).normal(0, 0.02, (60, 3)), axis=0).astype(F32)
    places[30] += 5  # rad: no arm goes there and back in two steps
    steps = [
        {"q_a": place, "action_a": place[::-1] * 60, "grip_a": 0.0, "success": index == 59}
        | {"instruction": "reach", "task": "reach"}
        for index, place in enumerate(places)
    ]
    codes = {}
    for kind, names in (("delta_tool_position", "xyz"), ("delta_joint_position", "uvw")):
        arm = tool.model_copy(update={"joints": tuple(names)})
        contract = Contract(embodiment="single_arm", action=kind, arms=(arm,), cameras=())
        path = write(tmp_path / kind, contract, steps)
        codes[kind] = {finding.code for finding in validate_file(path)}
    assert codes["delta_tool_position"] == set()
    assert "W401" in codes["delta_joint_position"]

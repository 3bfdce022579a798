"""Every fault of :mod:`faults`, injected into clean recordings, is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from faults import FAULTS, Columns, Fault
from sample_steps import json_bytes, npz_bytes

from teamvla.config import Project
from teamvla.data.index import IndexConfig
from teamvla.data.splits import assign_splits
from teamvla.data.validation import Finding, Selection, validate_file, validate_roots
from teamvla.data.validation.reasons import REASONS

EVERYTHING = Selection(level="info")
EPISODES = 12


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of `lift` as they are recorded by default, but with small pictures."""
    from teamvla.record import RecordConfig, Recorder, record
    from teamvla.sim.tasks import TaskConfig

    project = Project.load("lift", SMALL[:2])
    root = tmp_path_factory.mktemp("clean")
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    record(Recorder(task, config, root, seed=3), episodes=EPISODES)
    return root


@pytest.fixture
def root(clean_root: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(clean_root, tmp_path / "root"))


def read(path: Path) -> tuple[Columns, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        columns = dict(archive)
    return columns, json.loads(columns.pop("meta").tobytes())


def write(path: Path, columns: Columns, meta: dict[str, Any]) -> None:
    path.write_bytes(npz_bytes({**columns, "meta": json_bytes(meta)}))


def damage(root: Path, fault: Fault) -> Path:
    """Inject a fault into one episode (copies are a new one); returns its path."""
    source = sorted((root / "lift").iterdir())[5]
    path = root / "lift" / f"{copy_name(source, fault)}.npz" if "copy" in fault.name else source
    columns, meta = fault.damage(*read(source))
    write(path, columns, {**meta, "episode_id": path.stem})
    return path


def copy_name(source: Path, fault: Fault) -> str:
    """A name that falls into the same split as the source's, or into another one."""
    config = IndexConfig()
    names = [("lift", f"t{number}") for number in range(200)]
    here, *splits = assign_splits(
        [("lift", source.stem), *names], config.val_fraction, config.test_fraction
    )
    apart = fault.code == "E433"
    return next(n for (_, n), s in zip(names, splits, strict=True) if (s != here) == apart)


def test_clean_recordings_have_no_findings_of_any_level(clean_root: Path) -> None:
    report = validate_roots([clean_root], selection=EVERYTHING)
    assert (report.episodes, report.findings) == (EPISODES, ())


def test_at_least_two_dozen_kinds_of_faults_are_known() -> None:
    assert len({(fault.code, fault.name) for fault in FAULTS}) >= 24
    assert len({fault.code for fault in FAULTS}) >= 24


def test_every_judgement_has_its_fault() -> None:
    elsewhere = {"I411", "I446", "W431"}  # they need another robot, or a whole set: below
    assert set(REASONS) - {fault.code for fault in FAULTS} == elsewhere


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_by_file_step_and_field(root: Path, fault: Fault) -> None:
    path = damage(root, fault)
    report = validate_roots([root], workers=1)
    found = [(f.code, f.step, f.field) for f in report.findings if f.path == path]
    steps = [step for code, step, field in found if (code, field) == (fault.code, fault.field)]
    assert steps, found
    assert fault.step is None or steps[0] == fault.step


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_no_other_file_s(root: Path, fault: Fault) -> None:
    path = damage(root, fault)
    # Of a copy and its source, either may be called the copy.
    others = {f.path for f in validate_roots([root], workers=1).findings} - {path}
    assert len(others) <= ("copy" in fault.name)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.alone], ids=lambda fault: fault.name)
def test_what_an_episode_shows_by_itself_is_found_in_it_alone(root: Path, fault: Fault) -> None:
    found = validate_file(damage(root, fault))
    assert (fault.code, fault.field) in {(f.code, f.field) for f in found}


def only(findings: Any) -> Finding:
    (finding,) = findings
    return finding


def test_a_task_without_any_success_is_one_finding(root: Path) -> None:
    for path in sorted((root / "lift").iterdir()):
        columns, meta = read(path)
        columns["success"][:] = False
        write(path, columns, {**meta, "success": False})
    assert only(validate_roots([root]).findings).code == "W431"


def test_a_joint_that_is_never_used_is_worth_knowing(root: Path) -> None:
    path = sorted((root / "lift").iterdir())[0]
    columns, meta = read(path)
    for kind in ("q", "action"):
        columns[f"{kind}_a"][:, 3] = 0.1
    write(path, columns, meta)
    finding = only(validate_roots([root], selection=EVERYTHING).findings)
    assert (finding.code, finding.level, finding.field) == ("I411", "info", "q_a")
    assert validate_roots([root]).findings == ()


def test_a_still_camera_is_legal_while_nothing_moves(root: Path) -> None:
    path = sorted((root / "lift").iterdir())[0]
    columns, meta = read(path)
    rows = np.r_[np.zeros(40, int), 0 : len(columns["q_a"])]  # two seconds of waiting
    waiting = {name: column[rows] for name, column in columns.items() if name != "timestamp"}
    write(path, waiting, {**meta, "num_steps": len(rows)})
    assert validate_roots([root]).findings == ()


def test_a_camera_need_not_see_the_other_arm(root: Path) -> None:
    path = sorted((root / "lift").iterdir())[0]
    columns, meta = read(path)
    for name in ("q_b", "action_b", "rgb_b", "grip_b", "grip_q_b"):
        columns[name][:] = columns[name][0]
    write(path, columns, meta)
    assert {f.code for f in validate_roots([root]).findings} == set()


@pytest.mark.parametrize("late", [1, 2, 4])
def test_a_slow_controller_is_no_lag(root: Path, late: int) -> None:
    for path in sorted((root / "lift").iterdir()):
        columns, meta = read(path)
        rows = np.maximum(np.arange(len(columns["q_a"])) - late, 0)
        slow = {name: columns[name][rows] for name in ("q_a", "q_b")}
        write(path, {**columns, **slow}, meta)
    assert validate_roots([root]).findings == ()


def test_half_of_the_episodes_with_another_start_is_a_habit(root: Path) -> None:
    for path in sorted((root / "lift").iterdir())[::2]:
        columns, meta = read(path)
        for kind in ("q", "action"):
            columns[f"{kind}_b"][:, 3] += 0.4
        write(path, columns, meta)
    assert validate_roots([root]).findings == ()


def test_deltas_are_sound_under_a_contract_that_says_so(root: Path) -> None:
    for path in sorted((root / "lift").iterdir()):
        columns, meta = read(path)
        for arm in "ab":
            columns[f"action_{arm}"] = columns[f"action_{arm}"] - columns[f"q_{arm}"]
        meta["contract"]["action"] = "delta_joint_position"
        del meta["contract_digest"]
        write(path, columns, meta)
    assert validate_roots([root]).findings == ()

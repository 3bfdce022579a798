"""benchmarks/results.py: rows are whole, resumed where they were, and shown as tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from teamvla.config import Project
from teamvla.models.base import PolicyConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = (
    "dataset.batch_size=32",
    "model.language=null",
    "model.vision.width=8",
    "model.fusion.hidden_dim=16",
    "model.fusion.num_blocks=0",
)


@pytest.fixture(scope="module")
def results() -> ModuleType:
    """The script as a module, its folder on the path only while it is imported."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import results
    finally:
        sys.path.remove(str(BENCHMARKS))
    return results


@pytest.fixture(scope="module")
def data(results, lift_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "lift").symlink_to(lift_root)
    return folder


@pytest.fixture
def row(results, monkeypatch):
    """A row that trains for seconds and is asked about one state, on small pictures."""
    load = Project.load.__func__
    size = ["task.camera.height=32", "task.camera.width=32", "task.max_steps=20"]
    small = classmethod(lambda cls, name, items=(): load(cls, name, [*items, *size]))
    monkeypatch.setattr(Project, "load", small)
    return results.Row("small", overrides=(*results.LAST, *SMALL), minutes=1e-6)


def bench(results, out: Path, data: Path, **other):
    plain = {"seed": 0, "demonstrations": 4, "episodes": 1, "workers": 1, "stop": lambda: False}
    return results.Bench(out, data, **plain | other)


def test_a_row_is_trained_evaluated_and_not_repeated(results, row, tmp_path, data, monkeypatch):
    result = bench(results, tmp_path, data).run("heads/mlp", row)
    written = json.loads((tmp_path / "heads/mlp/row.json").read_text())
    assert written == result
    assert result["epochs"] == 1
    assert result["training"]["steps"] > 0
    assert result["training"]["minutes_cpu"] > 0
    assert result["evaluations"]["lift"]["episodes"] == 1
    for part in ("train", "evaluate", "record", "open_run"):
        monkeypatch.setattr(results, part, None)
    assert bench(results, tmp_path, data).run("heads/mlp", row) == written
    assert "| mlp | 0/1 [0, 79] |" in results.tables(tmp_path, ["heads/mlp"], ["lift"])


def test_a_stopped_row_goes_on_with_the_same_plan(results, row, tmp_path, data, monkeypatch):
    calls = iter([False] * 25)
    stopping = bench(results, tmp_path, data, stop=lambda: next(calls, True))
    with pytest.raises(results.Stopped):
        stopping.run("lift", row)
    folder = tmp_path / "lift"
    plan = (folder / "plan.json").read_text()
    before = json.loads((folder / "sessions.json").read_text())["cpu_s"]
    assert not (folder / "row.json").exists()
    monkeypatch.setattr(results, "start_run", None)
    monkeypatch.setattr(results.Bench, "_pace", None)
    result = bench(results, tmp_path, data).run("lift", row)
    assert (folder / "plan.json").read_text() == plan
    assert 60 * result["training"]["minutes_cpu"] > before


def test_a_row_whose_settings_changed_is_not_mixed_up(results, row, tmp_path, data):
    (tmp_path / "lift").mkdir()
    plan = {"tasks": ["lift"], "config": "train_bc", "overrides": ["model.chunk_size=4"]}
    rest = {"minutes": 0.001, "seed": 0, "demonstrations": 4, "epochs": 1}
    (tmp_path / "lift/plan.json").write_text(json.dumps(plan | rest))
    with pytest.raises(SystemExit, match="overrides"):
        bench(results, tmp_path, data).run("lift", row)


def test_every_row_is_a_configuration(results):
    for name, row in results.ROWS.items():
        project = bench(results, Path("out"), Path("data"))._project(row)
        model = project.section("model", PolicyConfig)
        kind = name.partition("/")[2]
        if name.startswith("policies/"):
            assert model.type == kind
        if name.startswith("heads/"):
            assert kind.startswith(model.head.type)


def test_words_are_swapped_for_the_mistold(results):
    class Listener:
        def reset(self) -> None: ...

        def act(self, observation):
            return observation["instruction"]

    mistold = sys.modules["results_conditions"].Mistold
    actor = mistold(lambda env: Listener())(None)
    assert actor.act({"instruction": "put the red block on it"}) == "put the blue block on it"


def test_tables_hold_what_is_finished_alone(results, tmp_path):
    assert results.tables(tmp_path, ["lift"], ["lift"]) == "no row is finished"
    (tmp_path / "controls").mkdir()
    score = {"successes": 3, "episodes": 4, "interval_95": [0.3, 0.954]}
    (tmp_path / "controls/lift.json").write_text(json.dumps({"expert": score}))
    shown = results.tables(tmp_path, ["lift"], ["lift"]).splitlines()
    assert shown[2].startswith("| lift | - | - | - | 3/4 [30, 95] | - | - |")

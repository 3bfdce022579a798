"""Configuration: layers, overrides, and problems that name their place."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from teamvla.cli.app import run
from teamvla.config import Project, Settings, find_config, schema, shipped_configs
from teamvla.config.project import SECTIONS
from teamvla.config.source import Source, merge, parse_override, parse_source
from teamvla.errors import ConfigError, InputError
from teamvla.registry import Registry


class Camera(Settings):
    height: int = Field(64, gt=0)
    renderer: Literal["ray", "gl"] = "ray"


class Lift(Settings):
    name: str = "lift"
    max_steps: int = 150
    camera: Camera = Camera()

    @classmethod
    def choose(cls, data: dict[str, Any]) -> type[Settings]:
        return TASKS.get(data.get("name", "lift"))


class Push(Lift):
    distance_m: float = 0.2


class Optimizer(Settings):
    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)

    @model_validator(mode="after")
    def _rising(self) -> Optimizer:
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must not fall")
        return self


TASKS: Registry[type[Settings]] = Registry("task", {})
TASKS.register("lift")(Lift)
TASKS.register("push")(Push)


@pytest.fixture(autouse=True)
def sections(request, monkeypatch, tmp_path):
    """Two small sections in place of the real ones, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    if "real" in request.fixturenames:
        return
    module = types.SimpleNamespace(Task=Lift, Optimizer=Optimizer)
    monkeypatch.setitem(sys.modules, "config_probe", module)
    monkeypatch.setattr(
        "teamvla.config.project.SECTIONS",
        {"task": "config_probe:Task", "optimizer": "config_probe:Optimizer"},
    )


@pytest.fixture
def real():
    """Asked for by the tests of the package's own sections."""


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def problems(*arguments: Any) -> list[str]:
    try:
        return Project.load(*arguments).check()
    except ConfigError as error:
        return str(error).splitlines()


def test_defaults_live_in_the_classes():
    project = Project.load(None)
    assert project.session.seed == 0
    assert project.section("optimizer", Optimizer) == Optimizer()


def test_a_layer_is_merged_key_by_key_and_lists_are_replaced():
    write("base.yaml", "seed: 1\ntask: {max_steps: 9, camera: {height: 32}}\noptimizer: {lr: 1.0}")
    write("top.yaml", "extends: base.yaml\ntask: {camera: {renderer: gl}}\noptimizer: {lr: 2.0}")
    project = Project.load("top.yaml")
    task = project.section("task", Lift)
    assert (project.session.seed, task.max_steps) == (1, 9)
    assert (task.camera.height, task.camera.renderer) == (32, "gl")
    assert project.section("optimizer", Optimizer).lr == 2.0


def test_layers_are_found_beside_the_file_and_may_be_three_deep():
    Path("sub").mkdir()
    write("sub/a.yaml", "seed: 1")
    write("sub/b.yaml", "extends: a.yaml\ndevice: cuda")
    write("c.yaml", "extends: sub/b.yaml\ndata_root: x")
    session = Project.load("c.yaml").session
    assert (session.seed, session.device, session.data_root) == (1, "cuda", "x")


def test_layers_that_never_end_are_refused():
    write("a.yaml", "extends: b.yaml")
    write("b.yaml", "extends: a.yaml")
    [line] = problems("a.yaml")
    assert "expected layers that end" in line


def test_set_wins_over_the_file_and_reads_yaml():
    write("a.yaml", "task: {max_steps: 9}\noptimizer: {lr: 1.0}")
    project = Project.load("a.yaml", ["task.max_steps=7", "optimizer.betas=[0.5, 0.6]", "seed=3"])
    assert project.section("task", Lift).max_steps == 7
    assert project.section("optimizer", Optimizer).betas == (0.5, 0.6)
    assert project.section("optimizer", Optimizer).lr == 1.0
    assert project.session.seed == 3


def test_replace_leaves_keys_that_are_none_alone():
    project = Project.load(None, ["task.max_steps=9"])
    task = project.replace("task", max_steps=None, name="push").section("task", Push)
    assert (task.max_steps, task.name) == (9, "push")


def test_a_selector_decides_which_keys_exist():
    assert Project.load(None, ["task.name=push", "task.distance_m=1"]).check() == []
    [line] = problems(None, ["task.distance_m=1"])
    assert line.startswith("--set task.distance_m=1: error: unknown key 'task.distance_m' (known:")


def test_resolved_holds_every_default_and_is_a_configuration_again():
    write("a.yaml", "task: {max_steps: 9}")
    resolved = Project.load("a.yaml").resolved()
    assert resolved["task"]["camera"] == {"height": 64, "renderer": "ray"}
    assert resolved["log_level"] == "info"
    assert Project.from_data(resolved).resolved() == resolved
    assert Project.from_data(json.loads(json.dumps(resolved))).resolved() == resolved


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "sede: 1",
            "a.yaml:1:1: error: unknown key 'sede'; did you mean 'seed'? (known: seed, device, "
            "log_level, data_root, task, optimizer)",
        ),
        (
            "optimizer:\n  learning_rate: 1",
            "a.yaml:2:3: error: unknown key 'optimizer.learning_rate'; did you mean 'lr'? "
            "(known: lr, betas)",
        ),
        (
            "task:\n  camera:\n    hight: 3",
            "a.yaml:3:5: error: unknown key 'task.camera.hight'; did you mean 'height'? "
            "(known: height, renderer)",
        ),
        (
            "task: {camera: {renderer: ry}}",
            "a.yaml:1:27: error: task.camera.renderer: input should be 'ray' or 'gl', got 'ry'; "
            "did you mean 'ray'?",
        ),
        ("seed: -1", "a.yaml:1:7: error: seed: input should be greater than or equal to 0, got -1"),
        (
            "optimizer: {lr: fast}",
            "a.yaml:1:17: error: optimizer.lr: input should be a valid number, "
            "unable to parse string as a number, got 'fast'",
        ),
        (
            "optimizer: {lr: .nan}",
            "a.yaml:1:17: error: optimizer.lr: input should be a finite number, got nan",
        ),
        ("optimizer: {betas: [2, 1]}", "a.yaml:1:12: error: optimizer: betas must not fall"),
        ("optimizer: 3", "a.yaml:1:12: error: optimizer: expected keys and values, got 3"),
        (
            "task: {name: lfit}",
            "a.yaml:1:7: error: task 'lfit': expected a known name. "
            "Did you mean 'lift'? Known: lift, push",
        ),
        ("seed: 1\nseed: 2", "a.yaml:2:1: error: duplicate key 'seed' (first at line 1)"),
        (
            "task: &t {}\noptimizer: *t",
            "a.yaml:2:12: error: aliases are not allowed; write the value out",
        ),
        ("1: 2", "a.yaml:1:1: error: key '1' must be text; quote it"),
        ("- 1", "a.yaml:1:1: error: expected keys and values, got a list"),
        ("? [a]\n: 1", "a.yaml:1:3: error: key a list must be text; quote it"),
        ("a: [1", "a.yaml:2:1: error: not YAML: did not find expected ',' or ']' "),
        ("seed: 1\n---\nseed: 2", "a.yaml:2:1: error: not YAML: but found another document"),
        ("seed: \a", "a.yaml: error: not YAML: unacceptable character #x0007"),
        ("seed: 2020-13-45", "a.yaml: error: not YAML: month must be in 1..12"),
        (
            "seed: " + "{a: " * 5000 + "}" * 5000,
            "a.yaml: error: not YAML: maximum recursion depth exceeded",
        ),
        (
            "seed: !!python/object/apply:os.system [x]",
            "a.yaml:1:7: error: not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("extends: 3", "a.yaml:1:10: error: extends: expected a file name"),
    ],
)
def test_a_problem_names_its_place(text, expected):
    [line] = problems(write("a.yaml", text))
    assert line.startswith(expected)


def test_every_problem_is_named_at_once():
    write("a.yaml", "seed: x\ntask: {max_steps: y, camera: {height: 0}}\noptimizer: {lr: 0}")
    assert [line.split(": error:")[0] for line in problems("a.yaml")] == [
        "a.yaml:1:7",
        "a.yaml:2:19",
        "a.yaml:2:39",
        "a.yaml:3:17",
    ]


def test_a_problem_is_blamed_on_the_layer_that_wrote_it():
    write("base.yaml", "seed: x\ntask: {max_steps: y}")
    write("top.yaml", "extends: base.yaml\ntask: {max_steps: z}")
    places = [line.split(": error:")[0] for line in problems("top.yaml", ["optimizer.lr=0"])]
    assert places == ["base.yaml:1:7", "top.yaml:2:19", "--set optimizer.lr=0"]


@pytest.mark.parametrize(
    "item", ["seed", "=1", "a..b=1", ".seed=1", "optimizer.lr=[1", "seed=2020-13-45"]
)
def test_an_override_that_cannot_be_read_is_refused(item):
    with pytest.raises(ConfigError, match=r"^--set "):
        parse_override(item)


def test_a_missing_configuration_is_answered_with_the_shipped_ones():
    with pytest.raises(InputError) as refused:
        find_config("train_bcc")
    assert "Did you mean 'train_bc'? Known: " in str(refused.value)
    assert "lift, " in str(refused.value)


def test_text_that_is_not_utf8_is_refused():
    Path("a.yaml").write_bytes(b"seed: \xff")
    assert problems("a.yaml") == ["a.yaml: expected UTF-8 text, got byte 0xff"]


def test_an_empty_file_is_an_empty_layer():
    assert Project.load(write("a.yaml", "")).check() == []


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
)
layers = st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=4)


@given(layers, layers)
def test_the_upper_layer_always_shows(lower, upper):
    def shows(part: Any, whole: Any) -> bool:
        if isinstance(part, dict) and isinstance(whole, dict):
            return all(key in whole and shows(part[key], whole[key]) for key in part)
        return part == whole

    assert shows(upper, merge(Source(lower), Source(upper)).data)


@given(layers)
def test_parsing_gives_back_what_was_dumped_with_a_mark_for_every_key(data):
    source = parse_source(yaml.safe_dump(data), "x.yaml")
    assert source.data == data

    def addresses(value: Any, at: tuple) -> set:
        if not isinstance(value, dict):
            return set()
        here = {(*at, key) for key in value}
        return here.union(*(addresses(item, (*at, key)) for key, item in value.items()))

    assert set(source.marks) == addresses(data, ())


# The commands.


def test_show_prints_yaml_that_check_accepts(capsys):
    write("a.yaml", "task: {max_steps: 9}")
    assert run(["config", "show", "a.yaml", "--set", "optimizer.lr=0.5"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["optimizer"] == {"lr": 0.5, "betas": [0.9, 0.95]}
    assert run(["config", "check", write("b.yaml", shown)]) == 0


def test_show_with_json_is_one_object(capsys):
    write("a.yaml", "task: {max_steps: 9}")
    assert run(["config", "show", "a.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["task"]["max_steps"] == 9


def test_check_says_ok_and_names_the_next_command(capsys):
    assert run(["config", "check", write("a.yaml", "seed: 3")]) == 0
    assert capsys.readouterr() == ("ok  a.yaml\n", "Next: teamvla config show a.yaml\n")


def test_check_prints_every_problem_and_exits_with_2(capsys):
    write("a.yaml", "seed: -1\noptimizer: {lr: 0}")
    assert run(["config", "check", "a.yaml", "--set", "task.max_steps=x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "a.yaml:1:7: error: seed: input should be greater than or equal to 0, got -1",
        "--set task.max_steps=x: error: task.max_steps: input should be a valid integer, "
        "unable to parse string as an integer, got 'x'",
        "a.yaml:2:17: error: optimizer.lr: input should be greater than 0, got 0",
    ]


def test_a_missing_file_is_one_line(capsys):
    assert run(["config", "check", "no.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no.yaml: expected a YAML file or a shipped configuration, got ")
    assert err.count("\n") == 1


def test_schema_describes_sections_and_refuses_others(capsys):
    assert run(["config", "schema"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["additionalProperties"] is False
    assert {"extends", "seed", "task", "optimizer"} <= set(document["properties"])
    assert document["properties"]["optimizer"]["properties"]["lr"]["exclusiveMinimum"] == 0
    for reference in (line for line in json.dumps(document).split('"') if line.startswith("#/")):
        assert reference.removeprefix("#/$defs/") in document["$defs"]


# The real sections and the shipped files.


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_is_valid(name):
    project = Project.load(name)
    assert project.check() == []
    assert Project.from_data(project.resolved()).resolved() == project.resolved()


@pytest.mark.usefixtures("real")
def test_every_real_section_builds_from_its_defaults():
    from teamvla.registry import import_object

    for name, target in SECTIONS.items():
        model = import_object(target)
        assert issubclass(model, Settings), name
        model.choose({}).model_validate({})
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["frozen"]


@pytest.mark.usefixtures("real")
def test_the_real_schema_covers_every_section():
    assert set(SECTIONS) <= set(schema()["properties"])

"""Settings whose class a key ``type`` decides: heads, encoders and fusions inside ``model``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field, ValidationError

from teamvla.cli.app import run
from teamvla.config import Project, Settings, schema, shipped_configs
from teamvla.config.bytype import ByType
from teamvla.config.source import Source, merge
from teamvla.errors import ConfigError
from teamvla.models.base import PolicyConfig
from teamvla.models.composed import ComposedConfig
from teamvla.models.encoders.vision import ConvConfig
from teamvla.models.heads.base import HeadConfig
from teamvla.models.heads.mlp import MLPActionHead, MLPHeadConfig
from teamvla.models.registries import ACTION_HEAD_REGISTRY, ENCODER_REGISTRY
from teamvla.models.registry import ModelRegistry
from teamvla.registry import Registry
from teamvla.sim.tasks import TaskConfig


class MyHeadConfig(MLPHeadConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]
    spice: int = Field(default=1, ge=0, description="How much.")


class MyHead(MLPActionHead):
    Config = MyHeadConfig


@pytest.fixture(autouse=True)
def somewhere(registries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty current folder, and registries that forget what a test registers."""
    monkeypatch.chdir(tmp_path)


def written(text: str) -> str:
    Path("a.yaml").write_text(text, encoding="utf-8")
    return "a.yaml"


def model(text: str | None, *overrides: str) -> Any:
    name = written(text) if text is not None else None
    return Project.load(name, overrides).section("model", PolicyConfig)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model:\n  head:\n    n_layer: 2",
            "a.yaml:3:5: error: unknown key 'model.head.n_layer'; did you mean 'n_layers'? "
            "(known: type, loss_type, huber_delta, gripper_weight, hidden_dim, n_layers, dropout, "
            "tanh_output)",
        ),
        (
            "model:\n  head:\n    type: gaussian\n    tanh_output: true",
            "a.yaml:4:5: error: unknown key 'model.head.tanh_output' (known: type, hidden_dim,",
        ),
        (
            "model:\n  vision: {widht: 8}",
            "a.yaml:2:12: error: unknown key 'model.vision.widht'; did you mean 'width'? (known: ",
        ),
        (
            "model:\n  type: msg_passing\n  vision: {width: x}",
            "a.yaml:3:19: error: model.vision.width: input should be a valid integer, unable to "
            "parse string as an integer, got 'x'",
        ),
        (
            "model: {head: {loss_type: hubber}}",
            "a.yaml:1:27: error: model.head.loss_type: input should be 'huber', 'l1' or 'mse', "
            "got 'hubber'; did you mean 'huber'?",
        ),
        (
            "model: {head: {type: gausian}}",
            "a.yaml:1:22: error: model.head.type: no such choice, got 'gausian'; "
            "did you mean 'gaussian'? (known: act, ",
        ),
        (
            "model: {fusion: {type: 3}}",
            "a.yaml:1:24: error: model.fusion.type: no such choice, got '3' (known: concat, ",
        ),
        ("model: {head: mlp}", "a.yaml:1:15: error: model.head: expected keys and values, got 'ml"),
        ("model: {head: null}", "a.yaml:1:15: error: model.head: expected keys and values, got No"),
        (
            "model: {language: {embed_dim: 10}}",
            "a.yaml:1:19: error: model.language: num_heads 4 must divide embed_dim 10",
        ),
        (
            "model: {type: singel_brain}",
            "a.yaml:1:8: error: model 'singel_brain': expected a known name. "
            "Did you mean 'single_brain'? Known: ",
        ),
    ],
)
def test_a_problem_inside_what_type_decides_names_its_place(text, said):
    with pytest.raises(ConfigError) as refused:
        model(text)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_every_problem_is_named_at_once_and_blamed_on_its_own_layer():
    Path("base.yaml").write_text("model:\n  head: {n_layers: -1}\n  vision: {width: 0}")
    text = "extends: base.yaml\nmodel:\n  vision: {width: x}"
    with pytest.raises(ConfigError) as refused:
        model(text, "model.language.embed_dim=no")
    places = sorted(line.split(": error:")[0] for line in str(refused.value).splitlines())
    assert places == ["--set model.language.embed_dim=no", "a.yaml:3:19", "base.yaml:2:20"]


def test_null_is_a_choice_where_the_policy_can_do_without():
    told = model("model: {vision: null, language: null}")
    assert (told.vision, told.language) == (None, None)
    resolved = Project.load("a.yaml").resolved()
    assert (resolved["model"]["vision"], resolved["model"]["language"]) == (None, None)
    assert Project.from_data(resolved).section("model", PolicyConfig) == told


# --- a head of one's own ------------------------------------------------------------------


def test_a_registered_head_is_chosen_checked_and_built_like_any_other():
    ACTION_HEAD_REGISTRY["mine"] = MyHead
    told = model("model: {head: {type: mine, spice: 3, n_layers: 1}}")
    assert told.head == MyHeadConfig(spice=3, n_layers=1)
    with pytest.raises(ConfigError, match=r"a\.yaml:1:28: error: unknown key 'model\.head\.spic"):
        model("model: {head: {type: mine, spic: 3}}")
    policy = ModelRegistry.create(
        "single_brain", action_dim=2, state_dim=3, image_size=16, head={"type": "mine", "spice": 2}
    )
    assert isinstance(policy.heads[0], MyHead)
    assert policy.heads[0].config.spice == 2


def test_a_registered_head_survives_being_written_down_and_read_again():
    ACTION_HEAD_REGISTRY["mine"] = MyHead
    project = Project.load(written("model: {head: {type: mine, spice: 3}}"))
    resolved = json.loads(json.dumps(project.resolved()))
    assert resolved["model"]["head"]["spice"] == 3
    again = Project.from_data(resolved)
    assert again.section("model", PolicyConfig).head == MyHeadConfig(spice=3)
    assert again.resolved() == resolved


def test_a_registered_head_is_in_the_schema():
    ACTION_HEAD_REGISTRY["mine"] = MyHead
    data = {"model": {"type": "single_brain", "head": {"type": "mine", "spice": 3}}}
    validate(data)
    data["model"]["head"]["spice"] = -3
    with pytest.raises(jsonschema.ValidationError):
        validate(data)


class Holder(Settings):
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "mlp")] = MLPHeadConfig()
    spare: Annotated[HeadConfig | None, ByType(ACTION_HEAD_REGISTRY, "mlp", optional=True)] = None


def test_settings_of_another_registry_are_refused():
    assert Holder(head=MLPHeadConfig(n_layers=2)).head.n_layers == 2
    with pytest.raises(ValidationError, match="expected settings of a known action head"):
        Holder(head=ConvConfig())
    with pytest.raises(ValidationError, match="expected settings of a known action head"):
        Holder(spare=MyHeadConfig())  # it is not registered here


def test_null_goes_through_only_where_it_is_said_to():
    assert Holder(spare=None).spare is None
    with pytest.raises(ValidationError, match="expected keys and values"):
        Holder(head=None)


def test_without_a_type_it_is_the_default_one_which_is_written_down():
    held = Holder.model_validate({"head": {"n_layers": 2}})
    assert held.head == MLPHeadConfig(n_layers=2)
    assert held.model_dump(mode="json")["head"]["type"] == "mlp"
    assert held.model_dump(mode="json")["spare"] is None


# --- layers -------------------------------------------------------------------------------


def test_another_type_on_the_command_line_replaces_what_the_file_spells_out():
    told = model("extends: train_bc", "model.head.type=gaussian")
    assert told.head == ACTION_HEAD_REGISTRY.get("gaussian").Config()
    assert told.vision == model("extends: train_bc").vision


def test_another_policy_on_the_command_line_starts_from_its_own_defaults():
    told = model("extends: train_bc", "model.type=msg_passing")
    assert told == type(told)()
    assert told.type == "msg_passing"


def test_the_same_type_again_is_laid_over_key_by_key():
    told = model("extends: train_bc\nmodel: {head: {huber_delta: 0.5}}", "model.head.type=mlp")
    assert told.head.huber_delta == 0.5


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_set_beside_another_type_holds_in_any_order(backwards):
    items = ["model.head.type=gaussian", "model.head.n_layers=2", "model.type=msg_passing",
             "model.chunk_size=4"]  # fmt: skip
    told = model("extends: train_bc", *(reversed(items) if backwards else items))
    assert (told.type, told.chunk_size) == ("msg_passing", 4)
    assert (told.head.type, told.head.n_layers) == ("gaussian", 2)


def test_keys_below_that_name_no_type_are_kept_rather_than_lost():
    told = model("model: {head: {n_layers: 2}}", "model.head.type=gaussian")
    assert (told.head.type, told.head.n_layers) == ("gaussian", 2)
    with pytest.raises(ConfigError, match=r"a\.yaml:1:16: error: unknown key 'model\.head\.tanh"):
        model("model: {head: {tanh_output: true}}", "model.head.type=gaussian")


def test_problems_of_a_part_that_was_replaced_are_gone_with_it():
    told = model("model: {head: {type: mlp, n_layers: x}}", "model.head.type=gaussian")
    assert told.head.type == "gaussian"


def test_null_below_is_filled_and_null_above_switches_off():
    filled = model("model: {vision: null}", "model.vision.width=8")
    assert filled.vision == ConvConfig(width=8)
    assert model("extends: train_bc", "model.vision=null").vision is None


def test_outside_of_model_a_type_replaces_nothing():
    lower = Source({"optimizer": {"type": "adamw", "lr": 1.0}, "model": {"type": "a", "x": 1}})
    upper = Source({"optimizer": {"type": "sgd"}, "model": {"type": "b"}})
    assert merge(lower, upper).data == {
        "optimizer": {"type": "sgd", "lr": 1.0},
        "model": {"type": "b"},
    }


# --- the schema ---------------------------------------------------------------------------


def validate(data: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema()).validate(data)


@pytest.mark.parametrize("name", shipped_configs())
def test_the_schema_accepts_every_shipped_configuration(name):
    validate(Project.load(name).resolved())


@pytest.mark.parametrize(
    ("key", "registry"), [("head", ACTION_HEAD_REGISTRY), ("vision", ENCODER_REGISTRY)]
)
def test_the_schema_has_every_kind_of_every_part(key, registry: Registry[Any]):
    for name in registry:
        settings = registry.get(name).Config().model_dump(mode="json")
        validate({"model": {"type": "single_brain", key: settings}})
        with pytest.raises(jsonschema.ValidationError):
            validate({"model": {"type": "single_brain", key: {**settings, "nonsense": 1}}})


def test_the_schema_knows_where_null_may_stand():
    validate({"model": {"type": "single_brain", "vision": None}})
    with pytest.raises(jsonschema.ValidationError):
        validate({"model": {"type": "single_brain", "head": None}})


def test_every_field_of_every_part_is_described():
    parts = [e.Config for reg in (ACTION_HEAD_REGISTRY, ENCODER_REGISTRY)
             for e in map(reg.get, reg)]  # fmt: skip
    for settings in parts:
        for name, field in settings.model_fields.items():
            assert field.description, (settings, name)


# --- the commands -------------------------------------------------------------------------


def test_show_prints_the_parts_that_were_chosen(capsys):
    words = ["config", "show", "train_bc", "--set", "model.head.type=gaussian", "--json"]
    assert run(words) == 0
    shown = json.loads(capsys.readouterr().out)["config"]["model"]
    assert shown["head"] == ACTION_HEAD_REGISTRY.get("gaussian").Config().model_dump(mode="json")


def test_check_names_the_place_of_a_wrong_part_and_exits_with_2(capsys):
    assert run(["config", "check", written("model: {head: {type: mpl}}")]) == 2
    assert capsys.readouterr().err.startswith(
        "a.yaml:1:22: error: model.head.type: no such choice, got 'mpl'; did you mean 'mlp'?"
    )


def test_composed_policies_are_what_the_annotations_say():
    noted = {
        name: note.registry.kind
        for name, field in ComposedConfig.model_fields.items()
        for note in field.metadata
        if isinstance(note, ByType)
    }
    assert noted == {
        "head": "action head",
        "temporal": "temporal part",
        "vision": "vision encoder",
        "language": "text encoder",
        "fusion": "fusion",
    }


def test_a_task_of_another_name_replaces_the_one_below(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: train_bc.yaml\ntask: {name: drawer, camera: {wrist: true}}\n")
    task = Project.load(str(path)).section("task", TaskConfig)
    assert (task.name, task.camera.wrist, task.max_steps) == ("drawer", True, 300)


def test_a_task_of_the_same_name_is_laid_over_the_one_below(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: train_bc.yaml\ntask: {name: lift, max_steps: 99}\n")
    task = Project.load(str(path)).section("task", TaskConfig)
    assert (task.max_steps, task.hold_steps) == (99, 5)

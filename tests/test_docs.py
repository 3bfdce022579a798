"""The Markdown files: what they list is what there is, and what they show runs."""

from __future__ import annotations

import ast
import re
import shlex
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
import yaml
from pydantic_core import PydanticUndefined

from teamvla.checkpoint import read_header
from teamvla.cli.app import COMMANDS, app, load, run
from teamvla.cli.console import Console
from teamvla.config import Project, Settings, schema
from teamvla.config.bytype import ByType
from teamvla.config.project import SECTIONS
from teamvla.config.session import SessionConfig
from teamvla.data import OPTIONAL_FIELDS, STEP_SPECS, find_episodes, read_meta
from teamvla.data.codes import CODES
from teamvla.data.transforms import TRANSFORMS
from teamvla.models.base import PolicyConfig
from teamvla.models.composed import ComposedConfig, SensingConfig
from teamvla.models.openvla.heads import OPENVLA_HEADS
from teamvla.models.registries import (
    ACTION_HEAD_REGISTRY,
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    MODELS,
    PROJECTOR_REGISTRY,
    SENSOR_ENCODER_REGISTRY,
    TEMPORAL_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.registry import import_object
from teamvla.sim.tasks import TASKS, TwoArmTaskConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "README.md"
FORMATS, CODES_PAGE, PYTHON = (ROOT / "docs" / f"{n}.md" for n in ("formats", "codes", "python"))
ROBOT, RECORDING, SIMULATION, MODELS_PAGE, WORLD = (
    ROOT / "docs" / f"{n}.md"
    for n in ("your_robot", "recording", "simulation", "models", "world_model")
)
PRETRAINED, SENSORS, MEMORY, MASKED = (
    ROOT / "docs" / f"{n}.md" for n in ("pretrained", "sensors", "memory", "mdlm")
)
DOCS = [ROOT / "README.md", CONFIGS, *sorted((ROOT / "docs").glob("*.md"))]
needs_extra = pytest.mark.skipif(
    not all(find_spec(name) for name in ("transformers", "peft")),
    reason="the extra `pretrained` is not installed",
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line that it starts at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found, opened, language = [], None, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened, language = number, line[3:].strip()
        else:
            text = "\n".join(lines[opened : number - 1]) + "\n"
            found.append(Block(language, text, opened + 1))
            opened = None
    assert opened is None, f"{page}: a block that never ends"
    return found


def prose(page: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def tables(page: Path) -> dict[str, list[list[str]]]:
    """The rows of the first table below each heading, without its head; cells as they stand."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in prose(page).splitlines():
        if line.startswith("#"):
            heading = line.lstrip("#").strip()
        elif line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            found.setdefault(heading, []).append(cells)
    return {heading: rows[2:] for heading, rows in found.items()}


def name_in(cell: str) -> str:
    return cell.strip("`")


# The table of keys.


SHARED = "two arms"
#: tables of keys that several variants of a section share -> the class that has them
BASES: dict[str, type[Settings]] = {
    f"task ({SHARED})": TwoArmTaskConfig,
    "model (every policy)": PolicyConfig,
    "model (encoders)": SensingConfig,
    "model (one trunk)": ComposedConfig,
}
#: keys of ``model`` whose ``type`` decides the others -> what they choose from
CHOICES = {
    "model.head": ACTION_HEAD_REGISTRY,
    "model.head of openvla": OPENVLA_HEADS,
    "model.vision": ENCODER_REGISTRY,
    "model.language": TEXT_ENCODER_REGISTRY,
    "model.fusion": FUSION_REGISTRY,
    "model.temporal": TEMPORAL_REGISTRY,
    "model.projector": PROJECTOR_REGISTRY,
    "model.sensors.*": SENSOR_ENCODER_REGISTRY,
}


def headings_of_keys() -> list[str]:
    text = CONFIGS.read_text(encoding="utf-8").partition("## Every key")[2]
    return re.findall(r"^### (.*)$", text, flags=re.M)


def class_of(heading: str) -> type[Settings]:
    """The settings class behind ``top level``, ``loss``, ``model (single_brain)``, ..."""
    section, _, variant = heading.partition(" (")
    if section == "top level":
        return SessionConfig
    variant = variant.rstrip(")")
    if section == "dataset.transforms":
        return TRANSFORMS[variant]
    if heading in BASES:
        return BASES[heading]
    if section in CHOICES:
        return CHOICES[section].get(variant).Config
    base: Any = import_object(SECTIONS[section])
    return base.choose({"name": variant, "type": variant} if variant else {})


def listed_keys(heading: str) -> Iterator[tuple[str, Any, Any]]:
    """Of a variant only what it adds to, or changes in, the table that it shares with others."""
    kind = class_of(heading)
    shared = [base for base in BASES.values() if issubclass(kind, base) and kind is not base]
    same = {key: default for base in shared for key, _, default in keys_of(base)}
    return ((k, f, d) for k, f, d in keys_of(kind) if k not in same or same[k] != d)


def keys_of(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, field, default) of everything a section takes."""
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        chosen = next((note for note in field.metadata if isinstance(note, ByType)), None)
        if chosen is not None:
            yield from chosen_keys(f"{prefix}{name}", field, default)
        elif isinstance(default, Settings):
            yield from keys_of(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, field, default


def chosen_keys(name: str, field: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """``head.type``, and what else this default changes of what its type has by itself."""
    yield f"{name}.type", field, default and default.type
    if default is not None:
        kind = type(default)
        for key, value in default:
            if value != kind.model_fields[key].get_default():
                yield f"{name}.{key}", kind.model_fields[key], value


def said_default(cell: str, key: str) -> Any:
    if shipped := re.fullmatch(r"as in `(\w+)\.yaml`", cell):
        return tuple(Project.load(shipped[1]).source.data["task"][key])
    value = PydanticUndefined if cell == "required" else yaml.safe_load(cell)
    return tuple(value) if isinstance(value, list) else value


def promises(field: Any) -> Iterator[str]:
    """What the type cell must say of a field: its choices, its limits, whether it may be null."""
    pending = [field.annotation]
    while pending:
        annotation = pending.pop()
        if get_origin(annotation) is Literal:
            yield from map(str, get_args(annotation))
        elif get_origin(annotation) is types.UnionType:
            pending.extend(get_args(annotation))
        elif annotation is type(None):
            yield "null"
    for limit in field.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if hasattr(limit, attribute):
                yield f"{sign} {getattr(limit, attribute)}"


def shipped(registry: Any) -> list[str]:
    """The names of this package's own entries: other tests may have entered theirs."""
    return [n for n in registry if registry.get(n).__module__.startswith("teamvla.")]


def test_every_section_and_every_choice_of_its_keys_has_a_table():
    chosen = {"task": shipped(TASKS), "model": shipped(MODELS)}
    expected = {
        "top level",
        *BASES,
        *(f"{key} ({name})" for key, kinds in CHOICES.items() for name in shipped(kinds)),
        *(f"dataset.transforms ({name})" for name in TRANSFORMS),
    }
    for section in SECTIONS:
        variants = chosen.get(section, [])
        expected |= {f"{section} ({name})" for name in variants} if variants else {section}
    assert set(headings_of_keys()) == expected


@pytest.mark.parametrize("heading", headings_of_keys())
def test_the_table_of_a_section_lists_its_keys_with_their_defaults(heading):
    rows = tables(CONFIGS)[heading]
    documented = {name_in(row[0]): said_default(row[2], name_in(row[0])) for row in rows}
    assert len(documented) == len(rows)
    assert documented == {key: default for key, _, default in listed_keys(heading)}


@pytest.mark.parametrize("heading", headings_of_keys())
def test_the_table_of_a_section_tells_choices_and_limits(heading):
    cells = {name_in(row[0]): row[1] for row in tables(CONFIGS)[heading]}
    silent = [
        (key, promise)
        for key, field, _ in listed_keys(heading)
        for promise in promises(field)
        if promise not in cells[key]
    ]
    assert silent == []


def test_the_shipped_values_that_differ_from_the_defaults_are_listed():
    project = Project.load("train_bc")
    differing = {}
    for section in SECTIONS:
        if section not in project.source.data:
            continue
        settings = project.section(section, Settings)
        shipped = settings.model_dump(mode="json")
        defaults = type(settings)().model_dump(mode="json")
        for key in shipped:
            if shipped[key] != defaults[key]:
                differing[f"{section}.{key}"] = (defaults[key], shipped[key])
    listed = {
        name_in(key): (yaml.safe_load(default), yaml.safe_load(shipped))
        for key, default, shipped in tables(CONFIGS)["Every key"]
    }
    assert listed == differing


def test_the_schema_knows_the_keys_of_the_shipped_configurations():
    known = schema()["properties"]
    for section, data in Project.load("train_bc").resolved().items():
        if isinstance(data, dict):
            variants = known[section].get("anyOf", [known[section]])
            assert any(set(data) <= set(one["properties"]) for one in variants), section


# Command lines.


def test_the_sessions_of_the_configuration_page_go_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sessions = 0
    for block in blocks(CONFIGS):
        first, _, rest = block.text.partition("\n")
        if block.language == "yaml" and re.fullmatch(r"# \w+\.yaml", first):
            Path(first[2:]).write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            program, *arguments = shlex.split(first.removeprefix("$ "))
            assert program == "teamvla"
            run(arguments)
            captured = capsys.readouterr()
            assert_shown(rest, captured.out + captured.err)
            sessions += 1
    assert sessions >= 4


def assert_shown(shown: str, said: str) -> None:
    """``shown`` is what was said, lines of ``...`` standing for anything."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", shown, flags=re.M)]
    assert re.fullmatch("(?s:.*?)".join(parts), said), f"shown:\n{shown}\nsaid:\n{said}"


def command_lines() -> Iterator[Any]:
    """Every command line of ``teamvla`` in a shell block: its place and its arguments."""
    for page in DOCS:
        for block in blocks(page):
            if block.language not in ("sh", "bash", "console"):
                continue
            lines = block.text.replace("\\\n", " ").splitlines()
            if block.language == "console":
                lines = [line[2:] for line in lines if line.startswith("$ ")]
            for line in lines:
                for arguments in calls_in(line):
                    place = f"{page.relative_to(ROOT)}:{block.line}"
                    yield pytest.param(arguments, id=f"{place} {' '.join(arguments)}")


def calls_in(line: str) -> Iterator[list[str]]:
    """The arguments of each call of ``teamvla`` in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, "#"
    call: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("();<>|&"):
            if call and Path(call[0]).name == "teamvla":
                yield call[1:]
            call = [] if token not in (">", "<") else [token]
        else:
            call.append(token)


def command_of(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that ``arguments`` name, and what is left for it."""
    assert arguments[0] in COMMANDS, f"no such command: {arguments[0]}"
    command = load(arguments[0])
    if not hasattr(command, "commands"):
        return command, arguments[1:]
    assert arguments[1] in command.commands, f"no such command: {' '.join(arguments[:2])}"
    return command.commands[arguments[1]], arguments[2:]


@pytest.mark.parametrize("arguments", [*command_lines()])
def test_command_lines_are_understood(arguments):
    command, rest = command_of(arguments)
    command.make_context("teamvla", rest, obj=Console())


def mentions() -> list[Any]:
    """Every ``teamvla ...`` in running text, once a page."""
    found = {
        (page.relative_to(ROOT), " ".join(text.split()))
        for page in DOCS
        for text in re.findall(r"`(teamvla [^`]+)`", prose(page))
    }
    return [pytest.param(text, id=f"{page} {text}") for page, text in sorted(found)]


@pytest.mark.parametrize("text", mentions())
def test_commands_that_are_mentioned_exist_with_their_options(text):
    arguments = shlex.split(text)[1:]
    if arguments[0].startswith("-"):
        command = typer.main.get_command(app)
    else:
        command, arguments = command_of(arguments)
    known = {"-h", "--help", *(option for param in command.params for option in param.opts)}
    assert {word for word in arguments if word.startswith("-")} <= known


# Links.


def links() -> list[Any]:
    return [
        pytest.param(page, target, id=f"{page.relative_to(ROOT)} {target}")
        for page in DOCS
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page))
        if "://" not in target
    ]


@pytest.mark.parametrize(("page", "target"), links())
def test_relative_links_lead_somewhere(page, target):
    name, _, anchor = target.partition("#")
    path = page.parent / name if name else page
    assert path.exists()
    if anchor:
        titles = re.findall(r"^#+ (.*)$", prose(path), flags=re.M)
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert anchor in slugs


# Codes and tables of the formats.


def test_the_page_of_codes_lists_those_of_the_source():
    used = {
        node.value
        for path in (ROOT / "teamvla").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and re.fullmatch(r"[A-Z]\d{3}", str(node.value))
    }
    rows = [row for table in tables(CODES_PAGE).values() for row in table]
    listed = [row[0] for row in rows]
    assert len(set(listed)) == len(listed)
    assert set(listed) == used | set(CODES)
    assert {row[0]: row[1] for row in rows if row[0] in CODES} == CODES
    assert all(len(row) == 3 and row[2] for row in rows)


def test_the_fields_of_a_step_are_those_of_the_schema():
    rows = tables(FORMATS)["Fields"]
    listed = {name_in(row[0]): (row[1], row[2]) for row in rows}
    specs = {**STEP_SPECS, **OPTIONAL_FIELDS}
    assert listed == {
        name: ("required" if name in STEP_SPECS else "optional", name_in(spec.column))
        for name, spec in specs.items()
    }


def test_the_metadata_keys_are_those_of_a_recorded_episode(lift_root):
    listed = {name_in(row[0]) for row in tables(FORMATS)["Metadata"]}
    not_always = {"json_fields", "ragged_fields", "failed_attempts", "segments"}
    assert listed == {*read_meta(find_episodes(lift_root)[0])} | not_always


def test_the_header_keys_and_tensor_sections_are_those_of_a_checkpoint(small_project, tmp_path):
    from teamvla.train import bc_trainer

    project = small_project.override(["trainer.epochs=1", "model.fusion.hidden_dim=16"])
    first = bc_trainer.main(project, tmp_path / "first").checkpoints / "last.ckpt"
    second = bc_trainer.main(project, tmp_path / "second", init_checkpoint=first)
    header = read_header(second.checkpoints / "last.ckpt")
    page = tables(FORMATS)
    assert {name_in(row[0]) for row in page["Header"]} == set(header.meta)
    sections = {tensor.name.partition(".")[0] for tensor in header.tensors}
    assert {name_in(row[0]).partition(".")[0] for row in page["Tensors"]} == sections


# Code.


@pytest.mark.parametrize(
    "page",
    [
        PYTHON,
        FORMATS,
        ROBOT,
        RECORDING,
        SIMULATION,
        MODELS_PAGE,
        SENSORS,
        MEMORY,
        WORLD,
        MASKED,
        pytest.param(PRETRAINED, marks=needs_extra),
    ],
    ids=lambda page: page.name,
)
@pytest.mark.usefixtures("registries")  # what a page registers is known to it alone
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            assert printed == "", f"line {block.line}: the output above is not shown"
            # Empty lines in front make a traceback name the page's own lines.
            source = "\n" * (block.line - 1) + block.text
            code = compile(source, str(page), "exec", dont_inherit=True)
            with redirect_stdout(StringIO()) as stream:
                exec(code, names)
            printed = stream.getvalue()
        elif block.language == "text" and printed:
            assert printed == block.text, f"{page.name}:{block.line}"
            printed = ""
    assert printed == ""

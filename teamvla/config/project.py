"""A project's configuration: layered YAML, cut into sections that are typed one by one.

A section is validated by the settings class of the part it configures, which is
imported only then: ``record`` reads ``task`` without ever importing torch, though
the same file configures a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from teamvla.config.explain import explain, unknown_name
from teamvla.config.session import SessionConfig
from teamvla.config.settings import Settings
from teamvla.config.source import Address, Mark, Source, merge, parse_override, read_source
from teamvla.errors import ConfigError, InputError, RegistryError
from teamvla.registry import did_you_mean, import_object

#: section -> the settings class that validates it
SECTIONS = {
    "task": "teamvla.sim.tasks:TaskConfig",
    "record": "teamvla.record:RecordConfig",
    "index": "teamvla.data.index:IndexConfig",
    "dataset": "teamvla.data.dataloader:DatasetConfig",
    "model": "teamvla.models.base:PolicyConfig",
    "loss": "teamvla.models.losses:LossConfig",
    "optimizer": "teamvla.train.schedulers:OptimizerConfig",
    "scheduler": "teamvla.train.schedulers:SchedulerConfig",
    "trainer": "teamvla.train.trainer:TrainerConfig",
    "evaluation": "teamvla.evaluation.suites:EvaluationConfig",
}
S = TypeVar("S", bound=Settings)
_NOWHERE = Mark("configuration")
_COMMAND_LINE = Mark("command line")


def config_folder() -> Path:
    """Where the configurations that ship with the package lie."""
    package = Path(__file__).parent.parent
    shipped = package / "configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the configurations that ship with the package: ``train_bc``, ``model/act``."""
    folder = config_folder()
    files = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files)


def find_config(name: str) -> Path:
    """A file by its path, or a shipped configuration by its name (``train_bc``, ``model/act``).

    A bare name means the shipped one, whatever lies in the current folder: ``--task lift``
    must not come to mean a file that somebody left there.
    """
    bare = all(part.isidentifier() for part in name.split("/"))
    places = [Path(name), config_folder() / f"{name.removesuffix('.yaml')}.yaml"]
    for candidate in reversed(places) if bare else places:
        if candidate.is_file():
            return candidate
    raise InputError(
        name,
        "a YAML file or a shipped configuration",
        "neither",
        did_you_mean(name, shipped_configs()),
    )


class Project:
    """Layered configuration, validated section by section.

    Attributes:
        source: the merged data with the mark of every key and value.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        known = [*SessionConfig.model_fields, *SECTIONS]
        problems = [
            f"{source.marks.get((key,), (_NOWHERE,))[0]}: error: unknown key "
            f"'{key}'{unknown_name(key, known)}"
            for key in source.data
            if key not in known
        ]
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def load(cls, name: str | None, overrides: Iterable[str] = ()) -> Project:
        """Read ``name`` and what it extends, then lay ``--set`` items over it.

        Raises:
            InputError: there is no such file.
            ConfigError: the file is malformed or names an unknown section.
        """
        source = _layers(find_config(name)) if name is not None else Source({})
        return cls(_overridden(source, overrides))

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Project:
        """A project from plain data, such as the snapshot in a checkpoint."""
        return cls(Source(data))

    def override(self, items: Iterable[str]) -> Project:
        """The project with ``--set`` items laid over it."""
        return Project(_overridden(self.source, items))

    def transplant(self, section: str, donor: Project) -> Project:
        """The project with a section of ``donor`` in place of its own."""
        kept = {k: v for k, v in self.source.data.items() if k != section}
        marks = {k: v for k, v in self.source.marks.items() if k[:1] != (section,)}
        given = donor.source
        theirs = {k: v for k, v in given.marks.items() if k[:1] == (section,)}
        return Project(Source(kept | {section: given.data[section]}, marks | theirs))

    def replace(self, section: str, **values: Any) -> Project:
        """The project with some keys of a section set; ``None`` leaves a key alone."""
        if not isinstance(self._data_at((section,)), dict):
            self.section(section, Settings)  # raises: laid over it, the mistake would be hidden
        return self._with((section,), values)

    @property
    def session(self) -> SessionConfig:
        """The keys at the top level: seed, device, log_level, data_root."""
        settings = _settled(self._validate(()))
        assert isinstance(settings, SessionConfig)
        return settings

    def with_session(self, **values: Any) -> Project:
        """The project with some top-level keys set; ``None`` leaves a key alone."""
        return self._with((), values)

    def _with(self, place: tuple[str, ...], values: dict[str, Any]) -> Project:
        given = _given(values)
        marks: dict[Address, tuple[Mark, Mark]] = {
            (*place, key): (_COMMAND_LINE, _COMMAND_LINE) for key in given
        }
        data = {place[0]: given} if place else given
        return Project(merge(self.source, Source(data, marks)))

    def section(self, name: str, kind: type[S]) -> S:
        """The settings of section ``name``, an instance of ``kind``.

        Raises:
            ConfigError: with one line per problem in the section.
        """
        settings = _settled(self._validate((name,)))
        assert isinstance(settings, kind)
        return settings

    def check(self) -> list[str]:
        """Every problem in every section, one line each; empty if all is well."""
        places: list[tuple[str, ...]] = [(), *((name,) for name in self._sections())]
        return [line for place in places for line in self._validate(place)[1]]

    def resolved(self) -> dict[str, Any]:
        """All given sections with every default written out, as plain JSON data."""
        sections = {
            name: self.section(name, Settings).model_dump(mode="json") for name in self._sections()
        }
        return {**self.session.model_dump(mode="json"), **sections}

    def _sections(self) -> list[str]:
        return [name for name in SECTIONS if name in self.source.data]

    def _data_at(self, place: tuple[str, ...]) -> Any:
        if place:
            data = self.source.data.get(place[0])
            return {} if data is None else data
        return {k: v for k, v in self.source.data.items() if k not in SECTIONS}

    def _validate(self, place: tuple[str, ...]) -> tuple[Settings | None, list[str]]:
        data = self._data_at(place)
        mark = self.source.marks.get(place, (_NOWHERE, _NOWHERE))[1]
        name = "".join(place)
        if not isinstance(data, dict):
            return None, [f"{mark}: error: {name}: expected keys and values, got {data!r}"]
        base = import_object(SECTIONS[name]) if place else SessionConfig
        try:
            model = cast(type[Settings], base).choose(data)
        except RegistryError as error:
            selectors = [self.source.marks.get((*place, key)) for key in ("name", "type")]
            option = (_COMMAND_LINE, _COMMAND_LINE) in selectors
            return None, [f"{_COMMAND_LINE if option else mark}: error: {error}"]
        try:
            return model.model_validate(data), []
        except ValidationError as error:
            return None, list(explain(error, model, self.source, place))


def _settled(outcome: tuple[Settings | None, list[str]]) -> Settings:
    settings, problems = outcome
    if settings is None:
        raise ConfigError("\n".join(problems))
    return settings


def _overridden(source: Source, items: Iterable[str]) -> Source:
    # First with each other: a `type` among them must not undo what another of them sets.
    given = Source({})
    for item in items:
        given = merge(given, parse_override(item))
    return merge(source, given)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _layers(path: Path, below: tuple[Path, ...] = ()) -> Source:
    if path.resolve() in below:
        raise ConfigError(str(path), "layers that end", "an `extends` that comes back to it")
    source = read_source(path, str(path))
    parent = source.data.pop("extends", None)
    mark = source.marks.pop(("extends",), None)
    if parent is None:
        return source
    if not isinstance(parent, str):
        raise ConfigError(f"{mark[1] if mark else path}: error: extends: expected a file name")
    beside = path.parent / parent
    return merge(
        _layers(beside if beside.is_file() else find_config(parent), (*below, path.resolve())),
        source,
    )


def schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, for editors."""
    properties: dict[str, Any] = {"extends": {"type": "string", "description": "Layer below."}}
    properties.update(SessionConfig.model_json_schema()["properties"])
    definitions: dict[str, Any] = {}
    for name, target in SECTIONS.items():
        variants = []
        for model in cast(type[Settings], import_object(target)).variants():
            variant = model.model_json_schema(ref_template="#/$defs/{model}")
            definitions.update(variant.pop("$defs", {}))
            variants.append(variant)
        properties[name] = variants[0] if len(variants) == 1 else {"anyOf": variants}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "teamvla configuration",
        "type": "object",
        "properties": properties,
        "$defs": definitions,
        "additionalProperties": False,
    }

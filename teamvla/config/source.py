"""YAML with memory: plain data, and where each key and value was written.

What YAML lets pass and people regret is refused here: duplicate keys, aliases
(an alias bomb expands long after it was read), keys that are not strings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from teamvla.errors import ConfigError, InputError

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: what PyYAML raises for text that is not YAML, or holds values that cannot be
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
Address = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """A place in a file (line and column from 1), or an option on the command line."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass
class Source:
    """One layer of configuration: ``data`` and, for each address, its (key, value) marks."""

    data: dict[str, Any]
    marks: dict[Address, tuple[Mark, Mark]] = field(default_factory=dict)


def read_source(path: Path, name: str) -> Source:
    """Parse one YAML file; every problem of its form is reported at once.

    Raises:
        InputError: the file cannot be read.
        ConfigError: it is not YAML, or holds aliases, duplicate or non-string keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(name, "a readable file", (error.strerror or str(error)).lower()) from None
    except UnicodeDecodeError as error:
        raise ConfigError(name, "UTF-8 text", f"byte 0x{error.object[error.start]:02x}") from None
    try:
        return parse_source(text, name)
    except _UNREADABLE as error:
        raise ConfigError(_yaml_message(error, name)) from None


def parse_source(text: str, name: str) -> Source:
    """Parse YAML text that errors call ``name``.

    Raises:
        ConfigError: aliases, duplicate or non-string keys.
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, holds a value that is
            none (the 45th of the month), or is nested without end.
    """
    problems = [
        f"{_mark(event, name)}: error: aliases are not allowed; write the value out"
        for event in yaml.parse(text, _Loader)
        if isinstance(event, yaml.AliasEvent)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    root = yaml.compose(text, _Loader)
    source = Source({})
    if root is None:
        return source
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{_mark(root, name)}: error: expected keys and values, got a {_kind(root)}"
        )
    _walk(root, (), source, name, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    source.data = yaml.safe_load(text)
    return source


def _walk(node: yaml.Node, at: Address, source: Source, name: str, problems: list[str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, Mark] = {}
        for key, value in node.value:
            mark = _mark(key, name)
            if key.tag != "tag:yaml.org,2002:str":
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"a {_kind(key)}"
                problems.append(f"{mark}: error: key {shown} must be text; quote it")
                continue
            if key.value in seen:
                first = seen[key.value].line
                problems.append(
                    f"{mark}: error: duplicate key '{key.value}' (first at line {first})"
                )
            seen.setdefault(key.value, mark)
            source.marks[(*at, key.value)] = (mark, _mark(value, name))
            _walk(value, (*at, key.value), source, name, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            mark = _mark(item, name)
            source.marks[(*at, index)] = (mark, mark)
            _walk(item, (*at, index), source, name, problems)


def parse_override(item: str) -> Source:
    """One ``--set a.b=value``, its value read as YAML."""
    key, equals, value = item.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {item}", "KEY=VALUE with a dotted key", "something else")
    mark = Mark(f"--set {item}")
    try:
        data: Any = parse_source(f"value: {value}", str(mark)).data.get("value")
    except _UNREADABLE as error:
        got = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(str(mark), "a YAML value", got) from None
    marks: dict[Address, tuple[Mark, Mark]] = {}
    for depth in range(len(parts), 0, -1):
        marks[tuple(parts[:depth])] = (mark, mark)
        data = {parts[depth - 1]: data}
    return Source(data, marks)


#: sections in which what a key names has keys of its own -> that key
_SELECTORS = {"model": "type", "task": "name"}


def merge(lower: Source, upper: Source) -> Source:
    """``upper`` laid over ``lower``: mappings merge key by key, everything else is replaced.

    Keys that are numbers, over a list, are places in it: ``transforms.0.pixels``. Inside
    ``model`` a mapping that names another ``type`` than the one below replaces it whole, and
    so does a ``task`` of another ``name``: the keys of one head mean nothing to another. One
    that names none below is kept: no key that was set is lost in silence.
    """
    marks = dict(lower.marks)
    data = _merge_data(lower.data, upper.data, (), marks)
    return Source(data, {**marks, **{_address(data, a): m for a, m in upper.marks.items()}})


def _merge_data(
    lower: dict[Any, Any], upper: dict[Any, Any], at: Address, marks: dict[Address, Any]
) -> dict[Any, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        another = _is_another((*at, key), below, value)
        if isinstance(below, dict) and isinstance(value, dict) and not another:
            merged[key] = _merge_data(below, value, (*at, key), marks)
        elif isinstance(below, list) and _are_places(value, len(below)):
            items: dict[str | int, Any] = dict(enumerate(below))
            changes = {int(place): change for place, change in value.items()}
            merged[key] = [*_merge_data(items, changes, (*at, key), marks).values()]
        else:
            merged[key] = value
            address = (*at, key)
            for stale in [a for a in marks if a[: len(address)] == address]:
                del marks[stale]
    return merged


def _is_another(at: Address, below: Any, value: Any) -> bool:
    """Whether a mapping is for something else by name than the one below it."""
    key = _SELECTORS.get(str(at[0]))
    if key is None or not (isinstance(below, dict) and isinstance(value, dict)):
        return False
    return key in below and key in value and below[key] != value[key]


def _are_places(value: Any, count: int) -> bool:
    """Whether all keys of a mapping are numbers of items of a list."""
    return isinstance(value, dict) and all(k.isdecimal() and int(k) < count for k in value)


def _address(data: Any, written: Address) -> Address:
    """The address with numbers where it leads into lists."""
    address: list[str | int] = []
    for part in written:
        place = int(part) if isinstance(data, list) and str(part).isdecimal() else part
        address.append(place)
        inside = isinstance(data, dict) or isinstance(place, int)
        data = data[place] if inside else None
    return tuple(address)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.SequenceNode) else "single value"


def _mark(node: Any, name: str) -> Mark:
    return Mark(name, node.start_mark.line + 1, node.start_mark.column + 1)


def _yaml_message(error: Exception, name: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"{name}: error: not YAML: {str(error).partition(chr(10))[0]}"
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    context = f" {error.context}" if error.context else ""
    return f"{place}: error: not YAML: {error.problem}{context}"

"""The settings of a conversion from a mapping file, options and overrides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from teamvla.config.explain import explain
from teamvla.config.source import Mark, Source, merge, parse_override, read_source
from teamvla.data.formats.base import ConvertConfig
from teamvla.errors import ConfigError


def load_settings(
    mapping: Path | None, overrides: Iterable[str] = (), given: dict[str, Any] | None = None
) -> ConvertConfig:
    """Settings whose ``mapping`` stands in a YAML file, with ``KEY=VALUE`` laid over them.

    Raises:
        InputError: the file cannot be read.
        ConfigError: with one line per problem.
    """
    source = Source({})
    if mapping is not None:
        inner = read_source(mapping, str(mapping))
        marks = {("mapping", *at): mark for at, mark in inner.marks.items()}
        source = Source({"mapping": inner.data}, marks)
    options = {key: value for key, value in (given or {}).items() if value is not None}
    mark = Mark("command line")
    source = merge(source, Source(options, {(key,): (mark, mark) for key in options}))
    for item in overrides:
        source = merge(source, parse_override(item))
    try:
        return ConvertConfig.model_validate(source.data)
    except ValidationError as error:
        lines = explain(error, ConvertConfig, source, ())
        raise ConfigError("\n".join(lines)) from None

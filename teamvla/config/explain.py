"""Validation problems as ``file:line:column: error: ...`` lines with suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from teamvla.config.settings import Settings
from teamvla.config.source import Address, Mark, Source


def explain(
    error: ValidationError, model: type[Settings], source: Source, at: Address
) -> Iterator[str]:
    """One line per problem that pydantic found in the settings at address ``at``."""
    details = error.errors(include_url=False)
    for detail in details:
        if _follows_from_another(detail, details):
            continue
        key, value = _marks(source, (*at, *detail["loc"]))
        kind = detail["type"]
        if kind == "extra_forbidden":
            yield _unknown_key(key, detail, model, at)
        elif kind == "missing":
            yield f"{key}: error: missing key '{_dotted(at, detail['loc'])}'"
        else:
            yield _wrong_value(value, detail, at)


def _follows_from_another(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a list is only too short because pydantic does not count its wrong items."""
    at = detail["loc"]
    inside = (len(o["loc"]) > len(at) and o["loc"][: len(at)] == at for o in details)
    return detail["type"] == "too_short" and any(inside)


def unknown_name(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` with the known names behind it."""
    near = difflib.get_close_matches(name, known, 1, 0.5) or _abbreviated(name, known)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (known: {', '.join(known)})"


def _abbreviated(name: str, known: list[str]) -> list[str]:
    """Known names that are the initials or one word of ``name``: learning_rate -> lr."""
    words = name.split("_")
    initials = "".join(word[:1] for word in words)
    return [k for k in known if k in words or k == initials]


def _unknown_key(mark: Mark, detail: ErrorDetails, model: type[Settings], at: Address) -> str:
    *parents, last = detail["loc"]
    known = _fields(model, tuple(parents))
    text = f"{mark}: error: unknown key '{_dotted(at, detail['loc'])}'"
    return text + unknown_name(str(last), known)


def _wrong_value(mark: Mark, detail: ErrorDetails, at: Address) -> str:
    where = _dotted(at, detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    text = f"{mark}: error: {where}: {message[:1].lower()}{message[1:]}"
    if detail["type"] == "value_error":
        return text
    text += f", got {detail['input']!r}"
    if detail["type"] == "literal_error":
        expected = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        options = [option.strip("'") for option in expected]
        near = difflib.get_close_matches(str(detail["input"]), options, 1, 0.5)
        text += f"; did you mean '{near[0]}'?" if near else ""
    return text


def _marks(source: Source, address: Address) -> tuple[Mark, Mark]:
    while address and address not in source.marks:
        address = address[:-1]
    fallback = Mark("configuration")
    return source.marks.get(address, (fallback, fallback))


def _fields(model: type[Any], parents: Address) -> list[str]:
    for name in parents:
        field = model.model_fields.get(name) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def _dotted(at: Address, loc: Address) -> str:
    return ".".join(map(str, (*at, *loc)))

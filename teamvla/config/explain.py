"""Validation problems as ``file:line:column: error: ...`` lines with suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from teamvla.config.bytype import ByType
from teamvla.config.settings import Settings
from teamvla.config.source import Address, Mark, Source
from teamvla.registry import CUTOFF


def explain(
    error: ValidationError, model: type[Settings], source: Source, at: Address
) -> Iterator[str]:
    """One line per problem that pydantic found in the settings at address ``at``."""
    details = error.errors(include_url=False)
    for detail in details:
        if _follows_from_another(detail, details):
            continue
        loc, around = _located(model, detail["loc"], _data_at(source, at))
        kind, context = detail["type"], detail.get("ctx", {})
        if kind.startswith("union_tag"):
            loc = (*loc, context["discriminator"].strip("'"))
        key, value = _marks(source, (*at, *loc))
        where = ".".join(map(str, (*at, *loc)))
        if kind == "extra_forbidden":
            text = f"{key}: error: unknown key '{where}'"
            yield text + unknown_name(str(loc[-1]), _keys_of(around))
        elif kind in {"missing", "union_tag_not_found"}:
            yield f"{key}: error: missing key '{where}'"
        elif kind == "union_tag_invalid":
            known = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
            text = f"{value}: error: {where}: no such choice, got {context['tag']!r}"
            hint = f". {context['hint']}" if context.get("hint") else ""
            yield text + unknown_name(str(context["tag"]), known) + hint
        else:
            yield _wrong_value(value, detail, where)


def _follows_from_another(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Whether a list is only too short because pydantic does not count its wrong items."""
    at = detail["loc"]
    inside = (len(o["loc"]) > len(at) and o["loc"][: len(at)] == at for o in details)
    return detail["type"] == "too_short" and any(inside)


def unknown_name(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` with the known names behind it."""
    near = difflib.get_close_matches(name, known, 1, CUTOFF) or _abbreviated(name, known)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (known: {', '.join(known)})"


def _abbreviated(name: str, known: list[str]) -> list[str]:
    """Known names that are the initials or one word of ``name``: learning_rate -> lr."""
    words = name.split("_")
    initials = "".join(word[:1] for word in words)
    return [k for k in known if k in words or k == initials]


def _keys_of(kind: Any) -> list[str]:
    """What may stand in settings of this type; nothing if they are none."""
    return kind.known_keys() if isinstance(kind, type) and issubclass(kind, Settings) else []


def _wrong_value(mark: Mark, detail: ErrorDetails, where: str) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    text = f"{mark}: error: {where}: {message[:1].lower()}{message[1:]}"
    if detail["type"] == "value_error":
        return text
    text += f", got {detail['input']!r}"
    if detail["type"] == "literal_error":
        expected = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        options = [option.strip("'") for option in expected]
        near = difflib.get_close_matches(str(detail["input"]), options, 1, CUTOFF)
        text += f"; did you mean '{near[0]}'?" if near else ""
    return text


def _marks(source: Source, address: Address) -> tuple[Mark, Mark]:
    while address and address not in source.marks:
        address = address[:-1]
    fallback = Mark("configuration")
    return source.marks.get(address, (fallback, fallback))


def _data_at(source: Source, at: Address) -> Any:
    data: Any = source.data
    for part in at:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _located(model: type[Settings], loc: Address, data: Any) -> tuple[Address, Any]:
    """The address as the user wrote it, and the type of what its last part stands in.

    Where a key decides between several settings (a union with a discriminator), pydantic
    puts that key's value into the address.
    """
    written: list[str | int] = []
    here: Any = model
    around: Any = model
    for part in loc:
        choices = _choices(here)
        if part in choices:
            here = choices[part]
        else:
            written.append(part)
            data = data.get(part) if isinstance(data, dict) else None
            around, here = here, _inside(here, part, data)
    return tuple(written), around


def _choices(kind: Any) -> dict[str | int, Any]:
    """The settings that a discriminated union decides between, by the deciding value."""
    if get_origin(kind) is not Annotated:
        return {}
    union, *notes = get_args(kind)
    keys = [note.discriminator for note in notes if isinstance(note, FieldInfo)]
    settings = get_args(union) if keys else ()
    return {one.model_fields[keys[0]].default: one for one in settings}


def _inside(kind: Any, part: str | int, data: Any) -> Any:
    """The type of a member of settings, a tuple or a list; None where that is not known."""
    if isinstance(part, int):
        return next(iter(get_args(kind)), None)
    field = getattr(kind, "model_fields", {}).get(part)
    if field is None:
        return _of_mapping(kind, data)
    if isinstance(data, dict) and "type" not in data and hasattr(field.default, "type"):
        data = {**data, "type": field.default.type}
    chosen = (note for note in field.metadata if isinstance(note, ByType))
    return next((note.settings_of(data) for note in chosen), field.annotation)


def _of_mapping(kind: Any, data: Any) -> Any:
    """The settings that a value of ``dict[str, Annotated[..., ByType(...)]]`` is for, or None."""
    for option in (kind, *get_args(kind)):
        if get_origin(option) is dict:
            notes = get_args(get_args(option)[1])[1:]
            return next((n.settings_of(data) for n in notes if isinstance(n, ByType)), None)
    return None

"""Flat spellings of nested settings: ``hidden_dim=256`` for ``fusion: {hidden_dim: 256}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from teamvla.config.bytype import ByType

#: flat name -> the places ``section.key`` that it sets
Spellings = Mapping[str, tuple[str, ...]]
#: flat name, true or false -> the section that it switches, and what that then is
Switches = Mapping[str, tuple[str, BaseModel]]


def spread(data: Any, kind: type[BaseModel], spellings: Spellings, switches: Switches) -> Any:
    """Settings with everything that is spelt flat at its place; for a ``before`` validator.

    A section that is not given starts as what it is by default in ``kind``, and naming another
    ``type`` starts it anew. Of several places those count that have such a setting.

    Raises:
        ValueError: a setting is given in both spellings, or no place has it.
    """
    if not isinstance(data, dict):
        return data
    laid = {name: value for name, value in data.items() if name not in {*spellings, *switches}}
    for name, (section, settings) in switches.items():
        if name in data:
            _refuse_twice(name, section, section in data)
            laid[section] = settings if _boolean(name, data[name]) else None
    for name, places in spellings.items():
        if name in data:
            _place(name, data, laid, kind, places)
    return laid


def _place(
    name: str,
    data: Mapping[str, Any],
    laid: dict[str, Any],
    kind: type[BaseModel],
    places: tuple[str, ...],
) -> None:
    """Set one flat name at those of its places that have it."""
    taken = False
    for section, _, key in (place.partition(".") for place in places):
        given = data.get(section)
        _refuse_twice(name, f"{section}.{key}", isinstance(given, dict) and key in given)
        inside = laid[section] if section in laid else kind.model_fields[section].default
        inside = inside.model_dump() if isinstance(inside, BaseModel) else inside
        if not isinstance(inside, dict):
            taken = True  # null has no settings, and what is wrong altogether will be named
        elif key == "type" and inside.get("type") != data[name]:
            laid[section], taken = {key: data[name]}, True
        elif _has(kind, section, inside, key):
            laid[section], taken = {**inside, key: data[name]}, True
    if not taken:
        raise ValueError(f"{name} is a spelling of {' and '.join(places)}, which is not there")


def _has(kind: type[BaseModel], section: str, inside: dict[str, Any], key: str) -> bool:
    """Whether the settings that a section's ``type`` chooses have such a key."""
    notes = kind.model_fields[section].metadata
    chosen = next((note.settings_of(inside) for note in notes if isinstance(note, ByType)), None)
    return chosen is None or key in chosen.model_fields


def _refuse_twice(name: str, place: str, given: bool) -> None:
    if given:
        raise ValueError(f"{name} is another spelling of {place}: give one of them")


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is true or false, got {value!r}")
    return value

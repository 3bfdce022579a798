"""Flat spellings of nested settings: ``hidden_dim=256`` for ``fusion: {hidden_dim: 256}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from teamvla.config.bytype import ByType

_LOG = logging.getLogger(__name__)
#: flat name -> the places ``section.key`` that it sets
Spellings = Mapping[str, tuple[str, ...]]
#: flat name, true or false -> the section that it switches, and what that then is
Switches = Mapping[str, tuple[str, BaseModel]]


def spread(data: Any, kind: type[BaseModel], spellings: Spellings, switches: Switches) -> Any:
    """Settings with everything that is spelt flat at its place; for a ``before`` validator.

    A section that is not given starts as what it is by default in ``kind``; naming another
    ``type`` leaves of it what is given beside. Of several places those count that have such a
    setting; if all of their sections are null, a warning tells that it changes nothing.

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
    taken, null = False, []
    for section, _, key in (place.partition(".") for place in places):
        value = data[name]
        _refuse_twice(name, f"{section}.{key}", _gives(data.get(section), key, value))
        inside = laid[section] if section in laid else kind.model_fields[section].default
        inside = inside.model_dump() if isinstance(inside, BaseModel) else inside
        if inside is None:
            null.append(section)
        elif not isinstance(inside, dict):
            taken = True  # what is wrong altogether will be named
        elif key == "type" and inside.get("type") != value:
            beside = inside if section in data else {}
            laid[section], taken = {**beside, key: value}, True
        elif _has(kind, section, inside, key):
            laid[section], taken = {**inside, key: value}, True
    if null and not taken:
        _LOG.warning("%s %s changes nothing: %s is null", name, data[name], " and ".join(null))
    elif not taken:
        raise ValueError(f"{name} is a spelling of {' and '.join(places)}, which is not there")


def _gives(section: Any, key: str, value: Any) -> bool:
    """Whether a section that was given says this already; every ``type`` of settings counts."""
    if isinstance(section, BaseModel):
        another = key == "type" and getattr(section, key, value) != value
        return another or (key != "type" and key in section.model_fields_set)
    return isinstance(section, dict) and key in section


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

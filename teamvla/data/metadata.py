"""What is said of a whole episode, and the checks that it passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from teamvla.data.specs import NAME, unfit
from teamvla.errors import SchemaError
from teamvla.files import canonical_json

EPISODE_FILE_VERSION = 2
_MAX_STEPS = 10_000_000
_MAX_DEPTH = 32
_PLAIN = {str, int, float, bool, type(None)}


@dataclass(frozen=True)
class EpisodeMeta:
    """What is said of a whole episode.

    Attributes:
        task: slug of the task; the folder the episode lies in.
        episode_id: unique within its task; the name of the file.
        success: whether the attempt succeeded.
        num_steps: length, derived when the episode ends.
        version: of the file format.
        extra: anything else JSON can hold (contract, seed, expert, software, ...).
    """

    task: str
    episode_id: str
    success: bool = False
    num_steps: int = 0
    version: int = EPISODE_FILE_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One flat dict: the attributes and, beside them, everything extra."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **known}


def validate_episode_meta(meta: Mapping[str, Any] | EpisodeMeta) -> EpisodeMeta:
    """Coerce metadata to :class:`EpisodeMeta`.

    Raises:
        SchemaError: it is not a mapping of JSON values, a key is missing, a value has the
            wrong type, a name is illegal, or the version is another.
    """
    data = meta.to_dict() if isinstance(meta, EpisodeMeta) else meta
    if not isinstance(data, Mapping):
        raise unfit("E121", "metadata", "a mapping", data)
    for key in ("task", "episode_id"):
        if key not in data:
            raise SchemaError(f"metadata.{key}", "a name", "nothing", code="E122")
        check_name(f"metadata.{key}", data[key])
    known = {f.name: data[f.name] for f in fields(EpisodeMeta) if f.name in data}
    known["extra"] = {key: value for key, value in data.items() if key not in known}
    episode = EpisodeMeta(**known)
    _check_meta_types(episode)
    if _deeper_than(data, _MAX_DEPTH):
        raise SchemaError("metadata", f"at most {_MAX_DEPTH} levels", "more", code="E234")
    try:
        canonical_json(dict(data))
    except (TypeError, ValueError) as error:
        raise SchemaError("metadata", "JSON values", str(error), code="E121") from None
    return episode


def _deeper_than(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        layer = [
            child
            for group in layer
            for child in (group.values() if isinstance(group, Mapping) else group)
            if type(child) not in _PLAIN and isinstance(child, Mapping | list | tuple)
        ]
        if not layer:
            return False
    return True


def check_name(where: str, value: Any) -> None:
    """Raise SchemaError unless ``value`` is a legal name of a task or an episode."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        mend = "Use small letters, digits, _ and -, at most 64."
        raise SchemaError(
            where, f"a name matching {NAME.pattern}", repr(value)[:80], mend, code="E123"
        )


def _check_meta_types(meta: EpisodeMeta) -> None:
    if type(meta.success) is not bool:
        raise unfit("E124", "metadata.success", "bool", meta.success)
    steps = meta.num_steps
    if type(steps) is not int or not 0 <= steps <= _MAX_STEPS:
        expected = f"a count up to {_MAX_STEPS}"
        raise SchemaError("metadata.num_steps", expected, repr(steps)[:40], code="E124")
    if type(meta.version) is not int or meta.version != EPISODE_FILE_VERSION:
        raise SchemaError(
            "metadata.version", str(EPISODE_FILE_VERSION), repr(meta.version)[:40], code="E126"
        )

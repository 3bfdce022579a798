"""The base of every settings class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Frozen, typed settings: unknown keys are refused, defaults live in the class.

    A component keeps its settings in a subclass beside it. Where a key of the
    section decides which subclass applies (``model.type``, ``task.name``), the
    section's class overrides :meth:`choose`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    #: keys that a validator of the class takes besides the fields -> what they are spellings of
    FLAT: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        for name, given in cls.spellings(data).items() if isinstance(data, dict) else ():
            if len(given) > 1:
                other = next(key for key in given if key != name)
                raise ValueError(f"{other} is another spelling of {name}: give one of them")
        return data

    @classmethod
    def spellings(cls, among: Any = None) -> dict[str, list[str]]:
        """Field -> the keys that set it; of these only the ones in ``among``, if that is given."""
        spelt = {}
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            keys = (
                [str(key) for key in alias.choices] if isinstance(alias, AliasChoices) else [name]
            )
            spelt[name] = [key for key in keys if among is None or key in among]
        return spelt

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that is understood, fields first."""
        spelt = [key for keys in cls.spellings().values() for key in keys]
        return list(dict.fromkeys([*cls.model_fields, *spelt, *cls.FLAT]))

    @classmethod
    def choose(cls, data: dict[str, Any]) -> type[Settings]:
        """The class that validates ``data``; RegistryError if its selector is unknown."""
        return cls

    @classmethod
    def variants(cls) -> list[type[Settings]]:
        """All classes that :meth:`choose` may give."""
        return [cls]

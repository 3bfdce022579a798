"""The base of every settings class."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, typed settings: unknown keys are refused, defaults live in the class.

    A component keeps its settings in a subclass beside it. Where a key of the
    section decides which subclass applies (``model.type``, ``task.name``), the
    section's class overrides :meth:`choose`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def choose(cls, data: dict[str, Any]) -> type[Settings]:
        """The class that validates ``data``; RegistryError if its selector is unknown."""
        return cls

    @classmethod
    def variants(cls) -> list[type[Settings]]:
        """All classes that :meth:`choose` may give."""
        return [cls]

"""One lazy registry for everything that is chosen by name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from teamvla.errors import RegistryError

T = TypeVar("T")


def import_object(target: str) -> object:
    """The object at ``package.module:name``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence that suggests the nearest known name, and lists them all."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(sorted(known)) or 'none'}"


class Registry(Generic[T]):
    """Names to classes, each imported only when it is first asked for.

    Args:
        kind: what the entries are, for messages (``model``, ``task``).
        builtin: name -> ``module:Class``.
        group: entry-point group in which other packages announce theirs.
    """

    def __init__(self, kind: str, builtin: dict[str, str], group: str | None = None) -> None:
        self.kind = kind
        self._targets: dict[str, str | T] = dict(builtin)
        self._group = group
        self._announced = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its class under ``name``."""

        def enter(entry: T) -> T:
            if name in self._all():
                raise RegistryError(f"{self.kind} {name!r}", "a new name", "one that is taken")
            self._targets[name] = entry
            return entry

        return enter

    def get(self, name: str) -> T:
        """The entry called ``name``; RegistryError with a suggestion if there is none."""
        targets = self._all()
        if name not in targets:
            raise RegistryError(
                f"{self.kind} {name!r}",
                "a known name",
                "none like it",
                did_you_mean(name, [*targets]),
            )
        target = targets[name]
        if isinstance(target, str):
            loaded: T = import_object(target)  # type: ignore[assignment]
            self._targets[name] = target = loaded
        return target

    def names(self) -> list[str]:
        return sorted(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _all(self) -> dict[str, str | T]:
        if self._group is not None and not self._announced:
            from importlib.metadata import entry_points  # 20 ms that --help need not pay

            self._announced = True
            for point in entry_points(group=self._group):
                self._targets.setdefault(point.name, point.value)
        return self._targets

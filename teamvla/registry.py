"""One lazy registry for everything that is chosen by name."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from teamvla.errors import ConfigError, RegistryError, TeamVLAError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
#: of :mod:`difflib`: names that are less alike are no typing mistakes
CUTOFF = 0.6


def import_object(target: str) -> object:
    """The object at ``package.module:name``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def import_user_object(target: str, where: str, mend: str | None = None) -> Callable[..., Any]:
    """The class or function at ``module:name`` of somebody's own, in the current folder too.

    Args:
        target: ``module:name``. Importing runs the module: never take it from data.
        where: what asks for it, for the message.
        mend: how to put it right, for the message.

    Raises:
        ConfigError: there is none, or the module fails.
    """
    module, _, name = target.partition(":")
    got, found = "no MODULE:NAME", None
    if module and name:
        if module.partition(".")[0] != __name__.partition(".")[0]:
            look_in_the_current_folder()
        try:
            loaded = importlib.import_module(module)
            found = getattr(loaded, name, None)
            got = f"a {type(found).__name__}"
            if not hasattr(loaded, name):
                near = difflib.get_close_matches(name, dir(loaded), 1, CUTOFF)
                got = f"no {name} in {module}"
                mend = f"Did you mean {near[0]!r}? {mend or ''}".rstrip() if near else mend
        except (Exception, SystemExit) as error:  # whatever the module does when it is imported
            got = told_in_a_line(error)
    if not callable(found):
        expected = "a class or function that can be imported"
        raise ConfigError(f"{where} {target!r}", expected, got, mend)
    return cast(Callable[..., Any], found)


def look_in_the_current_folder() -> None:
    """Let modules there be imported: a script's folder is, not that of an installed command."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def told_in_a_line(error: BaseException) -> str:
    """``ValueError: what it says``, of several lines the first."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence that suggests the nearest known name, and lists them all."""
    near = difflib.get_close_matches(name, known, 1, CUTOFF)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(sorted(known)) or 'none'}"


class Registry(Generic[T]):
    """Names to classes, each imported only when it is first asked for.

    Args:
        kind: what the entries are, for messages (``model``, ``task``).
        builtin: name -> ``module:Class``.
        group: entry-point group in which other packages announce theirs.
        page: where the documentation tells how.
    """

    def __init__(
        self,
        kind: str,
        builtin: dict[str, str],
        group: str | None = None,
        page: str | None = None,
    ) -> None:
        self.kind, self._page = kind, page
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

    def __setitem__(self, name: str, entry: T) -> None:
        self.register(name)(entry)

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    @property
    def hint(self) -> str:
        """How an entry of one's own is made known; empty where no page tells it."""
        if self._page is None:
            return ""
        return f"One of your own: an entry point, or register it in Python: {self._page}"

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            RegistryError: there is none, or the module that has it cannot be imported.
        """
        targets = self._all()
        if name not in targets:
            raise RegistryError(
                f"{self.kind} {name!r}",
                "a known name",
                mend=". ".join(filter(None, [did_you_mean(name, [*targets]), self.hint])),
            )
        target = targets[name]
        if isinstance(target, str):
            self._targets[name] = target = self._load(name, target)
        return target

    def _load(self, name: str, target: str) -> T:
        try:
            return cast(T, import_object(target))
        except TeamVLAError:  # such as a package that is missing: it says what to do
            raise
        except Exception as error:  # whatever somebody's module does when it is imported
            expected = f"{target} to be importable"
            got = told_in_a_line(error)
            raise RegistryError(f"{self.kind} {name!r}", expected, got) from error

    def loadable(self) -> Iterator[T]:
        """All entries; one that cannot be imported is left out, with a warning."""
        for name in self:
            try:
                yield self.get(name)
            except RegistryError as error:
                _LOG.warning("%s", error)

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
                ours = self._targets.setdefault(point.name, point.value)
                if ours != point.value:
                    _LOG.warning(
                        "%s %r of an entry point, %s, is left out: the name is taken by %s",
                        self.kind, point.name, point.value, ours,
                    )  # fmt: skip
        return self._targets

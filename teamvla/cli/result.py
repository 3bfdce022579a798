"""What a command hands back, and how it may dress it for a terminal."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MAX_WIDTH = 100


@dataclass(frozen=True)
class Style:
    """Colours where the reader sees them, and how many columns there are."""

    colour: bool = False
    width: int = _MAX_WIDTH

    @classmethod
    def of(cls, stream: IO[str]) -> Style:
        """Colours on a terminal, unless NO_COLOR or TERM=dumb says otherwise."""
        if not stream.isatty():
            return cls()
        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
        return cls(os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR"), width)

    def bold(self, text: str) -> str:
        return self._sgr("1", text)

    def dim(self, text: str) -> str:
        return self._sgr("2", text)

    def red(self, text: str) -> str:
        return self._sgr("31", text)

    def green(self, text: str) -> str:
        return self._sgr("32", text)

    def yellow(self, text: str) -> str:
        return self._sgr("33", text)

    def cyan(self, text: str) -> str:
        return self._sgr("36", text)

    def _sgr(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text


@dataclass(frozen=True)
class Result:
    """What a command found out.

    Args:
        schema: name and version of the JSON object, ``teamvla.validate/1``.
        data: the JSON object's other keys. Paths and NumPy scalars are converted, NaN and
            infinities become null.
        human: what people read instead, or a function that makes it for their terminal.
        next_command: what to run next.
        exit_code: 0 ok, 1 findings, 128 + signal interrupted.
    """

    schema: str
    data: Mapping[str, Any]
    human: str | Callable[[Style], str] = ""
    next_command: str | None = None
    exit_code: int = 0

    @property
    def status(self) -> str:
        """``ok``, ``findings``, ``error`` or ``interrupted``: the exit code in a word."""
        if self.exit_code >= 128:
            return "interrupted"
        return {0: "ok", 1: "findings"}.get(self.exit_code, "error")


def jsonable(value: Any) -> Any:
    """``value`` as JSON has it: paths and NumPy converted, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy, which is not imported for this
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

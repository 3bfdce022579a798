"""JSON-like data as an indented tree for people; what a file says can't drive the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_FULL = 1 << 30


def tree(value: Any, width: int = _FULL, depth: int = 0) -> Iterator[str]:
    """Lines in the manner of YAML, each cut to ``width`` columns."""
    indent = "  " * depth
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{indent}{printable(key)}:", item, width, depth)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for item in value:
            nested = list(tree(item, width, depth + 1))
            yield f"{indent}- {nested[0].lstrip()}"
            yield from nested[1:]
    else:
        yield cut(f"{indent}{inline(value)}", width)


def _entry(head: str, item: Any, width: int, depth: int) -> Iterator[str]:
    nested = list(tree(item, width, depth + 1))
    if (isinstance(item, dict) and item) or len(nested) > 1 or nested[0].lstrip().startswith("- "):
        yield cut(head, width)
        yield from nested
    else:
        yield cut(f"{head} {inline(item)}", width)


def inline(value: Any) -> str:
    """A scalar, or a list of scalars, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(inline(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}" if not value else f"{len(value)} keys"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value)


def printable(value: Any) -> str:
    """Text without control characters: an escape sequence in a file stays a word."""
    text = str(value)
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def cut(line: str, width: int) -> str:
    """``line`` in at most ``width`` columns."""
    return line if len(line) <= width else f"{line[: width - 3]}..."

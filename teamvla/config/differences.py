"""Two pieces of JSON data, compared line by line."""

from __future__ import annotations

from typing import Any


def differences(left: Any, right: Any, at: str = "") -> list[str]:
    """Lines such as ``control_hz: 20.0 != 50.0``, left before right; empty if they are equal."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted({*left, *right})
        pairs = [(left.get(key), right.get(key), f"{at}.{key}" if at else key) for key in keys]
        return [line for pair in pairs for line in differences(*pair)]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(left, right, strict=True))]
        return [line for pair in pairs for line in differences(*pair)]
    return [] if left == right else [f"{at}: {_short(left)} != {_short(right)}"]


def listed(lines: list[str], most: int = 12) -> str:
    """The lines indented below each other, the rest counted."""
    shown = [f"  {line}" for line in lines[:most]]
    more = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(shown + more)


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else repr(value)

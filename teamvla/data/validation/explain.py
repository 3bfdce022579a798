"""The explanations of all codes in one place: those of rules, and those of judgements."""

from __future__ import annotations

from difflib import get_close_matches

from teamvla.data.codes import CODES
from teamvla.data.explanations import ELSEWHERE, Explained, explained
from teamvla.data.validation.reasons import REASONS
from teamvla.errors import ConfigError

EXPLAINED: dict[str, Explained] = {
    code: explained(code, REASONS.get(code)) for code in sorted({*CODES, *ELSEWHERE})
}
"""Code -> all that there is to say about it."""


def explain(code: str) -> Explained:
    """What a code means, why it matters, how it is found and how to mend it.

    Raises:
        ConfigError: there is no such code.
    """
    known = EXPLAINED.get(code.strip().upper())
    if known is not None:
        return known
    near = get_close_matches(code.upper(), EXPLAINED, 1, 0.5)
    mend = f"Did you mean {near[0]}?" if near else "All codes stand in docs/codes.md."
    raise ConfigError("--explain", "a code such as E107 or W412", repr(code), mend)

"""What validating finds: findings, their levels, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from teamvla.data.validation.explain import EXPLAINED
from teamvla.errors import ConfigError, InputError, SchemaError

Level = Literal["error", "warning", "info"]
_LONGEST, _LONGEST_NAME = 400, 80  # letters of a message and of a field
_NEVER = ("E5", "E6", "C")  # ranges of codes that index, convert and checkpoints have
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
_LEVEL_OF: dict[str, Level] = {"W": "warning", "I": "info"}


class Fault(NamedTuple):
    """Something wrong with an episode, before it is known which file it lies in."""

    code: str
    step: int | None
    field: str | None
    message: str

    @classmethod
    def of(cls, path: Path, error: SchemaError | InputError, step: int | None = None) -> Self:
        """What an error says of a file, without the file's own path."""
        field = error.where.removeprefix(str(path)).removeprefix(": ").removesuffix(".npy")
        message = f"expected {error.expected}, got {error.got}"
        return cls(error.code or "E217", step, field or None, message)


@dataclass(frozen=True)
class Finding:
    """One broken rule, or one judgement.

    Attributes:
        code: of the rule, see :mod:`teamvla.data.codes`.
        path: the file.
        step: the first step at fault, counted from 0; ``None`` if it is not about a step.
        field: the field or metadata key; ``None`` if it is about the file.
        message: what was expected and what was found.
    """

    code: str
    path: Path
    step: int | None
    field: str | None
    message: str

    @classmethod
    def at(cls, path: Path, fault: Fault) -> Self:
        """A fault in its file. What files say about themselves comes to terminals and pages:
        it is cut, and nothing in it moves a cursor."""
        field = None if fault.field is None else printable(fault.field, _LONGEST_NAME)
        return cls(fault.code, path, fault.step, field, printable(fault.message, _LONGEST))

    @property
    def level(self) -> Level:
        """``error``: it contradicts itself or a rule; ``warning``: it may be legal, and hardly
        ever is; ``info``: worth knowing."""
        return _LEVEL_OF.get(self.code[:1], "error")

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {
            "code": self.code,
            "level": self.level,
            "file": str(self.path),
            "step": self.step,
            "field": self.field,
            "message": self.message,
        }


@dataclass(frozen=True)
class CodeSummary:
    """How often one code was found: ``count`` times in ``files`` files."""

    code: str
    level: Level
    title: str
    count: int
    files: int


@dataclass(frozen=True)
class ValidationReport:
    """What was found in a set of episodes.

    Attributes:
        episodes: how many files were looked at.
        findings: in the order of the files.
        leftovers: journals and temporary files of interrupted recordings; not validated.
    """

    episodes: int
    findings: tuple[Finding, ...]
    leftovers: tuple[Path, ...] = ()

    @property
    def invalid(self) -> int:
        """How many files have findings."""
        return len({finding.path for finding in self.findings})

    def count(self, level: Level) -> int:
        """How many findings have this level."""
        return sum(finding.level == level for finding in self.findings)

    def summary(self) -> list[CodeSummary]:
        """One row per code, errors first."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.code, []).append(finding)
        rows = [
            CodeSummary(code, of[0].level, title(code), len(of), len({f.path for f in of}))
            for code, of in found.items()
        ]
        return sorted(rows, key=lambda row: (LEVELS.index(row.level), row.code))


@dataclass(frozen=True)
class Selection:
    """Which findings count.

    Attributes:
        level: the least grave level that counts.
        select: prefixes of codes (``W41``, ``E107``); none means all. A code that stands here
            in full counts at any level.
        ignore: prefixes of codes that do not count. Of a selected and an ignored prefix the
            longer one decides, and the ignored one where they are equally long.
    """

    level: Level = "warning"
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError("--level", " or ".join(LEVELS), repr(self.level))
        for option, prefixes in (("select", self.select), ("ignore", self.ignore)):
            for prefix in prefixes:
                _check_prefix(option, prefix)

    def shows(self, finding: Finding) -> bool:
        """Whether a finding counts."""
        grave = LEVELS.index(finding.level) <= LEVELS.index(self.level)
        if not grave and finding.code not in self.select:
            return False  # a code that was asked for in full counts at any level
        chosen = _longest(self.select, finding.code) if self.select else 0
        ignored = _longest(self.ignore, finding.code)
        return chosen >= 0 and chosen > ignored

    def of(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """The findings that count."""
        return (finding for finding in findings if self.shows(finding))


def _longest(prefixes: Sequence[str], code: str) -> int:
    """Length of the longest prefix of ``code``; -1 if there is none."""
    return max((len(prefix) for prefix in prefixes if code.startswith(prefix)), default=-1)


def _check_prefix(option: str, prefix: str) -> None:
    found = [code for code in EXPLAINED if not code.startswith(_NEVER)]
    if prefix and any(code.startswith(prefix) for code in found):
        return
    near = get_close_matches(prefix.upper(), found, 1, 0.5)
    mend = f"Did you mean {near[0]}?" if near else "See docs/codes.md for all of them."
    if prefix.startswith(_NEVER):
        mend = "Other commands than validate find these."
    raise ConfigError(f"--{option}", "a code or its beginning", repr(prefix), mend)


def printable(text: str, longest: int | None = None) -> str:
    """``text`` without what moves a terminal's cursor or changes its colours, perhaps cut."""
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}..."
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def title(code: str) -> str:
    """What a code means, in one line."""
    return EXPLAINED[code].title if code in EXPLAINED else ""

"""``teamvla validate``."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.errors import ConfigError

if TYPE_CHECKING:
    from teamvla.data.explanations import Explained
    from teamvla.data.validation import Finding, ValidationReport

_MOST_SHOWN = 50
_MARGIN = 2
_NARROW = 30  # columns; a message is never folded narrower
Prefixes = Annotated[
    list[str] | None,
    typer.Option("--select", metavar="CODES", help="Only codes that begin so: W41,E107."),
]
Ignored = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="CODES", help="No codes that begin so."),
]


def validate(
    roots: Annotated[
        list[Path] | None, typer.Argument(metavar="ROOT...", help="Folders of episodes.")
    ] = None,
    level: Annotated[
        str, typer.Option("--level", metavar="LEVEL", help="Least grave: error, warning or info.")
    ] = "warning",
    select: Prefixes = None,
    ignore: Ignored = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at the zip directories only.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CODE", help="Tell what a code means.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Threads; same findings.")
    ] = None,
) -> Result:
    """Check episodes, with judgement.

    Looks at every file below the roots: its structure and checksums, dtypes, shapes,
    finite values and ranges, whether metadata and contract say what the steps show, and
    what is suspicious in an episode or beside the others: frozen cameras, shifted actions,
    swapped arms, copies and more. Exit code 1 if anything was found at the level shown.
    """
    if explain is not None:
        return _explain(explain)
    if not roots:
        mend = "Name one, or a code: teamvla validate --explain W412."
        raise ConfigError("validate", "a folder of episodes", "none", mend)
    from teamvla.data.validation import Selection, validate_roots

    selection = Selection(
        level,  # type: ignore[arg-type]
        _split("--select", select),
        _split("--ignore", ignore),
    )
    report = validate_roots(roots, workers=workers, quick=quick, selection=selection)
    return Result(
        "teamvla.validate/1",
        _data(report, quick),
        human=lambda style: "\n".join(_lines(report, style)),
        next_command=_next(roots, report),
        exit_code=1 if report.findings else 0,
    )


def _split(option: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """``W41,E107`` and repeated options alike."""
    parts = [part.strip().upper() for text in given or () for part in text.split(",")]
    named = tuple(part for part in parts if part)
    if given and not named:  # an unset variable of a script must not mean: all of them
        raise ConfigError(option, "codes or their beginnings", repr(",".join(given)))
    return named


def _data(report: ValidationReport, quick: bool) -> dict[str, Any]:
    return {
        "episodes": report.episodes,
        "invalid": report.invalid,
        "quick": quick,
        "levels": {level: report.count(level) for level in ("error", "warning", "info")},
        "summary": [vars(row) for row in report.summary()],
        "findings": [finding.to_dict() for finding in report.findings],
        "leftovers": [str(path) for path in report.leftovers],
    }


def _next(roots: Sequence[Path], report: ValidationReport) -> str:
    if report.findings:
        return shlex.join(["teamvla", "validate", "--explain", report.summary()[0].code])
    folders = [root if root.is_dir() else root.parent for root in roots]
    return shlex.join(["teamvla", "index", *map(str, folders)])


def _lines(report: ValidationReport, style: Style) -> Iterator[str]:
    from teamvla.data.validation.findings import printable

    if not report.findings:
        yield f"{style.green('ok')}  {report.episodes} episodes, no findings"
        yield from _leftovers(report, style)
        return
    shown = report.findings[:_MOST_SHOWN]
    widths = [
        max(len(cells[at]) for cells in map(_cells, shown)) for at in range(len(_cells(shown[0])))
    ]
    for path, of in groupby(shown, lambda finding: finding.path):
        yield style.cyan(printable(str(path)))
        for finding in of:
            yield from _row(finding, widths, style)
    if len(report.findings) > len(shown):
        yield f"  ... and {len(report.findings) - len(shown)} more; --json lists them all"
    yield ""
    yield from _table(report, style)
    yield _verdict(report, style)
    yield from _leftovers(report, style)


def _cells(finding: Finding) -> tuple[str, str, str]:
    step = "" if finding.step is None else f"step {finding.step}"
    return finding.code, step, finding.field or ""


def _row(finding: Finding, widths: Sequence[int], style: Style) -> Iterator[str]:
    """Code, step and field in columns, the message folded beside them."""
    code, step, field = (
        f"{cell:<{width}}" for cell, width in zip(_cells(finding), widths, strict=True)
    )
    start = "  ".join(part for part in (code, step, field) if part)
    indent = _MARGIN + len(start) + 2
    room = max(_NARROW, style.width - indent)
    first, *rest = textwrap.wrap(finding.message, room) if style.width else [finding.message]
    coloured = start.replace(code, _coloured(finding.level, code, style), 1)
    yield " " * _MARGIN + coloured + "  " + first
    for line in rest:
        yield " " * indent + line


def _coloured(level: str, text: str, style: Style) -> str:
    colour = {"error": style.red, "warning": style.yellow}.get(level, style.dim)
    return colour(text)


def _table(report: ValidationReport, style: Style) -> Iterator[str]:
    rows = report.summary()
    counts = [max(5, *(len(str(row.count)) for row in rows)) for _ in range(2)]
    head = (
        f"{'code':<4}  {'level':<7}  {'count':>{counts[0]}}  {'files':>{counts[1]}}  what is wrong"
    )
    yield style.bold(head)
    for row in rows:
        code = _coloured(row.level, row.code, style)
        numbers = f"{row.count:>{counts[0]}}  {row.files:>{counts[1]}}"
        yield f"{code}  {row.level:<7}  {numbers}  {row.title}"


def _leftovers(report: ValidationReport, style: Style) -> Iterator[str]:
    if count := len(report.leftovers):
        files = "left-over" if count == 1 else "left-overs"
        yield f"{style.dim('info')}  {count} {files} of interrupted recordings: see teamvla repair"


def _verdict(report: ValidationReport, style: Style) -> str:
    counts = ", ".join(
        f"{count} {level}{'s' * (count != 1)}"
        for level in ("error", "warning", "info")
        if (count := report.count(level))
    )
    word = style.red("invalid") if report.count("error") else style.yellow("suspicious")
    return f"{word}  {counts} in {report.invalid} of {report.episodes} episodes"


def _explain(code: str) -> Result:
    from teamvla.data.validation.explain import explain

    found = explain(code)
    return Result(
        "teamvla.explain/1", found.to_dict(), human=lambda style: _explanation(found, style)
    )


def _explanation(found: Explained, style: Style) -> str:
    parts = [f"{style.bold(found.code)}  {found.title}"]
    texts = (("why", found.why), ("found", found.how), ("mend", found.mend))
    for label, text in texts:
        folded = textwrap.fill(text, style.width - 7, break_on_hyphens=False)
        body = textwrap.indent(folded, " " * 7)[7:]
        parts.append(f"{style.cyan(f'{label:<5}')}  {body}")
    return "\n".join(parts)

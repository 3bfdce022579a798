"""``teamvla stats``."""

from __future__ import annotations

import logging
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Roots

if TYPE_CHECKING:
    from teamvla.data.overview import Group, Overview

LOG = logging.getLogger(__name__)
_FIGURES = ("task", "episodes", "success", "steps", "seconds", "length", "size")
_JOINTS = ("joint", "measured", "action", "limits")
_MOST_INSTRUCTIONS, _MOST_CODES = 3, 20
_MARGIN = 16  # columns left of what a contract says


def stats(
    roots: Roots,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page; ./ROOT-stats.html by default."),
    ] = None,
    html: Annotated[bool, typer.Option("--html/--no-html", help="Write the page.")] = True,
    validate: Annotated[
        bool, typer.Option("--validate/--no-validate", help="Look for findings, too.")
    ] = True,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Threads; same figures.")
    ] = None,
) -> Result:
    """Show what episodes hold: a table, and a page to look at.

    The page is one file that holds everything it shows: lengths, first, middle and last
    frames, traces and histograms of the arms, what validate finds. Episodes that cannot be
    read are listed there and left out of the figures.
    """
    from teamvla.data.overview import survey, write_report
    from teamvla.files import check_file, check_folder

    page = None if not html else out or Path(f"{roots[0].resolve().name or 'data'}-stats.html")
    if page is not None:  # before the work, not after it
        check_file(page, "a file to write")
        check_folder(page.parent)
    overview = survey(roots, workers=workers, validate=validate)
    each_ms = 1e3 * overview.read_s / overview.files
    LOG.info("read %d episodes, %.2g ms each", overview.files, each_ms)
    if page is not None:
        write_report(page, overview)
    return Result(
        "teamvla.stats/1",
        _data(overview, page),
        human=lambda style: "\n".join(_lines(overview, page, style)),
        next_command=shlex.join(["teamvla", *_next(roots, overview)]),
        exit_code=0 if overview.episodes else 1,
    )


def _next(roots: list[Path], overview: Overview) -> list[str]:
    contracts = [group.contract for group in overview.groups if group.contract is not None]
    errors = any(finding.code.startswith("E") for finding in overview.findings)
    if errors or any(contract != contracts[0] for contract in contracts):  # index refuses both
        return ["validate", *map(str, roots)]
    return ["index", *map(str, roots)]


def _data(overview: Overview, page: Path | None) -> dict[str, Any]:
    return {
        "roots": overview.roots,
        "files": overview.files,
        "episodes": overview.episodes,
        "successes": sum(group.successes for group in overview.groups),
        "steps": sum(group.steps for group in overview.groups),
        "bytes": sum(group.bytes for group in overview.groups),
        "tasks": [group.to_dict() for group in overview.groups],
        "validated": overview.validated,
        "findings": [finding.to_dict() for finding in overview.findings],
        "report": page,
    }


def _lines(overview: Overview, page: Path | None, style: Style) -> Iterator[str]:
    if overview.groups:
        yield from _table(_FIGURES, [_figures(overview, group) for group in overview.groups], style)
    for group in overview.groups:
        yield from ("", style.cyan(_heading(overview, group)), *_group(group, style))
    yield ""
    yield from _findings(overview, style)
    if page is not None:
        yield f"{style.bold('page')}        {page}"


def _heading(overview: Overview, group: Group) -> str:
    from teamvla.data.overview.words import heading

    return heading(group, overview.groups)


def _figures(overview: Overview, group: Group) -> tuple[str, ...]:
    from teamvla.data.overview.words import share, size

    shortest, median, longest = group.lengths
    return (
        _heading(overview, group),
        str(group.episodes),
        share(group.successes, group.episodes),
        str(group.steps),
        "-" if group.seconds is None else f"{group.seconds:.1f}",
        f"{shortest} - {median:g} - {longest}",
        size(group.bytes),
    )


def _group(group: Group, style: Style) -> Iterator[str]:
    from teamvla.data.overview.words import contract_facts
    from teamvla.data.validation.findings import printable

    for name, value in contract_facts(group):
        yield from _fact(name, printable(value), style)
    told = len(group.instructions) + group.other_instructions
    yield from _fact("prompts", f"{told} different, the most frequent:", style)
    for text, count in group.instructions.most_common(_MOST_INSTRUCTIONS):
        shown = textwrap.shorten(
            printable(text), max(20, style.width - _MARGIN - 12), placeholder=" ..."
        )
        yield f"{'':{_MARGIN}}{count:>5} x  {shown}"
    rows = [row for arm in group.arms for row in _joints(group, arm)]
    if rows:
        yield from (f"  {line}" for line in _table(_JOINTS, rows, style))


def _fact(name: str, value: str, style: Style) -> list[str]:
    lines = textwrap.wrap(value, max(20, style.width - _MARGIN)) or ["-"]
    first = f"  {name}".ljust(_MARGIN) + lines[0]
    return [first, *(f"{'':{_MARGIN}}{line}" for line in lines[1:])]


def _joints(group: Group, arm: str) -> Iterator[tuple[str, ...]]:
    from teamvla.data.overview.words import interval, joint_rows
    from teamvla.data.validation.findings import printable

    for row in joint_rows(group, arm):
        name = textwrap.shorten(printable(f"{arm} {row.joint}"), 24, placeholder="...")
        yield name, interval(row.measured), interval(row.action), interval(row.limits)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]], style: Style) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for number, row in enumerate([names, *rows]):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        line = "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
        yield line if number else style.bold(line)


def _findings(overview: Overview, style: Style) -> Iterator[str]:
    from teamvla.data.validation.findings import title

    label = style.bold("findings")
    if not overview.findings:
        yield f"{label}    none" + ("" if overview.validated else " while reading")
        return
    files = len({finding.path for finding in overview.findings})
    unread = overview.files - overview.episodes
    left_out = f"; {unread} could not be read" if unread else ""
    yield f"{label}    {len(overview.findings)} in {files} of {overview.files} files{left_out}"
    counts = Counter(finding.code for finding in overview.findings)
    for code, count in counts.most_common(_MOST_CODES):
        paint = style.red if code.startswith("E") else style.yellow
        yield f"{'':5}{count:>5} x  {paint(code)}  {title(code)}"
    if len(counts) > _MOST_CODES:
        yield f"{'':12}and {len(counts) - _MOST_CODES} other codes; --json lists them all"

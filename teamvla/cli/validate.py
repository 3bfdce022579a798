"""``teamvla validate``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Roots

if TYPE_CHECKING:
    from teamvla.data.validation import Finding, ValidationReport

_MOST_SHOWN = 50
_COLUMNS = ("step", "field", "code", "finding")


def validate(
    roots: Roots,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, help="Threads; same findings.")
    ] = None,
) -> Result:
    """Check episodes against the schema.

    Looks at every file below the roots: its structure and checksums, dtypes, shapes,
    finite values and ranges, and whether the metadata and the contract say what the
    steps show. Exit code 1 if anything was found.
    """
    from teamvla.data.validation import validate_roots

    report = validate_roots(roots, workers=workers)
    folders = [root if report.findings or root.is_dir() else root.parent for root in roots]
    command = ["teamvla", "validate" if report.findings else "index", *map(str, folders)]
    return Result(
        "teamvla.validate/1",
        {
            "episodes": report.episodes,
            "invalid": report.invalid,
            "findings": [finding.to_dict() for finding in report.findings],
        },
        human=lambda style: "\n".join(_lines(report, style)),
        next_command=shlex.join(command),
        exit_code=1 if report.findings else 0,
    )


def _lines(report: ValidationReport, style: Style) -> Iterator[str]:
    if not report.findings:
        yield f"{style.green('ok')}  {report.episodes} episodes, no findings"
        return
    shown = report.findings[:_MOST_SHOWN]
    rows = [_row(finding) for finding in shown]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    yield style.bold(_aligned(_COLUMNS, widths))
    for index, (finding, row) in enumerate(zip(shown, rows, strict=True)):
        if index == 0 or finding.path != shown[index - 1].path:
            yield style.cyan(str(finding.path))
        yield _aligned(row, widths)
    if len(report.findings) > len(shown):
        yield f"  ... and {len(report.findings) - len(shown)} more; --json lists them all"
    counts = Counter(finding.code for finding in report.findings)
    codes = ", ".join(f"{code} x{count}" for code, count in sorted(counts.items()))
    total = f"{len(report.findings)} findings in {report.invalid} of {report.episodes} episodes"
    yield f"{style.red('invalid')}  {total} ({codes})"
    yield "Record these episodes again or move them away, then validate once more."


def _row(finding: Finding) -> tuple[str, str, str, str]:
    step = "-" if finding.step is None else str(finding.step)
    return step, finding.field or "-", finding.code, finding.message


def _aligned(row: tuple[str, str, str, str], widths: list[int]) -> str:
    step, field, code, message = row
    return f"  {step:>{widths[0]}}  {field:<{widths[1]}}  {code:<{widths[2]}}  {message}"

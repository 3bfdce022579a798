"""``teamvla repair``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Roots

if TYPE_CHECKING:
    from teamvla.data.repair import Leftover, RepairReport

_VERBS = {
    "publish": ("would publish", "published"),
    "recover": ("would recover", "recovered"),
    "remove": ("would remove", "removed"),
    "keep": ("would set aside", "set aside"),
    "leave": ("in use", "in use"),
    "stuck": ("cannot repair", "cannot repair"),
}


def repair(
    roots: Roots,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it; without, only say what would be done.")
    ] = False,
) -> Result:
    """Make episodes of what killed recorders left behind.

    Lists journals and temporary files below the roots and what would be done. With
    --apply a journal of a whole episode is published, any other becomes ID-partial, which
    counts as failed unless its last step says success. What a recorder at work holds is
    left alone. A damaged journal is kept as .ID.part.damaged once the steps before the
    damage are saved. Exit code 1 if anything is left to be done.
    """
    from teamvla.data.repair import repair_roots

    report = repair_roots(roots, apply)
    return Result(
        "teamvla.repair/1",
        {
            "applied": apply,
            "open": len(report.open),
            "leftovers": [one.to_dict() for one in report.leftovers],
        },
        human=lambda style: "\n".join(_lines(report, apply, style)),
        next_command=_next(roots, report, apply),
        exit_code=1 if report.open else 0,
    )


def _next(roots: Sequence[Path], report: RepairReport, apply: bool) -> str:
    wanted = any(one.action != "stuck" for one in report.open)
    command = ["repair", "--apply"] if wanted and not apply else ["validate"]
    return shlex.join(["teamvla", *command, *map(str, roots)])


def _lines(report: RepairReport, apply: bool, style: Style) -> Iterator[str]:
    if not report.leftovers:
        yield f"{style.green('ok')}  nothing was left behind"
        return
    for one in report.leftovers:
        yield style.cyan(str(one.path))
        yield f"  {_line(one)}"
    counts = Counter(_verb(one) for one in report.leftovers)
    total = ", ".join(f"{verb} {number}" for verb, number in sorted(counts.items()))
    word = style.red("left over") if report.open else style.green("ok")
    yield f"{word}  {total}"


def _line(one: Leftover) -> str:
    target = f" -> {one.target}" if one.action in ("publish", "recover") else ""
    steps = f" {one.steps} steps" if one.steps else ""
    kept = f"; the rest is kept in {one.kept}" if one.kept else ""
    return f"{_verb(one)}{steps}{target}: {one.reason}{kept}"


def _verb(one: Leftover) -> str:
    return _VERBS[one.action][one.done]

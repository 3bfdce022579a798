"""``teamvla convert``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teamvla.cli.console import Result, Style

if TYPE_CHECKING:
    from teamvla.data.formats import Conversion

_FORMATS = "episodes, lerobot, aloha or robomimic"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Data set to read.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"{_FORMATS}.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")],
    format_from: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="The source's; found out by default."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", metavar="FILE", help="YAML: which columns are what."),
    ] = None,
    legacy_actions: Annotated[
        str | None,
        typer.Option("--legacy-actions", help="previous or current: actions of version 1."),
    ] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="LeRobot's pictures: video or png.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the report, write nothing.")
    ] = False,
) -> Result:
    """Convert data sets from and to other formats.

    Reads and writes episodes, LeRobot v3, ALOHA and robomimic data sets; rewrites episode
    files of version 1. Ends with a report of what was carried, changed, added or lost,
    which is also written into the output.

    Settings: mapping (and the keys in it, as mapping.control_hz), control_hz, task,
    instruction, contract, legacy_actions, compression (fast, stored or zlib), images (video or
    png), codec (libsvtav1 or libx264), crf (0 to 51), jpeg_channels (rgb or bgr).
    docs/your_robot.md tells what they mean.
    """
    from teamvla.data.formats import convert as run
    from teamvla.data.formats.settings import load_settings

    given = {"legacy_actions": legacy_actions, "images": images}
    config = load_settings(mapping, set_ or [], given)
    done = run(source, to, out, format_from=format_from, config=config, dry_run=dry_run)
    follow = ["teamvla", "validate", str(out)] if done.format_to == "episodes" else None
    return Result(
        "teamvla.convert/1",
        done.to_dict(),
        human=lambda style: "\n".join(_lines(done, style)),
        next_command=shlex.join(follow) if follow and done.written else None,
    )


def _lines(done: Conversion, style: Style) -> Iterator[str]:
    verb = "converted" if done.written else "would convert"
    made = f" ({done.skipped} made before)" if done.skipped else ""
    yield f"{style.bold(verb)}  {done.episodes} episodes{made}: {done.source} -> {done.out}"
    yield f"  {done.format_from} -> {done.format_to}"
    head, *rows = done.report.lines()
    yield style.bold(f"  {head}")
    yield from (f"  {row}" for row in rows)

"""``teamvla index``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Config, Roots, Set, load_project, out_option

if TYPE_CHECKING:
    from teamvla.data.index import Index, IndexConfig


def index(
    roots: Roots,
    out: Annotated[Path | None, out_option("ROOT/.index")] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option("--val-fraction", metavar="SHARE", help="Episodes kept for validation."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read every episode again, whatever stands.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Prepare episodes for training.

    Writes the table of episodes, their split, normalisation statistics and the packed
    cache into ROOT/.index. Running it again reads only what is new or changed, and keeps the
    settings unless others are given.
    """
    from teamvla.data.index import build_index

    settings = _settings(config, set_, val_fraction)
    built = build_index(roots, out, settings, rebuild=rebuild)
    return Result(
        "teamvla.index/1",
        _data(built),
        human=lambda style: "\n".join(_lines(built, style)),
        next_command=shlex.join(_next(roots, out)),
    )


def _settings(
    config: str | None, overrides: list[str] | None, val_fraction: float | None
) -> IndexConfig | None:
    """The settings that were asked for; None if nothing was, so that an index keeps its own."""
    from teamvla.data.index import IndexConfig

    project = load_project(config, overrides).replace("index", val_fraction=val_fraction)
    if config is None and not overrides and val_fraction is None:
        return None
    return project.section("index", IndexConfig)


def _next(roots: list[Path], out: Path | None) -> list[str]:
    data = [part for root in roots for part in ("--data", str(root))]
    return ["teamvla", "train", *data, *(["--set", f"dataset.index={out}"] if out else [])]


def _data(built: Index) -> dict[str, Any]:
    kept = {key: value for key, value in built.summary.items() if key not in ("schema", "contract")}
    return {**kept, "index": str(built.folder), "statistics": built.statistics}


def _lines(built: Index, style: Style) -> Iterator[str]:
    from teamvla.data.statistics import describe

    skipped, size = built.summary["episodes"]["skipped"], built.summary["bytes"]
    left_out = f" ({skipped} failed ones left out)" if skipped else ""
    counts = f"{built.num_episodes} episodes, {built.num_steps} steps{left_out}"
    yield f"{style.bold('indexed')}     {counts} in {built.folder}"
    for task, splits in built.summary["tasks"].items():
        parts = [
            f"{split} {count['episodes']} ({count['steps']} steps)"
            for split, count in splits.items()
            if count["episodes"]
        ]
        yield f"  {task}: {', '.join(parts)}"
    files, cache = size["episodes"] / 1e6, size["cache"] / 1e6
    yield f"{style.bold('size')}        files {files:.1f} MB, cache {cache:.1f} MB"
    yield f"{style.bold('statistics')}  over {built.statistics['count']} train steps"
    yield from (f"  {line}" for line in describe(built.statistics))

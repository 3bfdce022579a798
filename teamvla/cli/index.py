"""``teamvla index``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Config, Roots, Set, load_project, out_option, stands_alone
from teamvla.errors import InputError

if TYPE_CHECKING:
    from teamvla.data.index import Index, IndexConfig

#: unusable episodes that are printed
_SHOWN = 20


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
    skip_invalid: Annotated[
        bool | None,
        typer.Option(
            "--skip-invalid/--no-skip-invalid",
            help="Leave out unusable episodes and list them, or stop at the first.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read cache and episodes again, build nothing.")
    ] = False,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Prepare episodes for training.

    Writes the table of episodes, their split, normalisation statistics and the packed
    cache into ROOT/.index. Running it again reads only what is new or changed, and keeps the
    settings but for those that are given. With --verify nothing is built: the index that
    stands and its episodes are read and compared with their checksums; damage and files that
    changed since give exit code 1.
    """
    from teamvla.data.index import build_index

    given = {"val_fraction": val_fraction, "skip_invalid": skip_invalid}
    if verify:
        others: dict[str, object] = {
            "--rebuild": rebuild or None,
            "--config": config,
            "--set": set_,
        }
        others |= {f"--{key.replace('_', '-')}": value for key, value in given.items()}
        mend = "It builds nothing and has no settings."
        stands_alone("--verify", "to stand alone, but for --out", mend, others)
        return _verified(roots, out)
    settings = _settings(config, set_, given)
    built = build_index(roots, out, settings, rebuild=rebuild)
    return Result(
        "teamvla.index/1",
        _data(built),
        human=lambda style: "\n".join(_lines(built, style)),
        next_command=shlex.join(_next(roots, out, built)),
    )


def _settings(
    config: str | None, overrides: list[str] | None, options: dict[str, Any]
) -> IndexConfig | None:
    """The settings that were asked for; None if nothing was, so that an index keeps its own."""
    from teamvla.data.index import IndexConfig

    project = load_project(config, overrides).replace("index", **options)
    if config is None and not overrides and set(options.values()) == {None}:
        return None
    return project.section("index", IndexConfig)


def _verified(roots: list[Path], out: Path | None) -> Result:
    from teamvla.data.index import Index, index_folder

    folder = index_folder(roots, out)
    if not folder.is_dir():
        mend = "Build it with `teamvla index`."
        raise InputError(str(out or roots[0]), "a folder with an index", "none", mend)
    built = Index.open(folder)
    built.verify()
    damaged = [{"path": path, "arrays": arrays} for path, arrays in built.damaged()]
    changed = list(built.changed_files(roots))

    def human(style: Style) -> str:
        lines = [
            f"{one['path']}: damaged in the cache: {', '.join(one['arrays'])}" for one in damaged
        ]
        lines += [f"{path}: not the file that was indexed" for path in changed]
        read = f"{built.num_episodes} episodes, {built.cache.nbytes / 1e6:.1f} MB"
        found = (f"{len(damaged)} damaged", f"{len(changed)} changed since")
        verdict = ", ".join(found) if damaged or changed else "all as written"
        return "\n".join([*lines, f"{style.bold('verified')}    {read}: {verdict}"])

    where = ["--out", str(out)] if out else []
    again = ["teamvla", "index", *map(str, roots), *where, "--rebuild"]
    return Result(
        "teamvla.index-verification/1",
        {
            "index": str(built.folder),
            "episodes": built.num_episodes,
            "damaged": damaged,
            "changed": changed,
        },
        human=human,
        exit_code=1 if damaged or changed else 0,
        next_command=shlex.join(again if damaged or changed else _next(roots, out, built)),
    )


def _next(roots: list[Path], out: Path | None, built: Index) -> list[str]:
    data = [part for root in roots for part in ("--data", str(root))]
    where = ["--set", f"dataset.index={out}"] if out else []
    return ["teamvla", "train", *_recipe([*built.episodes.tasks()]), *data, *where]


def _recipe(tasks: list[str]) -> list[str]:
    """The configuration of the only task, if one of its name tells how a policy is trained."""
    from teamvla.config.project import Project, shipped_configs

    if len(tasks) != 1 or tasks[0] not in shipped_configs():
        return []
    told = Project.load(tasks[0]).source.data
    return ["--config", tasks[0]] if "model" in told else []


def _data(built: Index) -> dict[str, Any]:
    kept = {key: value for key, value in built.summary.items() if key not in ("schema", "contract")}
    return {
        **kept,
        "index": str(built.folder),
        "statistics": built.statistics,
        "invalid": built.invalid,
    }


def _lines(built: Index, style: Style) -> Iterator[str]:
    from teamvla.data.statistics import describe

    episodes, size = built.summary["episodes"], built.summary["bytes"]
    left_out = f" ({episodes['skipped']} failed ones left out)" if episodes["skipped"] else ""
    counts = f"{built.num_episodes} episodes, {built.num_steps} steps{left_out}"
    yield f"{style.bold('indexed')}     {counts} in {built.folder}"
    for task, splits in built.summary["tasks"].items():
        parts = [
            f"{split} {count['episodes']} ({count['steps']} steps)"
            for split, count in splits.items()
            if count["episodes"]
        ]
        yield f"  {task}: {', '.join(parts)}"
    if episodes["invalid"]:
        yield f"{style.bold('left out')}    {episodes['invalid']} that cannot be used"
        yield from (f"  {one['path']}: [{one['code']}] {one['reason']}" for one in _first(built))
    files, cache = size["episodes"] / 1e6, size["cache"] / 1e6
    count = len(built.summary["shards"])
    shards = f"{count} shard{'s' * (count > 1)}"
    yield f"{style.bold('size')}        files {files:.1f} MB, cache {cache:.1f} MB in {shards}"
    yield f"{style.bold('pictures')}    {built.summary['pictures']}"
    yield f"{style.bold('statistics')}  over {built.statistics['count']} train steps"
    yield from (f"  {line}" for line in describe(built.statistics))


def _first(built: Index) -> list[dict[str, str]]:
    more = len(built.invalid) - _SHOWN
    rest = {"path": f"and {more} more", "code": "--json", "reason": "lists all"}
    return [*built.invalid[:_SHOWN], *([rest] if more > 0 else [])]

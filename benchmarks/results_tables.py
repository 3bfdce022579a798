"""The result tables that ``benchmarks/results.py --table`` prints, of the files of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teamvla.files import read_json

_COST = ("min", "CPU min", "steps", "parameters", "ms/step", "ms/chunk")


def tables(out: Path, names: Sequence[str], tasks: Sequence[str]) -> str:
    """Markdown of all rows that are trained.

    Args:
        out: folder of the rows.
        names: of the rows, in order.
        tasks: of which there are rows of their own.
    """
    done = {name: data for name in names if (data := _read(out / name / "row.json"))}
    done = {name: data for name, data in done.items() if "training" in data}
    controls = {path.stem: _read(path) for path in sorted((out / "controls").glob("*.json"))}
    parts = [_controls_table(done, controls, tasks), _words_table(done)]
    starts = dict.fromkeys(name.partition("/")[0] for name in done if "/" in name)
    parts += [_table(done, start) for start in starts]
    return "\n\n".join(part for part in parts if part) or "no row is finished"


def _markdown(head: tuple[str, ...], lines: list[list[str]]) -> str:
    if not lines:
        return ""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _rate(score: dict[str, Any] | None) -> str:
    """``98/100 [93, 99]``; a dash if there is none."""
    if score is None:
        return "-"
    low, high = (round(100 * bound) for bound in score["interval_95"])
    return f"{score['successes']}/{score['episodes']} [{low}, {high}]"


def _cost(row: dict[str, Any]) -> list[str]:
    training = row["training"]
    return [
        f"{training['minutes']:.1f}", f"{training['minutes_cpu']:.1f}", str(training["steps"]),
        f"{row['parameters'] / 1e6:.2f} M", f"{row['ms_per_step']:.0f}",
        f"{row['ms_per_chunk']:.1f}",
    ]  # fmt: skip


def _controls_table(done: dict[str, Any], controls: dict[str, Any], tasks: Sequence[str]) -> str:
    names = ("expert", "doing nothing", "nearest neighbour")
    lines = []
    for task in tasks:
        if task not in done and task not in controls:
            continue
        row, played = done.get(task), controls.get(task, {})
        scores = row["evaluations"] if row else {}
        multi = done.get("multi", {"evaluations": {}})["evaluations"].get(task)
        cells = [scores.get(task), scores.get(f"{task}, black pictures"), multi]
        rates = map(_rate, [*cells, *(played.get(name) for name in names)])
        lines.append([task, *rates, *(_cost(row) if row else ["-"] * len(_COST))])
    head = ("task", "policy", "black pictures", "multi-task policy", *names, *_COST)
    return _markdown(head, lines)


def _words_table(done: dict[str, Any]) -> str:
    asked = ("sort", "sort, blanked instruction", "sort, other instruction")
    lines = []
    for name in ("sort", "multi"):
        if name in done:
            scores = done[name]["evaluations"]
            lines.append([name, *(_rate(scores.get(each)) for each in asked), *_cost(done[name])])
    head = ("row", "sort, told", "instruction blanked", "the other colour told", *_COST)
    return _markdown(head, lines)


def _table(done: dict[str, Any], start: str) -> str:
    rows = {name: row for name, row in done.items() if name.startswith(f"{start}/")}
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row["tasks"]))
    lines = [
        [name.partition("/")[2], *(_rate(row["evaluations"].get(t)) for t in tasks), *_cost(row)]
        for name, row in rows.items()
    ]
    return _markdown((start, *tasks, *_COST), lines)


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None

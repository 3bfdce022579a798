"""``teamvla quickstart``: the whole path, once."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Config, Seed, Set, Workers, command_line, load_project, out_option
from teamvla.files import check_folder
from teamvla.interrupts import graceful_stop
from teamvla.logs import PROGRESS


def quickstart(
    out: Annotated[Path | None, out_option("runs/quickstart")] = None,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Demonstrations to record.")
    ] = 100,
    eval_episodes: Annotated[
        int, typer.Option("--eval-episodes", min=1, help="Initial states to evaluate on.")
    ] = 100,
    seed: Seed = None,
    workers: Workers = None,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Record, validate, index, train, evaluate, inspect, and write one report.

    Everything lies in runs/quickstart; running it again reuses what is finished.
    """
    from teamvla.quickstart import Quickstart, Stopped

    _one_line_per_stage()
    folder = check_folder(out or Path("runs") / "quickstart")
    with graceful_stop() as stop:
        path = Quickstart(
            folder,
            load_project(config or "train_bc", set_, seed=seed),
            episodes=episodes,
            eval_episodes=eval_episodes,
            workers=workers or min(os.cpu_count() or 1, 8),
            given=_given(config, set_),
            stop=lambda: bool(stop),
        )
        try:
            facts = path.run()
        except Stopped:
            return Result(
                "teamvla.quickstart/1",
                {"out": str(folder)},
                human="stopped; what is finished stays",
                next_command=command_line(
                    "quickstart",
                    out=out,
                    episodes=episodes,
                    eval_episodes=eval_episodes,
                    seed=seed,
                    workers=workers,
                    config=config,
                    set_=set_,
                ),
                exit_code=stop.exit_code,
            )
    data = _summary(folder, facts)
    return Result(
        "teamvla.quickstart/1",
        data,
        human=lambda style: _text(style, data, facts),
        next_command=command_line("ckpt-inspect", path.best),
    )


def _given(config: str | None, overrides: list[str] | None) -> tuple[str, ...]:
    named = ["--config", config] if config else []
    return (*named, *(part for item in overrides or () for part in ("--set", item)))


def _one_line_per_stage() -> None:
    """Hide what the stages say of themselves, except bars and with -v."""
    logger = logging.getLogger("teamvla")
    if logger.level == logging.INFO:
        for handler in logger.handlers:
            handler.addFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    if record.name == PROGRESS.name:
        return record.levelno < logging.INFO
    ours = record.name.startswith(("teamvla.quickstart", "teamvla.cli"))
    return ours or record.levelno >= logging.WARNING


def _summary(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    scores = facts["evaluate"]["scores"]
    policy = scores["trained policy"]
    return {
        "out": str(folder),
        "report": str(folder / "report.html"),
        "checkpoint": str(folder / "best.ckpt"),
        **{key: policy[key] for key in ("success_rate", "successes", "episodes", "interval_95")},
        "baselines": {name: s["success_rate"] for name, s in scores.items() if s is not policy},
        "seconds": {name: fact["seconds"] for name, fact in facts.items()},
    }


def _text(style: Style, data: dict[str, Any], facts: dict[str, Any]) -> str:
    from teamvla.evaluation.suites import Score

    scores = {n: Score.from_dict(s) for n, s in facts["evaluate"]["scores"].items()}
    minutes = sum(data["seconds"].values()) / 60
    said = {name: str(score) for name, score in scores.items()}
    said |= {"checkpoint": data["checkpoint"]}
    said |= {"report": f"{data['report']}  ({minutes:.1f} min in all)"}
    width = max(map(len, said))
    return "\n".join(f"{style.bold(name.ljust(width))}  {text}" for name, text in said.items())

"""``teamvla record``: demonstrations of the scripted expert."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Config, Seed, Set, Workers, command_line, load_project, out_option
from teamvla.config import shipped_configs
from teamvla.evaluation.statistics import show_rate, wilson_interval
from teamvla.files import check_folder
from teamvla.interrupts import graceful_stop
from teamvla.record import RecordConfig, Recorder, Recording
from teamvla.record import record as record_episodes
from teamvla.sim.tasks import TaskConfig


def record(
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="What the arms do; lift by default.")
    ] = None,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Demonstrations of this seed to have.")
    ] = 100,
    out: Annotated[Path | None, out_option("data")] = None,
    seed: Seed = None,
    workers: Workers = None,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Record scripted demonstrations in the simulator.

    The same settings and seed give the same bytes for any number of workers, and
    running it again continues an interrupted recording.
    """
    name = config or task or "lift"
    # A task without a shipped configuration is another package's, or mistyped: TASKS will tell.
    shipped = config is not None or name in shipped_configs()
    project = load_project(name if shipped else None, set_, seed=seed).replace("task", name=task)
    recorder = Recorder(
        project.section("task", TaskConfig),
        project.section("record", RecordConfig),
        check_folder(out or Path(project.session.data_root)),
        project.session.seed,
    )
    began = time.perf_counter()
    with graceful_stop() as stop:
        total = record_episodes(recorder, episodes, workers=workers or 1, stop=lambda: bool(stop))
    data = _summary(recorder, total, time.perf_counter() - began)
    again = command_line(
        "record", task=recorder.task.name, episodes=episodes, out=recorder.out, seed=recorder.seed,
        workers=workers, config=config, set_=set_,
    )  # fmt: skip
    return Result(
        "teamvla.record/1",
        data,
        human=lambda style: _text(style, data, total),
        next_command=again if total.interrupted else command_line("validate", recorder.out),
        exit_code=stop.exit_code if total.interrupted else 0,
    )


def _summary(recorder: Recorder, total: Recording, seconds: float) -> dict[str, Any]:
    sizes = [one.path.stat().st_size for one in total.kept if one.path is not None]
    return {
        "task": recorder.task.name,
        "out": str(recorder.out),
        "seed": recorder.seed,
        "recorded": len(total.kept),
        "existing": sum(one.existed for one in total.kept),
        "episodes": total.attempts,
        "successes": total.successes,
        "success_rate": total.successes / total.attempts if total.attempts else 0.0,
        "interval_95": list(wilson_interval(total.successes, total.attempts)),
        "steps": total.steps,
        "bytes": sum(sizes),
        "seconds": round(seconds, 3),
        "steps_per_s": round(total.new_steps / seconds, 1),
    }


def _text(style: Style, data: dict[str, Any], total: Recording) -> str:
    kept = f"{data['recorded']} episodes, {data['steps']} steps, {data['bytes'] / 1e6:.1f} MB"
    again = f" ({data['existing']} were there already)" if data["existing"] else ""
    lines = [
        f"{style.bold('recorded')}  {kept} in {data['out']}{again}",
        f"{style.bold('expert')}    {show_rate(total.successes, total.attempts)}",
        f"{style.bold('speed')}     {data['steps_per_s']:.0f} steps/s, {data['seconds']:.1f} s",
    ]
    return "\n".join(lines)

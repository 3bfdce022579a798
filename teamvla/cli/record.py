"""``teamvla record``: demonstrations of an expert."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import (
    Config,
    EnvId,
    Seed,
    Set,
    TaskName,
    command_line,
    load_task,
    out_option,
)
from teamvla.evaluation.statistics import show_rate, wilson_interval
from teamvla.files import check_folder
from teamvla.interrupts import graceful_stop
from teamvla.record import RecordConfig, Recorder, Recording, Shard
from teamvla.record import record as record_episodes
from teamvla.record.room import counted, show_bytes
from teamvla.sim.tasks import TaskConfig

LOG = logging.getLogger(__name__)
#: reasons of failures that are printed
_SHOWN = 5


def record(
    task: TaskName = None,
    env: EnvId = None,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Demonstrations of this seed to have.")
    ] = 100,
    out: Annotated[Path | None, out_option("data")] = None,
    seed: Seed = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-w",
            min=1,
            help="Episodes at a time; same bytes. 1 by default; with ray all processors.",
        ),
    ] = None,
    executor: Annotated[
        Literal["processes", "ray"],
        typer.Option("--executor", help="Processes here, or a Ray cluster that runs already."),
    ] = "processes",
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N", help="Only part I of N, from 0/N: of an array of jobs."
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option("--expert", metavar="MODULE:CLASS", help="Your expert, made with the env."),
    ] = None,
    keep_failures: Annotated[
        bool | None,
        typer.Option(
            "--keep-failures/--drop-failures",
            help="Keep episodes without success; dropped by default. Counted either way.",
        ),
    ] = None,
    min_success: Annotated[
        float | None,
        typer.Option("--min-success", min=0, max=1, help="Exit with 1 if the rate is lower."),
    ] = None,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Record demonstrations of an expert in a simulator.

    The same settings and seed give the same bytes for any number of workers, shards and
    machines, and running it again continues an interrupted recording. Attempts in which the
    expert or the simulator could not go on are dropped and counted, and give exit code 1.
    """
    part = Shard() if shard is None else Shard.parse(shard)
    project = load_task(task, env, config, set_, seed=seed)
    project = project.replace("record", expert=expert, keep_failures=keep_failures)
    recorder = Recorder(
        project.section("task", TaskConfig),
        project.section("record", RecordConfig),
        check_folder(out or Path(project.session.data_root)),
        project.session.seed,
    )
    again = command_line(
        "record", task=task if env or config else recorder.task.name, env=env, episodes=episodes,
        out=recorder.out, seed=recorder.seed, workers=workers,
        executor=None if executor == "processes" else executor, shard=shard, expert=expert,
        min_success=min_success, config=config, set_=set_,
    )  # fmt: skip
    if keep_failures is not None:
        again += " --keep-failures" if keep_failures else " --drop-failures"
    began = time.perf_counter()
    try:
        with graceful_stop() as stop:
            total = record_episodes(
                recorder, episodes, shard=part, workers=workers, executor=executor,
                stop=lambda: bool(stop),
            )  # fmt: skip
    except KeyboardInterrupt:
        LOG.warning("what is finished stays; go on with: %s", again)
        raise
    data = _summary(recorder, part, total, time.perf_counter() - began)
    low = min_success is not None and total.attempts > 0 and total.success_rate < min_success
    return Result(
        "teamvla.record/1",
        data | {"min_success": min_success},
        human=lambda style: _text(style, data, total, min_success if low else None),
        next_command=again if total.interrupted else _next(recorder, total),
        exit_code=stop.exit_code if total.interrupted else int(low or total.broken > 0),
    )


def _next(recorder: Recorder, total: Recording) -> str | None:
    return command_line("validate", recorder.out) if total.kept else None


def _summary(recorder: Recorder, shard: Shard, total: Recording, seconds: float) -> dict[str, Any]:
    sizes = [one.path.stat().st_size for one in total.kept if one.path is not None]
    return {
        "task": recorder.task_name,
        "out": str(recorder.out),
        "seed": recorder.seed,
        "shard": [shard.index, shard.count],
        "expert": recorder.config.expert or "scripted",
        "recorded": len(total.kept),
        "existing": sum(one.existed for one in total.kept),
        "episodes": total.attempts,
        "attempts": total.attempts,
        "successes": total.successes,
        "success_rate": total.success_rate,
        "interval_95": list(wilson_interval(total.successes, total.attempts)),
        "failures": dict(total.failures.most_common()),
        "broken": total.broken,
        "given_up": total.given_up,
        "steps": total.steps,
        "bytes": sum(sizes),
        "seconds": round(seconds, 3),
        "steps_per_s": round(total.new_steps / seconds, 1),
    }


def _text(style: Style, data: dict[str, Any], total: Recording, missed: float | None) -> str:
    if not (total.attempts or total.interrupted):
        index, count = data["shard"]
        return f"nothing to record: no episode falls to shard {index}/{count}"
    kept = f"{counted(data['recorded'], 'episode')}, {counted(data['steps'], 'step')}"
    again = f" ({data['existing']} there already)" if data["existing"] else ""
    size, speed = show_bytes(data["bytes"]), f"{data['steps_per_s']:.0f} steps/s"
    lines = [
        f"{style.bold('recorded')}  {kept}, {size} in {data['out']}{again}",
        f"{style.bold('expert')}    {show_rate(total.successes, total.attempts)}",
    ]
    if total.new_steps:
        lines.append(f"{style.bold('speed')}     {speed}, {data['seconds']:.1f} s")
    lines += [style.red(line) for line in _findings(total, missed)]
    reasons = total.failures.most_common()
    lines += [f"  {count} x {reason}" for reason, count in reasons[:_SHOWN]]
    if len(reasons) > _SHOWN:
        lines.append(f"  and {len(reasons) - _SHOWN} more reasons, all in --json")
    return "\n".join(lines)


def _findings(total: Recording, missed: float | None) -> Iterator[str]:
    if missed is not None:
        yield f"the expert is below --min-success {missed:g}"
    if total.broken:
        yield f"{counted(total.broken, 'attempt')} broke off, dropped"
    if total.is_hopeless:
        yield "every attempt broke off, so the rest was not tried: mend the expert or simulator"
    elif total.given_up:
        yield f"{counted(len(total.given_up), 'episode')} given up: every attempt broke off"

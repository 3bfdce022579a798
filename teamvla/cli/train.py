"""``teamvla train``: behaviour cloning from an indexed dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import (
    Config,
    Device,
    Seed,
    Set,
    command_line,
    load_project,
    out_option,
    require_tasks,
    stands_alone,
)  # fmt: skip
from teamvla.interrupts import graceful_stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teamvla.config import Project
    from teamvla.train.estimate import Estimate
    from teamvla.train.runs import Run
    from teamvla.train.trainer import TrainingState


def train(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="ROOT", help="Folder of episodes; repeatable."),
    ] = None,
    out: Annotated[Path | None, out_option("runs/TIME")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            metavar="NAME",
            help="What ranks the checkpoints, in place of lift; repeatable: by mean success.",
        ),
    ] = None,
    config: Config = None,
    device: Device = None,
    seed: Seed = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue a run, bit by bit.")
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", metavar="CKPT", help="Start from its weights.")
    ] = None,
    set_: Set = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only tell parameters, steps, memory and time."),
    ] = False,
) -> Result:
    """Train a policy; checkpoints are ranked by rollouts in the simulator.

    Ctrl-C, TERM and USR1 save a checkpoint first and tell how to go on.
    """
    if dry_run:
        stands_alone("--dry-run", "a training to begin", "A run that goes on is known.",
                     {"--resume": resume})  # fmt: skip
        project = _project(data, task, config, set_, seed=seed, device=device)
        given = {"data": data, "out": out, "task": task, "config": config, "device": device,
                 "seed": seed, "init_from": init_from, "set": set_}  # fmt: skip
        return _estimated(project, init_from, command_line("train", **given))
    from teamvla.train import bc_trainer
    from teamvla.train.runs import finished_state, resume_run, start_run

    with graceful_stop() as stop:
        if resume is not None:
            stands_alone(
                "--resume", "to stand alone (only --device and --data may go with it)",
                "A resumed run keeps its own configuration; a longer one starts with --init-from.",
                {"--out": out, "--task": task, "--config": config, "--seed": seed,
                 "--init-from": init_from, "--set": set_},
            )  # fmt: skip
            if (state := finished_state(resume)) is not None:
                return _already_finished(resume, state)
            run = resume_run(resume, device, data)
        else:
            project = _project(data, task, config, set_, seed=seed, device=device)
            run = start_run(project, out, init_from)
        finished = bc_trainer.train(run, stop=lambda: bool(stop))
    again = command_line("train", resume=run.folder, device=device, data=data if resume else None)
    return Result(
        "teamvla.train/1",
        _data(run.folder, finished, run.state),
        human=lambda style: _text(style, run, finished),
        next_command=_measure(run) if finished else again,
        exit_code=0 if finished else stop.exit_code,
    )


def _project(
    data: list[str] | None,
    task: list[str] | None,
    config: str | None,
    overrides: list[str] | None,
    **session: Any,
) -> Project:
    """The configuration that the options make."""
    require_tasks(task or ())
    first, ranked = (task[0], _ranked_by(task)) if task else (None, [])
    given = [*ranked, *(overrides or ())]
    project = load_project(config or "train_bc", given, first, **session)
    return project.replace("dataset", roots=data)


def _estimated(project: Project, init_from: Path | None, command: str) -> Result:
    from teamvla.train.estimate import estimate

    found = estimate(project, init_from)
    return Result(
        "teamvla.train-estimate/1",
        found.to_dict(),
        human=lambda style: "\n".join(_estimate_lines(style, found)),
        next_command=command,
    )


def _estimate_lines(style: Style, found: Estimate) -> Iterator[str]:
    total, trained = found.parameters
    yield f"{style.bold('model')}     {found.model}, {found.precision}, {found.device}"
    yield f"{'':10}{'parameters':<16} {'total':>15} {'trained':>15}"
    for name, (count, taught) in found.parts.items():
        yield f"{'':10}{name:<16} {count:>15,} {taught:>15,}"
    share = f"{trained / total:.1%}"
    yield f"{'':10}{'all':<16} {total:>15,} {trained:>15,} {share:>7}"
    yield (
        f"{style.bold('steps')}     {found.steps_per_epoch:,} an epoch, {found.steps:,} in "
        f"{found.epochs} epochs, {found.batch_size} samples each"
    )
    parts = ", ".join(f"{name} {_mb(size)}" for name, size in found.memory.items() if size)
    more = "" if found.unknown is None else " and what a step computes"
    yield f"{style.bold('memory')}    {_mb(found.total_bytes)}{more} beside the process itself"
    yield f"{'':10}{parts}"
    if found.unknown is not None:
        yield f"{style.bold('time')}      not known: {found.unknown}"
        return
    took = found.seconds
    yield (
        f"{style.bold('time')}      about {_span(found.total_seconds)} on {found.threads} threads, "
        f"and the rollouts; {1000 * took['step']:.0f} ms a step"
    )


def _mb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _measure(run: Run) -> str:
    """What to do with the best checkpoint: play what its data show, or look at it."""
    from teamvla.sim.tasks import TASKS, TaskConfig
    from teamvla.train.ranking import other_than_simulated

    best, shown = run.checkpoints / "best.ckpt", run.meta["tasks"]
    task = run.project.section("task", TaskConfig)
    configured, known = task.task_name, [name for name in shown if name in TASKS]
    own_robot = other_than_simulated(run.learner.policy.contract, task)
    if own_robot or (configured not in shown and not known):
        return command_line("ckpt-inspect", best)
    return command_line("eval", best, task=None if configured in shown else known[0])


def _already_finished(folder: Path, state: TrainingState) -> Result:
    """The answer to resuming what has ended."""
    from teamvla.train.journal import MetricsJournal

    MetricsJournal(folder / "metrics.jsonl").rewind(state.step)  # as any resume mends it
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    said = f"already finished ({state.epoch} epochs); a longer one starts with --init-from {last}"
    return Result(
        "teamvla.train/1",
        _data(folder, finished=True, state=state),
        human=said,
        next_command=command_line("ckpt-inspect", best if best.exists() else last),
    )


def _data(folder: Path, finished: bool, state: TrainingState) -> dict[str, Any]:
    checkpoints = folder / "checkpoints"
    best = checkpoints / "best.ckpt"
    return {
        "run": str(folder),
        "best": str(best) if best.exists() else None,
        "last": str(checkpoints / "last.ckpt"),
        "finished": finished,
        "state": state.to_dict(),
    }


def _ranked_by(tasks: list[str]) -> list[str]:
    """The setting that ``--task`` stands for, beside the section that the first of them fills."""
    names = json.dumps(tasks) if len(tasks) > 1 else "null"
    return [f"trainer.rollout_tasks={names}"]


def _text(style: Style, run: Run, finished: bool) -> str:
    state = run.state
    done = "trained" if finished else "stopped"
    lines = [
        f"{style.bold(done)}   {state.epoch}/{run.config.epochs} epochs, {state.step} steps, "
        f"{state.seconds / 60:.1f} min",
    ]
    if state.best_epoch is not None:
        rank = []
        if state.best_success is not None:
            rank.append(f"{state.best_success:.0%} in rollouts")
        if state.best_val_loss is not None:
            rank.append(f"validation loss {state.best_val_loss:.4f}")
        why = ", ".join(rank) or "the last; nothing ranks them"
        lines.append(f"{style.bold('best')}      epoch {state.best_epoch}: {why}")
    lines.append(f"{style.bold('run')}       {run.folder}")
    return "\n".join(lines)

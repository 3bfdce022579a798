"""``teamvla replay``: a recorded episode to look at, and executed once more."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import (
    Config,
    Set,
    command_line,
    load_project,
    out_option,
    own_tasks_explained,
)
from teamvla.errors import ConfigError
from teamvla.files import check_folder, publish

if TYPE_CHECKING:
    from teamvla.data import Episode
    from teamvla.replay import Replayed
    from teamvla.sim.interface import RobotEnv

LOG = logging.getLogger(__name__)
#: what may differ between versions of the software, in each field's unit
_OTHER_VERSIONS = 1e-3


def replay(
    episode: Annotated[Path, typer.Argument(metavar="EPISODE", help="An episode file.")],
    out: Annotated[Path | None, out_option("the episode's folder")] = None,
    picture: Annotated[
        bool, typer.Option("--picture/--no-picture", help="Write EPISODE.webp of its cameras.")
    ] = True,
    execute: Annotated[
        bool, typer.Option("--execute/--no-execute", help="Execute its actions in the simulator.")
    ] = True,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            metavar="X",
            help="Exit with 1 if a field but a picture is further off. 0, which allows none, "
            f"by default; {_OTHER_VERSIONS:g} for what other versions recorded.",
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Show an episode, and execute its actions again from where it began.

    Episodes of this recorder are repeated to the bit by the versions that recorded them, the
    noise on their commands included. --set changes the recorded settings. An episode that names
    no simulator is only shown; with --config it is executed in that configuration's environment.
    """
    from teamvla.data import read_episode

    recorded = read_episode(episode)
    target = _picture(recorded, out or episode.parent) if picture else None
    done = _execute(recorded, config, set_) if execute else None
    limit = tolerance
    if done is not None and limit is None:
        limit = 0.0 if done.same_software else _OTHER_VERSIONS
    failed = done is not None and limit is not None and not done.within(limit)
    data = {
        "episode": str(episode),
        "task": recorded.task,
        "steps": recorded.num_steps,
        "success": recorded.success,
        "picture": None if target is None else str(target),
        "executed": None if done is None else _facts(done, limit),
    }
    return Result(
        "teamvla.replay/1",
        data,
        human=lambda style: _text(style, target, done, limit, failed),
        next_command=command_line("stats", _root(episode, recorded)),
        exit_code=int(failed),
    )


def _root(path: Path, episode: Episode) -> Path:
    return path.parent.parent if path.parent.name == episode.task else path.parent


def _picture(episode: Episode, folder: Path) -> Path | None:
    from teamvla.replay import animation, cameras_of

    if not cameras_of(episode):
        LOG.info("%s has no pictures to show", episode.path)
        return None
    target = check_folder(folder) / f"{episode.path.stem}.webp"
    content = animation(episode)
    return publish(target, lambda file: file.write(content), replace=True)


def _execute(episode: Episode, config: str | None, set_: list[str] | None) -> Replayed | None:
    from teamvla.replay import execute
    from teamvla.sim import make_env
    from teamvla.sim.tasks import TaskConfig

    if config is not None:
        env = make_env(load_project(config, set_).section("task", TaskConfig))
    elif (known := _recorded_env(episode, set_)) is not None:
        env = known
    else:
        told = "%s names no simulator (task_config): it is shown, not executed"
        LOG.warning(told, episode.path)
        return None
    try:
        return execute(episode, env)
    finally:
        env.close()


def _recorded_env(episode: Episode, set_: list[str] | None) -> RobotEnv | None:
    from teamvla.replay import open_recorded_env

    with own_tasks_explained():
        env = open_recorded_env(episode.meta, str(episode.path), set_ or ())
    if env is None and set_:
        got = f"{episode.path}, which names no simulator"
        raise ConfigError("--set", "--config NAME beside it, or recorded settings", got)
    return env


def _facts(done: Replayed, tolerance: float | None) -> dict[str, Any]:
    return {
        "exact": done.is_exact,
        "steps": done.outcome.steps,
        "success": done.outcome.success,
        "failure": done.outcome.failure,
        "start": done.start,
        "noise": done.noise,
        "same_software": done.same_software,
        "not_compared": list(done.not_compared),
        "joints": done.joints,
        "joints_unit": done.unit,
        "fields": {
            one.field: {"largest": one.largest, "first_step": one.step} for one in done.deviations
        },
        "tolerance": tolerance,
    }


def _text(
    style: Style, target: Path | None, done: Replayed | None, tolerance: float | None, failed: bool
) -> str:
    lines = [] if target is None else [f"{style.bold('picture')}   {target}"]
    if done is None:
        return "\n".join(lines)
    verdict = "the same to the bit" if done.is_exact else f"tolerance {tolerance:g}"
    colour = style.red if failed else style.green
    lines.append(f"{style.bold('executed')}  {colour(verdict)}: {_course(done)}")
    lines += [f"  q_{arm}  {apart:.3g} {done.unit}" for arm, apart in done.joints.items()]
    off = [one for one in done.deviations if one.largest and one.field[2:] not in done.joints]
    lines += [f"  {one.field}  {one.largest:.3g} from step {one.step} on" for one in off]
    if done.not_compared:
        lines.append(f"  not compared, as the replay has none: {', '.join(done.not_compared)}")
    if done.outcome.failure is not None:
        lines.append(f"  broke off: {done.outcome.failure}")
    return "\n".join(lines)


def _course(done: Replayed) -> str:
    steps = f"{done.outcome.steps} of {done.recorded_steps} steps"
    again = "success" if done.outcome.success else "no success"
    before = "with" if done.recorded_success else "without"
    noise = ", its noise laid over again" if done.noise else ""
    return f"{steps}, {again} (recorded {before}), from {done.start}{noise}"

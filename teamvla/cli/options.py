"""Options and arguments that several commands share, so that they read alike everywhere."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.errors import ConfigError
from teamvla.seeds import MAX_SEED

if TYPE_CHECKING:
    from teamvla.config import Project

Config = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="NAME", help="YAML file, or a shipped configuration."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random; 0 by default."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; cpu by default."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-w", min=1, help="Worker processes; same results. 1 by default."),
]
TaskName = Annotated[
    str | None, typer.Option("--task", "-t", help="What is done; lift by default.")
]
EnvId = Annotated[
    str | None, typer.Option("--env", metavar="ID", help="Gymnasium id, in place of --task.")
]
Roots = Annotated[list[Path], typer.Argument(metavar="ROOT...", help="Folders of episodes.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint file.")]


def out_option(default: str) -> Any:
    """``--out`` of a command that writes to ``default`` without it."""
    help = f"Where to write; {default} by default."
    return typer.Option("--out", "-o", metavar="DIR", help=help)


def stands_alone(option: str, expected: str, mend: str, *others: object) -> None:
    """Raise ConfigError if any of ``others`` was given beside ``option``."""
    if any(other is not None and other != [] for other in others):
        raise ConfigError(option, expected, "other options", mend)


def load_project(
    config: str | None,
    overrides: Sequence[str] | None = None,
    task: str | None = None,
    **session: Any,
) -> Project:
    """The configuration of a command, with its session options (``None`` leaves one alone).

    ``log_level`` of the configuration takes effect unless -q or -v was given.

    Args:
        task: a shipped configuration whose task takes the place of that of ``config``.

    Raises:
        ConfigError: with one line per problem.
    """
    from teamvla.config import Project  # pydantic: ckpt-inspect does without

    project = Project.load(config)
    if task is not None:
        project = project.transplant("task", Project.load(task))
    project = project.override(overrides or ()).with_session(**session)
    logger = logging.getLogger("teamvla")
    if logger.level == logging.INFO:
        logger.setLevel(project.session.log_level.upper())
    return project


def load_task(
    task: str | None,
    env: str | None,
    config: str | None,
    overrides: Sequence[str] | None = None,
    **session: Any,
) -> Project:
    """The configuration that ``--task``, ``--env`` or ``--config`` choose; lift without any.

    Raises:
        ConfigError: ``--env`` beside one of the others.
        RegistryError: there is no environment of that id.
    """
    from teamvla.config import shipped_configs

    if env is not None:
        from teamvla.sim.adapters.ids import config_for

        mend = "The id decides on both."
        stands_alone("--env", "neither --task nor --config beside it", mend, task, config)
        return load_project(config_for(env), overrides, **session)
    name = config or task or "lift"
    # A task without a shipped configuration is another package's, or mistyped: TASKS will tell.
    shipped = config is not None or name in shipped_configs()
    return load_project(name if shipped else None, overrides, **session).replace("task", name=task)


def command_line(name: str, *arguments: object, **options: object) -> str:
    """A command as it can be pasted into a shell; options that are None are left out.

    A list stands for an option that is repeated.
    """
    parts = ["teamvla", name, *map(str, arguments)]
    for key, value in options.items():
        option = f"--{key.strip('_').replace('_', '-')}"
        for item in value if isinstance(value, list | tuple) else [value]:
            parts += [] if item is None else [option, str(item)]
    return shlex.join(parts)

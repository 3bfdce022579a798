"""Options and arguments that several commands share, so that they read alike everywhere."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.errors import ConfigError, InputError, RegistryError
from teamvla.seeds import MAX_SEED

if TYPE_CHECKING:
    from teamvla.config import Project

_OWN_TASK = (
    "The command line knows a task of your own once an installed package announces it as an "
    "entry point of the group teamvla.tasks (docs/simulation.md)"
)
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
    str | None,
    typer.Option(
        "--task", "-t", metavar="NAME",
        help="lift, handoff, drawer, sort, recall, driving, or one of your own; lift by default.",
    ),
]  # fmt: skip
EnvId = Annotated[
    str | None, typer.Option("--env", metavar="ID", help="Gymnasium id, in place of --task.")
]
Roots = Annotated[list[Path], typer.Argument(metavar="ROOT...", help="Folders of episodes.")]


def out_option(default: str) -> Any:
    """``--out`` of a command that writes to ``default`` without it."""
    help = f"Where to write; {default} by default."
    return typer.Option("--out", "-o", metavar="DIR", help=help)


def stands_alone(option: str, expected: str, mend: str, others: Mapping[str, object]) -> None:
    """Raise ConfigError if any of ``others``, by their names, was given beside ``option``."""
    given = [name for name, value in others.items() if value is not None and value != []]
    if given:
        raise ConfigError(option, expected, " and ".join(given), mend)


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
        ConfigError: ``--env`` beside one of the others; a task that is not that of the
            configuration, or that cannot do without one.
        RegistryError: there is no environment of that id, or no such task.
    """
    from teamvla.config import shipped_configs
    from teamvla.sim.tasks import TASKS

    if env is not None:
        from teamvla.sim.adapters.ids import config_for

        mend = "The id decides on both."
        others = {"--task": task, "--config": config}
        stands_alone("--env", "neither --task nor --config beside it", mend, others)
        return load_project(config_for(env), overrides, **session)
    name = config or task or "lift"
    # A task without a shipped configuration is another package's, or mistyped: TASKS tells.
    shipped = config is not None or name in shipped_configs()
    if not shipped:
        with own_tasks_explained("command line: error: "):
            TASKS.get(name)
    project = load_project(name if shipped else None, overrides, **session)
    project = project.replace("task", name=task)
    if shipped:
        _require_task_of(name, project)
    else:
        _require_settings(name, project)
    return project


def require_tasks(names: Sequence[str]) -> None:
    """Refuse a name that is no configured task, nor a file, naming the tasks alone.

    Raises:
        InputError: with the nearest of them.
    """
    from teamvla.config import shipped_configs
    from teamvla.registry import did_you_mean
    from teamvla.sim.tasks import TASKS

    shipped = shipped_configs()
    for name in names:
        if name.removesuffix(".yaml") not in shipped and not Path(name).is_file():
            known = did_you_mean(name, [task for task in shipped if task in TASKS])
            raise InputError(
                f"--task {name}", "a task, or a file that configures one", "neither", known
            )


def _require_task_of(config: str, project: Project) -> None:
    """Tell in one line what would be an unknown key per line: those of another task."""
    from teamvla.config import Project
    from teamvla.sim.tasks import TASKS

    own, chosen = _task_of(Project.load(config)), _task_of(project).get("name", "lift")
    name = own.get("name", "lift")
    if len(own) > 1 and name != chosen and chosen in TASKS:
        raise ConfigError(
            f"{Path(config).stem}.yaml configures the task {name}, not {chosen}; "
            "give one of --task and --config, and no task.name"
        )


def _require_settings(task: str, project: Project) -> None:
    """Tell whoever names a task that needs settings how to give them."""
    from teamvla.sim.tasks import TASKS

    given = _task_of(project)
    fields = TASKS.get(task).Config.model_fields.items()
    if missing := [key for key, field in fields if field.is_required() and key not in given]:
        expected, mend = f"task.{missing[0]} as well", "Give --env ID, or a --config that has it."
        raise ConfigError(f"--task {task}", expected, "nothing", mend)


def _task_of(project: Project) -> dict[str, Any]:
    section = project.source.data.get("task")
    return section if isinstance(section, dict) else {}


@contextmanager
def own_tasks_explained(prefix: str = "") -> Iterator[None]:
    """Tell whoever names an unknown task in the block how one of their own becomes known."""
    try:
        yield
    except RegistryError as error:
        mend = f"{error.mend}. {_OWN_TASK}"
        raise RegistryError(prefix + error.where, error.expected, error.got, mend) from None


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

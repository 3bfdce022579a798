"""The root of the command line: a table of commands, and one boundary for exceptions.

A command's module is imported only when that command runs (or is asked for its help
or completion), so none pays for another's imports. Every command and group gets the
same output options; what a command returns is described in ``teamvla.cli.console``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from teamvla import __version__
from teamvla.cli.console import Console, Result, Style
from teamvla.cli.loglines import remove
from teamvla.errors import TeamVLAError
from teamvla.registry import import_object

PROGRAM = "teamvla"


class Entry(NamedTuple):
    """One command of the table: where it is, and how the overview lists it."""

    target: str
    help: str
    panel: str


_HOME = "teamvla.cli"
COMMANDS = {
    "record": Entry(f"{_HOME}.record:record", "Record scripted demonstrations.", "Data"),
    "validate": Entry(f"{_HOME}.validate:validate", "Check episodes against the schema.", "Data"),
    "index": Entry(f"{_HOME}.index:index", "Prepare episodes for training.", "Data"),
    "train": Entry(f"{_HOME}.train:train", "Train a policy.", "Model"),
    "eval": Entry(f"{_HOME}.evaluate:evaluate", "Measure a policy in simulation.", "Model"),
    "ckpt-inspect": Entry(
        f"{_HOME}.ckpt_inspect:ckpt_inspect", "Describe a checkpoint without loading it.", "Model"
    ),
    "quickstart": Entry(
        f"{_HOME}.quickstart:quickstart", "From nothing to a trained policy.", "Project"
    ),
    "config": Entry(f"{_HOME}.config:app", "Show and check configurations.", "Project"),
}


def _shared(
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel="Output")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings.", rich_help_panel="Output")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Details and tracebacks.", rich_help_panel="Output"),
    ] = False,
    log_format: Annotated[
        Literal["auto", "plain", "json"],
        typer.Option("--log-format", help="How stderr looks.", rich_help_panel="Output"),
    ] = "auto",
) -> None:
    """The options that every command and group understands."""


def _shared_params() -> list[Any]:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(_shared)
    return list(typer.main.get_command(app).params)


def _configure(ctx: typer.Context) -> None:
    flags = {name: ctx.params.pop(name) for name in ("json", "quiet", "verbose", "log_format")}
    console = ctx.find_object(Console)
    assert console is not None
    console.configure(**flags)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """The arguments and options, in one section per panel."""
    style = Style.of(sys.stdout)
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            panel = getattr(param, "rich_help_panel", None) or default
            sections.setdefault(panel, []).append(record)
    for title, rows in sections.items():
        with formatter.section(style.bold(title)):
            formatter.write_dl(rows)


class Command(TyperCommand):
    """A command with the shared options; invoking it gives an exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})
        self.params.extend(_shared_params())

    def invoke(self, ctx: Any) -> int:
        _configure(ctx)
        result = super().invoke(ctx)
        return ctx.find_object(Console).emit(result) if isinstance(result, Result) else 0

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)


class Group(TyperGroup):
    """A group with the shared options, before the name of the command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})
        self.params.extend(_shared_params())

    def invoke(self, ctx: Any) -> Any:
        _configure(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        style = Style.of(sys.stdout)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(80)))
        for title, rows in panels.items():
            with formatter.section(style.bold(title)):
                formatter.write_dl(rows)


class Root(Group):
    """The group of the table's commands, each loaded when it is resolved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands = {
            name: TyperCommand(
                name,
                help=entry.help,
                rich_help_panel=entry.panel,
                rich_markup_mode=None,
            )
            for name, entry in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def load(name: str) -> Any:
    """Import the command called ``name``."""
    target = import_object(COMMANDS[name].target)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=name, cls=Command)(target)  # type: ignore[type-var]
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Two-arm vision-language-action learning, from data to checkpoint."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process; returns its exit code, and never raises."""
    console = Console(json="--json" in arguments)
    console.configure(False, False, False, "auto")
    try:
        code = _run(list(arguments), console)
        sys.stdout.flush()
    except BrokenPipeError:
        code = 128 + 13  # what the shell reports of a program that SIGPIPE ends
        _silence_stdout()
    except BaseException as error:
        code = _explain(error, console)
    finally:
        remove()
    return code


def _run(arguments: list[str], console: Console) -> int:
    command = typer.main.get_command(app)
    with command.make_context(PROGRAM, arguments, obj=console) as ctx:
        return int(command.invoke(ctx) or 0)


def _explain(error: BaseException, console: Console) -> int:
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return console.fail(error, "interrupted", 130)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, TeamVLAError):
        return console.fail(error, str(error), error.exit_code)
    if isinstance(error, typer.TyperException):
        return _explain_usage(error, console)
    if isinstance(error, OSError):
        return _explain_system(error, console)
    hint = "" if console.verbose else "; run it again with -v for the traceback"
    return console.fail(error, f"internal error: {type(error).__name__}: {error}{hint}", 3)


def _explain_usage(error: typer.TyperException, console: Console) -> int:
    message = error.format_message()
    ctx = getattr(error, "ctx", None)
    if ctx is None:
        return console.fail(error, message, error.exit_code)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return error.exit_code
    return console.fail(error, f"{message}\nTry: {ctx.command_path} -h", error.exit_code)


def _explain_system(error: OSError, console: Console) -> int:
    where = error.filename or "the output"
    if error.errno == errno.ENOSPC:
        message = f"{where}: no space left on the disk. Free some, then run the command again."
    else:
        message = f"{where}: {(error.strerror or str(error)).lower()}"
    try:
        return console.fail(error, message, 3)
    finally:
        if error.filename is None:
            _silence_stdout()


def _silence_stdout() -> None:
    # What is still buffered would fail once more when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The ``teamvla`` console script."""
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
        app(prog_name=PROGRAM)
    sys.exit(run(sys.argv[1:]))

"""The root of the command line: a table of commands, and one boundary for exceptions.

A command's module is imported only when that command runs (or is asked for its help
or completion), so none pays for another's imports. What a command returns is described
in ``teamvla.cli.console``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, NamedTuple, TextIO

import typer
from typer.core import TyperCommand

from teamvla import __version__
from teamvla.cli.console import Console
from teamvla.cli.group import Command, Group
from teamvla.cli.loglines import remove
from teamvla.errors import TeamVLAError
from teamvla.interrupts import interruptible

PROGRAM = "teamvla"
#: how torch says it, for processors and for GPUs
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")


class Entry(NamedTuple):
    """One command of the table: where it is, and how the overview lists it."""

    target: str
    help: str
    panel: str


_HOME = "teamvla.cli"
COMMANDS = {
    "record": Entry(f"{_HOME}.record:record", "Record scripted demonstrations.", "Data"),
    "replay": Entry(f"{_HOME}.replay:replay", "Show an episode, and execute it again.", "Data"),
    "repair": Entry(f"{_HOME}.repair:repair", "Rescue what killed recorders left.", "Data"),
    "validate": Entry(f"{_HOME}.validate:validate", "Find damaged and wrong episodes.", "Data"),
    "stats": Entry(f"{_HOME}.stats:stats", "Look at episodes: a table and a page.", "Data"),
    "index": Entry(f"{_HOME}.index:index", "Prepare episodes for training.", "Data"),
    "convert": Entry(f"{_HOME}.convert:convert", "From and to other formats.", "Data"),
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
    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=name, cls=Command)(target)
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
    with interruptible() as interrupt:
        try:
            code = _run(list(arguments), console)
        except BaseException as error:
            code = interrupt.exit_code
            code = console.fail(error, "interrupted", code) if code else _explain(error, console)
        try:
            sys.stdout.flush()
        except OSError as error:
            code = code or _explain(error, console)
            _silence_stdout()
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
    if isinstance(error, BrokenPipeError):
        return 128 + 13  # what the shell reports of a program that SIGPIPE ends
    if isinstance(error, OSError):
        return _explain_system(error, console)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return console.fail(error, "out of memory: choose smaller settings or fewer workers.", 3)
    said = str(error).partition("\n")[0]
    hint = "" if console.verbose else "; run it again with -v for the traceback"
    return console.fail(error, f"internal error: {type(error).__name__}: {said}{hint}", 3)


def _explain_usage(error: typer.TyperException, console: Console) -> int:
    near = getattr(error, "possibilities", None)
    suggestion = f"{error.message}. Did you mean {near[0]!r}?" if near else None
    message = suggestion or error.format_message()
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
    return console.fail(error, message, 3)


def _silence_stdout() -> None:
    # What is still buffered would fail once more when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def main() -> None:
    """The ``teamvla`` console script."""
    if f"_{PROGRAM.upper()}_COMPLETE" in os.environ:
        with suppress(Exception):  # a prompt is no place for a traceback
            app(prog_name=PROGRAM)
        sys.exit(1)
    # Where the caller closed a descriptor (2>&-), Python has no stream at all.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names can be any bytes
    sys.exit(run(sys.argv[1:]))

"""Commands and groups: the output options that all of them share, and how their help looks.

Help is written without rich's panels: importing them costs more than Typer itself.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from teamvla.cli.console import Console, Result, Style

LOG_FORMATS = ("auto", "plain", "json")


def _known_format(value: str) -> str:
    if value not in LOG_FORMATS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(LOG_FORMATS)}.")
    return value


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
        str,
        typer.Option(
            "--log-format",
            metavar=f"<{'|'.join(LOG_FORMATS)}>",
            callback=_known_format,
            autocompletion=lambda: list(LOG_FORMATS),
            help="How stderr looks.",
            rich_help_panel="Output",
        ),
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


class _AsGiven:
    """Conversion of a text or a flag: none."""

    def coerce(self, value: Any, **context: Any) -> Any:
        return value


def _spare_pydantic(params: list[Any]) -> None:
    # Typer imports pydantic, at the price of Typer itself, to find out that text is text.
    for param in params:
        if param.type_descriptor.annotation in (str, bool):
            param.get_runtime_param = _AsGiven


class _Shared:
    """What a command and a group have in common."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})
        self.params: list[Any] = [*self.params, *_shared_params()]

    def parse_args(self: Any, ctx: Any, args: list[str]) -> list[str]:
        _spare_pydantic(self.get_params(ctx))
        parsed: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return parsed


class Command(_Shared, TyperCommand):
    """A command with the shared options; invoking it gives an exit code."""

    def invoke(self, ctx: Any) -> int:
        _configure(ctx)
        result = super().invoke(ctx)
        return ctx.find_object(Console).emit(result) if isinstance(result, Result) else 0

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)


class Group(_Shared, TyperGroup):
    """A group with the shared options, before the name of the command."""

    def invoke(self, ctx: Any) -> Any:
        _configure(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        style = Style.of(sys.stdout)
        width = max(map(len, self.commands))
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            row = (name.ljust(width), command.get_short_help_str(80))
            panels.setdefault(panel, []).append(row)
        for title, rows in panels.items():
            with formatter.section(style.bold(title)):
                formatter.write_dl(rows)

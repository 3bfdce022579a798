"""``teamvla config``: show, check and describe configurations."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from teamvla.cli.console import Result
from teamvla.cli.group import Command, Group
from teamvla.cli.options import Set

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Show and check configurations.",
)
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="YAML file, or a shipped configuration (train_bc).")
]


@app.command(cls=Command)
def show(name: Name, set_: Set = None) -> Result:
    """Print a configuration as it resolves, with every default written out."""
    import yaml

    from teamvla.config import Project

    resolved = Project.load(name, set_ or ()).resolved()
    text = yaml.safe_dump(
        resolved, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
    return Result("teamvla.config-show/1", {"config": resolved}, human=text)


@app.command(cls=Command)
def check(name: Name, set_: Set = None) -> Result:
    """Name every problem of a configuration at once."""
    from teamvla.config import Project
    from teamvla.errors import ConfigError

    problems = Project.load(name, set_ or ()).check()
    if problems:
        raise ConfigError("\n".join(problems))
    return Result(
        "teamvla.config-check/1",
        {"name": name, "problems": []},
        human=lambda style: f"{style.green('ok')}  {name}",
        next_command=f"teamvla config show {name}",
    )


@app.command(cls=Command)
def schema() -> Result:
    """Print the JSON schema of a configuration file, for editors."""
    from teamvla.config import schema as describe

    document = describe()
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return Result("teamvla.config-schema/1", {"json_schema": document}, human=text)

"""What a command line says: one result on stdout, everything else on stderr.

A command is a plain function in a module of its own. It returns a :class:`Result`
and raises what goes wrong; it never prints. ``--json``, ``-q``, ``-v`` and
``--log-format`` are added to every command (``teamvla.cli.group``), and exceptions
become messages and exit codes (``teamvla.cli.app``)::

    LOG = logging.getLogger(__name__)

    def validate(roots: Roots) -> Result:
        \"\"\"Check episodes against the schema.\"\"\"
        report = validate_roots(roots)               # raises InputError -> exit code 2
        LOG.info("checked %d episodes", report.episodes)             # stderr; -q hides it
        return Result(
            "teamvla.validate/1",
            {"episodes": report.episodes, "findings": [...]},        # with --json
            human=lambda style: f"{style.green('ok')}  {report.episodes} episodes",
            next_command=f"teamvla index {root}",                    # last line: "Next: ..."
            exit_code=1 if report.findings else 0,
        )

Progress is reported with :func:`teamvla.logs.progress`; it becomes a bar or lines here.
After ``graceful_stop``, return a Result with ``exit_code=stop.exit_code`` and the
command that resumes as ``next_command``.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from teamvla.cli.loglines import install
from teamvla.cli.result import Result, Style, jsonable
from teamvla.errors import TeamVLAError

__all__ = ["Console", "Result", "Style"]
LOG = logging.getLogger(__name__)


@dataclass
class Console:
    """How this run of the command line talks: its flags, and the two streams."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    log_format: str = "auto"

    def configure(self, json: bool, quiet: bool, verbose: bool, log_format: str) -> None:
        """Add the flags of one level of the command line, then set the logging up."""
        self.json |= json
        self.quiet |= quiet
        self.verbose |= verbose
        self.log_format = log_format if log_format != "auto" else self.log_format
        level = logging.WARNING if self.quiet else logging.INFO
        level = logging.DEBUG if self.verbose else level
        install(sys.stderr, Style.of(sys.stderr), self.log_format, level)

    def emit(self, result: Result) -> int:
        """Put the result on stdout; returns its exit code."""
        if self.json:
            document = {"schema": result.schema, "status": result.status, **result.data}
            if result.next_command is not None:
                document["next"] = result.next_command
            _write_json(document)
            return result.exit_code
        style = Style.of(sys.stdout)
        text = result.human if isinstance(result.human, str) else result.human(style)
        if text:
            sys.stdout.write(text.rstrip("\n") + "\n")
        if result.next_command is not None:
            self._suggest(result.next_command)
        return result.exit_code

    def _suggest(self, command: str) -> None:
        # Whoever pipes the result wants it alone; on a terminal both streams show.
        if not sys.stdout.isatty():
            LOG.info("Next: %s", command)
        elif not self.quiet:
            sys.stdout.write(f"{Style.of(sys.stdout).bold('Next:')} {command}\n")

    def fail(self, error: BaseException, message: str, exit_code: int) -> int:
        """Say what went wrong: a message on stderr and, with --json, an object on stdout."""
        LOG.error("%s", message, exc_info=error if self.verbose else None)
        if self.json:
            described = {"type": type(error).__name__, "message": message}
            if isinstance(error, TeamVLAError):
                fields = ("code", "where", "expected", "got", "mend")
                described.update({name: getattr(error, name) for name in fields})
            status = "interrupted" if exit_code >= 128 else "error"
            document = {"schema": "teamvla.error/1", "status": status, "exit_code": exit_code}
            with suppress(OSError):  # stdout may be what failed
                _write_json({**document, "error": described})
        return exit_code


def _write_json(document: dict[str, Any]) -> None:
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(jsonable(document), indent=indent, allow_nan=False)
    sys.stdout.write(text + "\n")

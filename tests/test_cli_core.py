"""The command line's conventions, shown on a command made for the purpose."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Annotated

import pytest
import typer

import teamvla
from teamvla.cli.app import COMMANDS, Entry, run
from teamvla.cli.console import Result
from teamvla.cli.loglines import remove
from teamvla.errors import CheckpointError, ConfigError, InputError, TeamVLAError
from teamvla.logs import progress

LOG = logging.getLogger("teamvla.probe")
DATA = {"count": 3, "path": Path("a/b"), "nothing": float("nan")}


@pytest.fixture
def command(monkeypatch):
    """Install a function as the command ``probe``."""

    def install(function):
        monkeypatch.setitem(sys.modules, "probe_command", types.SimpleNamespace(probe=function))
        monkeypatch.setitem(COMMANDS, "probe", Entry("probe_command:probe", "Probe.", "Data"))

    return install


def talk(count: Annotated[int, typer.Option("--count", min=0)] = 3) -> Result:
    """Say something on every level."""
    LOG.debug("a detail")
    LOG.info("a fact [/with] %s", "brackets")
    LOG.warning("a doubt")
    with progress("probing", count, "probe") as state:
        for index in range(count):
            state.advance(loss=index / 2)
    return Result("teamvla.probe/1", DATA, "three probes", "teamvla index data")


def raising(error):
    def fail() -> None:
        raise error

    return fail


def error_of(capsys, *arguments) -> tuple[int, str]:
    code = run(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_human_result_stands_on_stdout_and_the_next_command_on_stderr(command, capsys):
    command(talk)
    assert run(["probe"]) == 0
    out, err = capsys.readouterr()
    assert out == "three probes\n"
    assert err.splitlines()[-1] == "Next: teamvla index data"


def test_json_is_one_object_alone_on_stdout(command, capsys):
    command(talk)
    assert run(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": "teamvla.probe/1",
        "status": "ok",
        "count": 3,
        "path": "a/b",
        "nothing": None,
        "next": "teamvla index data",
    }


def test_a_pipe_gets_plain_lines_and_the_end_of_a_progress(command, capsys):
    command(talk)
    run(["probe"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["a fact [/with] brackets", "warning: a doubt"]
    assert lines[2].startswith("probing: 3/3 probes (100%), ")
    assert lines[2].endswith(", loss 1")
    assert len(lines) == 4


@pytest.mark.parametrize(
    "arguments",
    [["probe", "-q"], ["-q", "probe"], ["probe", "--quiet"], ["--quiet", "probe", "-q"]],
)
def test_quiet_leaves_warnings_wherever_it_is_given(command, capsys, arguments):
    command(talk)
    run(arguments)
    assert capsys.readouterr() == ("three probes\n", "warning: a doubt\n")


def test_verbose_adds_details_but_not_every_tick(command, capsys):
    command(talk)
    run(["probe", "-v"])
    err = capsys.readouterr().err
    assert err.startswith("a detail\n")
    assert err.count("probing:") == 1


@pytest.mark.parametrize(
    "arguments", [["probe", "--log-format", "json"], ["--log-format", "json", "probe"]]
)
def test_json_lines_carry_the_fields_of_a_progress(command, capsys, arguments):
    command(talk)
    run(arguments)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "info", "info"]
    state = lines[2]["progress"]
    assert (state["task"], state["done"], state["total"], state["finished"]) == (
        "probing",
        3,
        3,
        True,
    )
    assert state["metrics"] == {"loss": 1.0}


def test_a_progress_speaks_at_every_tenth_once_a_second_has_passed(command, capsys, monkeypatch):
    clock = itertools.count(time.monotonic() + 1)  # each look at it takes a second
    monkeypatch.setattr("teamvla.logs.time.monotonic", lambda: next(clock))
    command(talk)
    run(["probe", "--count", "20"])
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines() if "probing" in line]
    assert shown[:3] == ["2/20", "4/20", "6/20"]
    assert shown[-1] == "20/20"


@pytest.mark.parametrize(
    ("exit_code", "status"), [(0, "ok"), (1, "findings"), (3, "error"), (143, "interrupted")]
)
def test_exit_code_and_status_agree(command, capsys, exit_code, status):
    command(lambda: Result("teamvla.probe/1", {}, exit_code=exit_code))
    assert run(["probe", "--json"]) == exit_code
    assert json.loads(capsys.readouterr().out)["status"] == status


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            InputError("data", "a folder of episodes", "nothing there", "Record some first."),
            2,
            "error: data: expected a folder of episodes, got nothing there. Record some first.\n",
        ),
        (
            ConfigError("a.yaml:3:5: error: unknown key 'x'\n--set y=1: error: unknown key 'y'"),
            2,
            "a.yaml:3:5: error: unknown key 'x'\n--set y=1: error: unknown key 'y'\n",
        ),
        (
            CheckpointError("a.ckpt", "10 bytes", "9", code="C104"),
            1,
            "error: [C104] a.ckpt: expected 10 bytes, got 9\n",
        ),
        (TeamVLAError("the gripper is stuck"), 3, "error: the gripper is stuck\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "d/e.npz"),
            3,
            "error: d/e.npz: no space left on the disk. Free some, then run the command again.\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "d"),
            3,
            "error: d: permission denied\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            ValueError("bad luck\nand more of it"),
            3,
            "error: internal error: ValueError: bad luck; run it again with -v for the traceback\n",
        ),
    ],
)
def test_an_exception_is_one_message_and_an_exit_code(command, capsys, error, code, message):
    command(raising(error))
    assert error_of(capsys, "probe") == (code, message)


def test_tracebacks_need_verbose(command, capsys):
    command(raising(ValueError("bad luck")))
    code, err = error_of(capsys, "probe", "-v")
    assert code == 3
    assert err.startswith("error: internal error: ValueError: bad luck\nTraceback (most recent")
    assert err.endswith("\nValueError: bad luck\n")


def test_an_error_is_an_object_too(command, capsys):
    command(raising(CheckpointError("a.ckpt", "10 bytes", "9", "Copy it.", code="C104")))
    assert run(["probe", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "schema": "teamvla.error/1",
        "status": "error",
        "exit_code": 1,
        "error": {
            "type": "CheckpointError",
            "message": "[C104] a.ckpt: expected 10 bytes, got 9. Copy it.",
            "code": "C104",
            "where": "a.ckpt",
            "expected": "10 bytes",
            "got": "9",
            "mend": "Copy it.",
        },
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recrod"], "No such command 'recrod'. Did you mean 'record'?\nTry: teamvla -h"),
        (
            ["probe", "--cuont", "3"],
            "No such option: --cuont. Did you mean '--count'?\nTry: teamvla probe -h",
        ),
        (
            ["probe", "--log-format", "xml"],
            "Invalid value for '--log-format': 'xml' is not one of auto, plain, json.\n"
            "Try: teamvla probe -h",
        ),
        (
            ["config", "shwo"],
            "No such command 'shwo'. Did you mean 'show'?\nTry: teamvla config -h",
        ),
        (["ckpt-inspect"], "Missing argument 'CKPT'.\nTry: teamvla ckpt-inspect -h"),
    ],
)
def test_a_usage_error_suggests_and_exits_with_2(command, capsys, arguments, message):
    command(talk)
    assert error_of(capsys, *arguments) == (2, f"error: {message}\n")


def test_a_usage_error_is_an_object_too(capsys):
    assert run(["config", "--nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"].startswith("No such option")


def test_no_arguments_show_the_help(capsys):
    code, err = error_of(capsys)
    assert code == 2
    assert err.startswith("Usage: teamvla [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_in_its_panel(capsys, flag):
    assert run([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    at = [out.index(f"\n{panel}:\n") for panel in ("Data", "Model", "Project", "Output")]
    assert at == sorted(at)
    for name, entry in COMMANDS.items():
        assert f"  {name} " in out
        assert entry.help in out


def test_a_command_shows_its_own_and_the_shared_options(command, capsys):
    command(talk)
    run(["probe", "-h"])
    out = capsys.readouterr().out
    assert "Say something on every level." in out
    for option in ("--count", "--json", "-q, --quiet", "-v, --verbose", "<auto|plain|json>"):
        assert option in out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"teamvla {teamvla.__version__}\n"


def test_library_warnings_are_one_line_on_stderr(command, capsys):
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn_explicit("old thing", UserWarning, "lib.py", 7)

    command(warn)
    assert error_of(capsys, "probe") == (0, "warning: lib.py:7: UserWarning: old thing\n")


def test_logging_is_left_as_it_was(command, capsys):
    command(talk)
    run(["probe"])
    logger = logging.getLogger("teamvla")
    assert (logger.handlers, logger.propagate, logger.level) == ([], True, logging.NOTSET)
    remove()
    assert logging.getLogger("teamvla.progress").level == logging.NOTSET

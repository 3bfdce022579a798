"""The command line in processes of its own: what only real file descriptors show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import sys, types, logging, os, signal, time, teamvla.cli.app as app
from teamvla.cli.console import Result
from teamvla.interrupts import graceful_stop
from teamvla.logs import progress
def talk():
    logging.getLogger("teamvla.probe").warning("a doubt")
    with progress("probing", 3, "probe") as state:
        for _ in range(3):
            state.advance(loss=0.5)
    return Result("teamvla.probe/1", {}, lambda style: style.green("fine"), "teamvla index data")
def draw():
    import random
    random.seed(0)
    talk()
    return Result("teamvla.probe/1", {}, str(random.random()))
def flood():
    return Result("teamvla.probe/1", {}, "line\\n" * 100_000)
def stop():
    with graceful_stop() as asked:
        os.kill(os.getpid(), signal.SIGNAL)
    return Result("teamvla.probe/1", {}, "saved", "teamvla go-on", exit_code=asked.exit_code)
sys.modules["probe_command"] = types.SimpleNamespace(probe=FUNCTION)
app.COMMANDS["probe"] = app.Entry("probe_command:probe", "Probe.", "Data")
app.main()
"""


def probe(function: str, *arguments: str, signal: str = "SIGTERM", **options):
    code = PROBE.replace("FUNCTION", function).replace("SIGNAL", signal)
    command = [sys.executable, "-c", code, "probe", *arguments]
    return subprocess.run(command, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_ends_in_its_exit_code_after_the_work_is_safe(signal, code):
    done = probe("stop", "--json", signal=signal, capture_output=True)
    assert done.returncode == code
    assert json.loads(done.stdout) == {
        "schema": "teamvla.probe/1",
        "status": "interrupted",
        "next": "teamvla go-on",
    }
    assert f"warning: {signal} received" in done.stderr


def test_a_closed_pipe_is_quiet():
    reading, writing = os.pipe()
    os.close(reading)
    done = probe("flood", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("function", ["flood", "talk"])
def test_a_full_disk_behind_stdout_is_a_message(function):
    with Path("/dev/full").open("w") as full:
        done = probe(function, "-q", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    expected = (
        "error: the output: no space left on the disk. Free some, then run the command again."
    )
    assert done.stderr.splitlines()[-1] == expected
    assert "Traceback" not in done.stderr


def on_terminal(function: str, **environment: str) -> str:
    """Everything a command writes to a terminal."""
    primary, secondary = os.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    variables = {**variables, "TERM": "xterm", **environment}
    done = probe(function, stdout=secondary, stderr=secondary, env=variables)
    os.close(secondary)
    assert done.returncode == 0
    written = b""
    try:
        while block := os.read(primary, 1 << 16):
            written += block
    except OSError:  # Linux's end of file on a terminal
        pass
    os.close(primary)
    return written.decode("utf-8").replace("\r\n", "\n")


def test_a_bar_leaves_the_random_numbers_of_a_training_alone():
    piped = probe("draw", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert on_terminal("draw").endswith(f"\n{piped.stdout}")
    assert float(piped.stdout) < 1


def test_a_terminal_gets_colours_and_a_bar_that_goes_away():
    text = on_terminal("talk")
    assert "\x1b[33mwarning: \x1b[0ma doubt" in text
    assert "0/3" in text  # the bar's count
    assert "\x1b[2K" in text  # the bar's line is erased
    assert "probing: 3/3 probes (100%)" in text
    assert text.endswith("\x1b[32mfine\x1b[0m\n\x1b[1mNext:\x1b[0m teamvla index data\n")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_plain_lines(environment):
    text = on_terminal("talk", **environment)
    assert "\x1b" not in text
    assert text.splitlines()[0] == "warning: a doubt"
    assert text.endswith("\nfine\nNext: teamvla index data\n")


def complete(words: str) -> set[str]:
    variables = {"_TEAMVLA_COMPLETE": "complete_bash", "COMP_WORDS": words}
    variables["COMP_CWORD"] = str(words.count(" "))
    done = subprocess.run(
        [sys.executable, "-m", "teamvla"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("teamvla ckpt", {"ckpt-inspect"}),
        ("teamvla ckpt-inspect --ver", {"--verify", "--verbose"}),
        ("teamvla ckpt-inspect --log-format j", {"json"}),
        ("teamvla config s", {"show", "schema"}),
        ("teamvla config show --s", {"--set"}),
    ],
)
def test_completion(words, expected):
    assert complete(words) == expected


def test_completion_script_is_shown(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "teamvla", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "complete -o default -F _teamvla_completion teamvla" in done.stdout

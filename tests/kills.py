"""Killing with -9 at a random moment: what a worker had acknowledged by then.

    def work(acknowledge):              # runs in a forked child, until it ends or is killed
        ...
        acknowledge("episode-000001")   # only once it is safe

    for seed in range(20):
        killed = run_and_kill(work, seed, within_s=0.05)
        assert everything in killed.acknowledged is there

The child is forked, so that hundreds of kills take seconds; it inherits the imports of
the test and nothing that it does reaches the test but files and acknowledgements.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

Acknowledge = Callable[[str], None]
_FAILED = 70
_LONGEST_S = 120.0


@dataclass(frozen=True)
class Killed:
    """What was known of a worker when it died.

    Attributes:
        acknowledged: the lines that it had said, whole ones only, in order.
        killed: whether the kill met it; else it had come to its end before.
    """

    acknowledged: tuple[str, ...]
    killed: bool


def run_and_kill(work: Callable[[Acknowledge], None], seed: int, within_s: float) -> Killed:
    """Run ``work`` in a child and kill it at a random moment of its first ``within_s`` seconds.

    Raises:
        AssertionError: ``work`` raised; its traceback is on stderr.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work_and_exit(work, writing)
    os.close(writing)
    try:
        said, ended = _listen(reading, random.Random(seed).uniform(0, within_s))
        if not ended:
            os.kill(child, signal.SIGKILL)
            said += _listen(reading, _LONGEST_S)[0]
    finally:
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the worker failed: {status}"
    lines = said.decode().split("\n")[:-1]  # a line that was cut off acknowledges nothing
    return Killed(tuple(lines), status != 0)


def _work_and_exit(work: Callable[[Acknowledge], None], pipe: int) -> None:
    status = _FAILED
    try:
        work(lambda line: _say(pipe, line))
        status = 0
    except BaseException:
        sys.stderr.write(traceback.format_exc())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _say(pipe: int, line: str) -> None:
    os.write(pipe, f"{line}\n".encode())


def _listen(pipe: int, seconds: float) -> tuple[bytes, bool]:
    """What comes through the pipe until the time is over; whether its other end was closed."""
    said, until = b"", time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            break
        if not (more := os.read(pipe, 65536)):
            return said, True
        said += more
    return said, False

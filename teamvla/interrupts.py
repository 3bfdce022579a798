"""Signals: the first asks for a stop, the second insists, whichever they are."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_LOG = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
#: the same signal again within so long is the first: timeout(1) sends it to us and to our group
_ECHO_S = 1.0


class Stop:
    """Remembers the signal that asked for a stop; falsy until one arrives."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal number, as shells report it; 0 without a signal."""
        return 128 + int(self.signal) if self.signal is not None else 0


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Catch INT, TERM and USR1 for the duration of the block.

    Yields a :class:`Stop` that the work polls between units it can finish; a second
    signal does what it did outside. Outside the main thread, where Python allows no
    handlers, it never becomes true.
    """
    stop = Stop()
    asked_at = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        is_echo = number == stop.signal and time.monotonic() - asked_at < _ECHO_S
        if is_echo and number != signal.SIGINT:
            return
        if stop:
            _insist(number, frame, before[number])
        stop.signal, asked_at = signal.Signals(number), time.monotonic()
        with suppress(RuntimeError):  # the signal came while this very stream was written to
            _LOG.warning(
                "%s received: finishing what must be safe (a second signal stops at once)",
                stop.signal.name,
            )

    with _handled(ask) as before:
        yield stop


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Let INT, TERM and USR1 raise KeyboardInterrupt in the block, so that it cleans up.

    The :class:`Stop` it yields tells which signal it was, also where something made
    another exception of it (an import that is interrupted may end in ImportError). A
    second signal ends the process at once.
    """
    stop = Stop()

    def leave(number: int, frame: FrameType | None) -> None:
        if stop:
            _insist(number, frame, signal.SIG_DFL)
        stop.signal = signal.Signals(number)
        raise KeyboardInterrupt

    with _handled(leave):
        yield stop


@contextmanager
def held_back() -> Iterator[None]:
    """Let signals wait until the block is over; a process started in it never sees them."""
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(worker: int = 0) -> None:
    """In a forked worker: Ctrl-C and USR1 reach the whole group, but the parent decides."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Install ``handler`` for the block; yields the handlers from before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, handler)
        yield before
    finally:
        for caught, old in before.items():
            signal.signal(caught, old)


def _insist(number: int, frame: FrameType | None, handler: Any) -> None:
    if callable(handler):
        handler(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

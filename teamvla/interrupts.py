"""A graceful stop: the first signal asks, the second insists."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LOG = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number)
        _LOG.warning(
            "%s received: finishing what must be safe (Ctrl-C again stops at once)",
            self.signal.name,
        )


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Catch INT, TERM and USR1 for the duration of the block.

    Yields a :class:`Stop` that the work polls between units it can finish. Outside
    the main thread, where Python allows no handlers, it never becomes true.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Loggers and progress events. Rendering is the command line's business.

A progress is a series of log records on ``teamvla.progress``: every tick is a DEBUG
record that carries a :class:`Progress`, and now and then (a tenth of the way, half
a minute) an INFO record says it in words. A terminal draws the ticks as a bar; a
pipe, a file or a library user with plain logging sees the words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PROGRESS = logging.getLogger("teamvla.progress")
_EVERY_S = 30.0
_EVERY_FRACTION = 0.1


@dataclass
class Progress:
    """Where a long piece of work stands. Call :meth:`advance` for every unit done."""

    task: str
    total: int
    unit: str = "step"
    done: int = 0
    metrics: dict[str, float | str] = field(default_factory=dict)
    finished: bool = False
    _started: float = field(default_factory=time.monotonic)
    _spoke_at: float = field(default_factory=time.monotonic)
    _spoke_done: int = 0
    _first: int = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return (self.done - self._first) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def continue_at(self, done: int) -> None:
        """Start from work that an earlier session did; it does not count for the rate."""
        self.done = self._first = self._spoke_done = done

    def advance(self, n: int = 1, **metrics: float | str) -> None:
        """Count ``n`` more units done; ``metrics`` are shown beside the count."""
        self.done += n
        self.metrics.update(metrics)
        self._emit(logging.DEBUG)
        if self.done < self.total and self._should_speak():
            self._spoke_at, self._spoke_done = time.monotonic(), self.done
            self._emit(logging.INFO)

    def _should_speak(self) -> bool:
        far = self.done - self._spoke_done >= _EVERY_FRACTION * self.total
        waited = time.monotonic() - self._spoke_at
        return waited >= _EVERY_S or (far and waited >= 1.0)

    def _emit(self, level: int) -> None:
        if PROGRESS.isEnabledFor(level):
            PROGRESS.log(level, "%s", self, extra={"progress": self})

    def __str__(self) -> str:
        percent = 100 * self.done // max(self.total, 1)
        text = f"{self.task}: {self.done}/{self.total} {self.unit}s ({percent}%)"
        text += f", {self.rate:.3g}/s"
        if self.rate and not self.finished:
            text += f", {(self.total - self.done) / self.rate:.0f} s left"
        return "".join([text, *(f", {k} {show(v)}" for k, v in self.metrics.items())])


def show(value: float | str) -> str:
    """A metric as people read it: strings as they are, numbers to four digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


@contextmanager
def progress(task: str, total: int, unit: str = "step") -> Iterator[Progress]:
    """Report the work inside the block as ``task``, ``total`` units long."""
    state = Progress(task, total, unit)
    state._emit(logging.DEBUG)
    try:
        yield state
    finally:
        state.finished = True
        state._emit(logging.DEBUG)
        state._emit(logging.INFO)

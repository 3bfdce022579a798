"""Progress bars on a terminal."""

from __future__ import annotations

import time
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from teamvla.logs import Progress, show

_EVERY_S = 0.1


class Bars:
    """One bar per running progress, redrawn at most ten times a second.

    rich's refresh thread stays off: a thread that holds a lock while worker processes
    are forked would freeze them.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}", style="dim", markup=False),
            TimeRemainingColumn(compact=True),
            console=Console(file=stream, highlight=False),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: dict[int, TaskID] = {}
        self._drawn_at = 0.0

    def show(self, state: Progress) -> None:
        """Draw one tick of ``state``; its bar goes when it is finished."""
        if state.finished:
            self._remove(state)
        elif id(state) not in self._tasks:
            self._rich.start()
            task = self._rich.add_task(state.task, total=state.total, metrics="")
            self._tasks[id(state)] = task
        elif time.monotonic() - self._drawn_at >= _EVERY_S:
            self._drawn_at = time.monotonic()
            metrics = "  ".join(f"{name} {show(value)}" for name, value in state.metrics.items())
            self._rich.update(self._tasks[id(state)], completed=state.done, metrics=metrics)
            self._rich.refresh()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._rich.console.print(Text.from_ansi(line), soft_wrap=True)

    def close(self) -> None:
        self._rich.stop()

    def _remove(self, state: Progress) -> None:
        task = self._tasks.pop(id(state), None)
        if task is not None:
            self._rich.remove_task(task)
        if not self._tasks:
            self._rich.stop()

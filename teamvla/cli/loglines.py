"""Log records on stderr: a bar and lines on a terminal, lines in a pipe, or JSON lines."""

from __future__ import annotations

import json
import logging
import random
import re
import traceback
from typing import IO, TYPE_CHECKING, Any

from teamvla.cli.result import Style, jsonable
from teamvla.logs import PROGRESS, Progress

if TYPE_CHECKING:
    from teamvla.cli.bar import Bars

#: Warnings of libraries reach stderr through the same handler.
_LOGGERS = ("teamvla", "py.warnings")
_NAMED = re.compile(r"^\S.*: error: |^error: ")


def install(stream: IO[str], style: Style, log_format: str, level: int) -> None:
    """Send the records of teamvla from ``level`` on to ``stream``, and nowhere else."""
    remove()
    handler: logging.Handler
    if log_format == "json":
        handler = JsonHandler(stream)
    elif log_format == "auto" and style.colour:
        handler = TerminalHandler(stream, style)
    else:
        handler = LineHandler(stream)
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    logging.getLogger("teamvla").setLevel(level)
    logging.getLogger("py.warnings").setLevel(max(level, logging.WARNING))
    bar = isinstance(handler, TerminalHandler) and level <= logging.INFO
    PROGRESS.setLevel(logging.DEBUG if bar else max(level, logging.INFO))
    logging.captureWarnings(True)


def remove() -> None:
    """Undo :func:`install`."""
    logging.captureWarnings(False)
    PROGRESS.setLevel(logging.NOTSET)
    PROGRESS.filters.clear()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, LineHandler)]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


class LineHandler(logging.StreamHandler):
    """One plain line per record; of a progress only its milestones."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join([_prefix(record) + _message(record), *_traceback(record)])


class JsonHandler(LineHandler):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        state = getattr(record, "progress", None)
        if isinstance(state, Progress):
            line["progress"] = _progress_fields(state)
        if trace := _traceback(record):
            line["traceback"] = "\n".join(trace)
        return json.dumps(line, ensure_ascii=False, default=str)


class TerminalHandler(LineHandler):
    """Coloured lines, and a bar below them while a progress runs."""

    def __init__(self, stream: IO[str], style: Style) -> None:
        super().__init__(stream)
        self._style = style
        self._bars: Bars | None = None

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "progress", None)
        if isinstance(state, Progress):
            if record.levelno < logging.INFO:
                self._draw(state)
                return
            if not state.finished:
                return
        if self._bars is None:
            super().emit(record)
        else:
            self._bars.say(self.format(record))

    def format(self, record: logging.LogRecord) -> str:
        colour = {"error: ": self._style.red, "warning: ": self._style.yellow}
        prefix = _prefix(record)
        text = colour.get(prefix, str)(prefix) + _message(record)
        if record.levelno < logging.INFO:
            text = self._style.dim(text)
        return "\n".join([text, *_traceback(record)])

    def close(self) -> None:
        if self._bars is not None:
            self._bars.close()
        super().close()

    def _draw(self, state: Progress) -> None:
        if self._bars is None:
            # Importing rich draws a number, and a training would be another on a terminal.
            drawn = random.getstate()
            from teamvla.cli.bar import Bars

            random.setstate(drawn)
            self._bars = Bars(self.stream)
        self._bars.show(state)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    # A library's warning quotes the line of code below; the first line says it all.
    return text.partition("\n")[0] if record.name == "py.warnings" else text


def _prefix(record: logging.LogRecord) -> str:
    if record.levelno >= logging.ERROR:
        # Configuration problems come as file:line:column: error: ..., which editors follow.
        return "" if _NAMED.search(_message(record)) else "error: "
    return "warning: " if record.levelno >= logging.WARNING else ""


def _traceback(record: logging.LogRecord) -> list[str]:
    if not record.exc_info or record.exc_info[1] is None:
        return []
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip().split("\n")


def _progress_fields(state: Progress) -> dict[str, Any]:
    return {
        "task": state.task,
        "done": state.done,
        "total": state.total,
        "unit": state.unit,
        "elapsed_s": round(state.elapsed_s, 3),
        "rate": round(state.rate, 3),
        "finished": state.finished,
        "metrics": jsonable(state.metrics),
    }

"""Metrics to where a lab collects them: Weights & Biases, or else the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

_LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes metrics as they come."""

    def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Those of a split after so many optimiser steps."""

    def finish(self, failed: bool) -> None:
        """No more will come of this training, or an error has ended it."""


class LogTracker:
    """Lines of the log, for where there is no Weights & Biases."""

    def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        told = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _LOG.info("step %d: %s: %s", step, split, told)

    def finish(self, failed: bool) -> None:
        """See :meth:`Tracker.finish`."""


class WandbTracker:
    """A run of Weights & Biases, or lines of the log from where that fails on.

    Args:
        run: what ``wandb.init`` gave.
    """

    def __init__(self, run: Any) -> None:
        self._run, self._works = run, True

    def log(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log`."""
        if self._works:
            # By a step of its own: W&B drops what a resumed training tells again.
            told = {f"{split}/{name}": value for name, value in metrics.items()}
            try:
                self._run.log({**told, "optimizer_step": step})
                return
            except Exception as error:
                self._works = False
                _warn(error, "metrics go to the log")
        LogTracker().log(split, step, metrics)

    def finish(self, failed: bool) -> None:
        """See :meth:`Tracker.finish`."""
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            if self._works:
                _warn(error, "the run there may lack its end")


def open_tracker(project: str | None, folder: Path, config: Mapping[str, Any]) -> Tracker | None:
    """Where metrics go besides ``metrics.jsonl``; None if nobody asked.

    What keeps Weights & Biases from working keeps no training from it: metrics then go to the log,
    which is said. ``WANDB_MODE=offline`` writes below ``folder`` without a network.

    Args:
        project: name of the project.
        folder: of the run, whose name it gets.
        config: the run's settings, shown beside it.
    """
    if project is None:
        return None
    try:
        from wandb import Settings, init, setup  # a mere folder of that name has none of them

        folder.mkdir(parents=True, exist_ok=True)
        # Silent from its setup on: only then does it not ask a terminal for a key, for ever.
        setup(Settings(silent=True))
        run = init(
            project=project, name=folder.name, id=_id_of(folder), resume="allow", dir=str(folder),
            reinit="create_new",  # one process may train more than once
            config=dict(config),
            # What is printed is for whoever started the training.
            settings=Settings(silent=True, init_timeout=30, console="off"),
        )  # fmt: skip
    except ImportError:
        _warn("wandb is not installed (pip install 'teamvla[wandb]')", "metrics go to the log")
        return LogTracker()
    except Exception as error:
        _warn(error, "metrics go to the log")
        return LogTracker()
    return WandbTracker(run)


def _warn(error: Exception | str, outcome: str) -> None:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    _LOG.warning("trainer.wandb: %s: %s", said.rstrip("."), outcome)


def _id_of(folder: Path) -> str:
    """Another one for each folder, whatever its name, and the same where it is resumed."""
    return sha256(str(folder.resolve()).encode("utf-8", "backslashreplace")).hexdigest()[:16]

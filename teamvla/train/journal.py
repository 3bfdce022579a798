"""metrics.jsonl: one JSON object per line, readable while the training runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from teamvla.files import naming, publish
from teamvla.train.tracking import Tracker
from teamvla.train.trainer import Metrics, TrainingState


class MetricsJournal:
    """Appends rows ``{"split", "epoch", "step", ...metrics}``, and tells them to a tracker.

    As a context it finishes the tracker; what is written later opens another.
    """

    def __init__(
        self, path: Path, open_tracker: Callable[[], Tracker | None] = lambda: None
    ) -> None:
        self.path, self._open_tracker = path, open_tracker

    @cached_property
    def _tracker(self) -> Tracker | None:
        """Opened with the first row: a run that comes to nothing has none."""
        return self._open_tracker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        tracker = vars(self).pop("_tracker", None)
        if tracker is not None:
            tracker.finish(failed=kind is not None)

    def write(self, split: str, state: TrainingState, metrics: Metrics) -> None:
        row = {"split": split, "epoch": state.epoch, "step": state.step, **metrics}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._tracker is not None:
            self._tracker.log(split, state.step, metrics)

    def rewind(self, step: int) -> None:
        """Drop the rows that a resumed training will write again, and a line cut short."""
        kept = [json.dumps(row) + "\n" for row in read_metrics(self.path) if row["step"] <= step]
        publish(self.path, lambda file: file.write("".join(kept).encode("utf-8")), replace=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, up to the first line that a crash cut short or spoilt."""
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not {"split", "step"} <= row.keys():
            break
        rows.append(row)
    return rows

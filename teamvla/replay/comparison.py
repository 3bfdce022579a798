"""How far one row of a replay is from the recorded one, field by field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Contract
from teamvla.data import Episode, Ragged
from teamvla.record.recorder import row
from teamvla.rollout import Tick

_OWN = ("phase",)  # what the recorder adds that no environment decides


@dataclass(frozen=True)
class Deviation:
    """How far one field of the replay is from the recorded one.

    Attributes:
        largest: greatest absolute difference in the field's unit; infinite where the values
            cannot be compared: other texts, another number of rows.
        step: the first step that differs at all; ``None`` if none does.
        is_picture: uint8 pictures, in grey levels of 255.
    """

    field: str
    largest: float
    step: int | None
    is_picture: bool = False


class Comparison:
    """Measures every step against the recorded one as it comes."""

    def __init__(self, episode: Episode, contract: Contract) -> None:
        self._contract = contract
        unread = episode.meta.get("json_fields", ())
        self._recorded = [name for name in episode.fields if name not in _OWN]
        self._fields = {k: episode.fields[k] for k in self._recorded if k not in unread}
        self.deviations: dict[str, Deviation] = {}

    @property
    def not_compared(self) -> list[str]:
        """Recorded fields that no step of the replay had, and those that hold JSON."""
        return [name for name in self._recorded if name not in self.deviations]

    def __call__(self, tick: Tick) -> None:
        fields = row(tick, None, self._contract)
        for name, column in self._fields.items():
            if name in fields:
                self._add(name, column, fields[name], tick.index)

    def _add(self, name: str, column: Any, value: Any, step: int) -> None:
        amount = _difference(np.asarray(column[step]), np.asarray(value))
        before = self.deviations.get(name)
        if before is None:
            pictures = not isinstance(column, Ragged) and column.ndim == 4
            before = Deviation(name, 0.0, None, pictures and column.dtype == np.uint8)
        first = step if before.step is None and amount else before.step
        largest = max(before.largest, amount)
        self.deviations[name] = Deviation(name, largest, first, before.is_picture)


def _difference(recorded: NDArray[Any], value: NDArray[Any]) -> float:
    """Greatest difference of two values of one field; 0 only if they are the same."""
    if recorded.shape != value.shape or "U" in (recorded.dtype.kind, value.dtype.kind):
        return 0.0 if np.array_equal(recorded, value) else np.inf
    value = value.astype(recorded.dtype, copy=False)  # Python numbers come as float64
    if np.array_equal(recorded, value, equal_nan=recorded.dtype.kind == "f"):
        return 0.0
    with np.errstate(invalid="ignore"):
        apart = np.abs(recorded.astype(np.float64) - value.astype(np.float64))
    same = (recorded == value) | (np.isnan(apart) & (np.isnan(recorded) & np.isnan(value)))
    return float(np.where(np.isnan(apart), np.inf, apart)[~same].max())

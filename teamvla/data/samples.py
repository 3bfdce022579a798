"""Where samples stand: single steps, steps with those before, or steps in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teamvla.data.manifest import Manifest


@dataclass(frozen=True)
class Places:
    """Where some samples stand, int64 [B] each."""

    index: np.ndarray
    step: np.ndarray  # of the episode: a sequence's first
    left: np.ndarray  # steps from there to the episode's end
    first_row: np.ndarray  # of the episode, among all steps
    first_action: np.ndarray  # of the episode, among the padded actions


class Samples:
    """The samples of some episodes, in their order.

    A sample is a step, or ``length`` steps in a row: an episode of n steps has
    ceil(n / length) of them, of which the last may reach over its end.

    Attributes:
        counts: samples of each episode, int64.

    Args:
        table: of the index.
        episodes: rows of the table.
        history: observations in a sample, up to its step.
        length: steps in a sample; None: one, and no T axis.
    """

    def __init__(
        self, table: Manifest, episodes: np.ndarray, history: int, length: int | None
    ) -> None:
        steps = table["num_steps"][episodes]
        self._stride = length or 1
        self._around = np.arange(1 - history, 1) if length is None else np.arange(length)
        self._has_time = length is not None or history > 1
        self._is_sequence = length is not None
        self.counts = -(-steps // self._stride)
        self._ends = np.cumsum(self.counts)
        # Side by side, so that a batch finds all it needs of its episodes with one gather.
        rows = (table[name][episodes] for name in ("first_row", "first_action"))
        firsts = self._ends - self.counts
        self._table = np.stack((firsts, steps, *rows), axis=1, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def places(self, rows: Sequence[int] | np.ndarray) -> Places:
        """Where samples stand; IndexError if a number is out of range."""
        index = np.array(rows, np.int64)
        if index.size and index.view(np.uint64).max() >= len(self):  # those below 0 too
            raise IndexError(f"sample out of range: the dataset has {len(self)}")
        episode = self._ends.searchsorted(index, side="right")
        first, steps, row, action = self._table.take(episode, axis=0).T
        step = index - first
        if self._stride > 1:
            step *= self._stride
        return Places(index, step, steps - step, row, action)

    def episode(self, index: int) -> int:
        """Which of the episodes a sample is from."""
        return int(self._ends.searchsorted(index, side="right"))

    def observed(self, places: Places) -> np.ndarray:
        """Rows of the observations, int64 [B,T], or [B] where there is no T.

        Before an episode's start and behind its end it is the nearest of its steps.
        """
        if not self._has_time:
            return self._steps(places)
        last = places.step + places.left - 1
        steps = np.clip(places.step[:, None] + self._around, 0, last[:, None])
        rows: np.ndarray = places.first_row[:, None] + steps
        return rows

    def observed_is_pad(self, places: Places) -> np.ndarray | None:
        """Which of the observations are no steps of the episode, bool [B,T]; None without T."""
        if not self._has_time:
            return None
        outside: np.ndarray = places.step[:, None] < -self._around
        outside |= places.left[:, None] <= self._around
        return outside

    def own(self, places: Places) -> np.ndarray:
        """Rows of what belongs to the step itself, as the reward: int64 [B], or [B,S]."""
        if self._is_sequence:
            return self.observed(places)
        return self._steps(places)

    def _steps(self, places: Places) -> np.ndarray:
        rows: np.ndarray = places.first_row + places.step
        return rows

    def commanded(self, places: Places) -> np.ndarray:
        """First rows of the chunks among the padded actions, int64 [B], or [B,S]."""
        rows: np.ndarray = places.first_action + places.step
        if self._is_sequence:
            rows = rows[:, None] + np.minimum(self._around, places.left[:, None] - 1)
        return rows

    def commanded_is_pad(self, places: Places, chunk: int) -> np.ndarray:
        """Which actions of the chunks are behind the episode's end, bool [B,K], or [B,S,K]."""
        ahead, left = np.arange(chunk), places.left[:, None]
        if self._is_sequence:
            ahead, left = self._around[:, None] + ahead, left[:, None]
        is_pad: np.ndarray = ahead >= left
        return is_pad

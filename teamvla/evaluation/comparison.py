"""Two conditions on the same initial states: what one wins and loses against the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from teamvla.evaluation.suites import Score


@dataclass(frozen=True)
class Comparison:
    """A score beside that of its matched control: episode k of both began alike.

    Attributes:
        control: the score without the change.
        score: the score with it.
    """

    control: Score
    score: Score

    @property
    def lost(self) -> int:
        """Episodes that the control succeeded in and the other did not."""
        return sum(one and not other for one, other in self._pairs())

    @property
    def gained(self) -> int:
        """Episodes that the other succeeded in and the control did not."""
        return sum(other and not one for one, other in self._pairs())

    @property
    def difference(self) -> float:
        """Success rate less that of the control."""
        return (self.gained - self.lost) / len(self._pairs())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference (Agresti and Min, Statistics in Medicine 24, 2005)."""
        count, z = len(self._pairs()) + 2, NormalDist().inv_cdf(0.975)
        gained, lost = (self.gained + 0.5) / count, (self.lost + 0.5) / count
        half = z * math.sqrt((gained + lost - (gained - lost) ** 2) / count)
        return max(-1.0, gained - lost - half), min(1.0, gained - lost + half)

    @property
    def p_value(self) -> float:
        """Of no difference: McNemar's exact test (McNemar, Psychometrika 12, 1947), two-sided."""
        changed, fewer = self.gained + self.lost, min(self.gained, self.lost)
        tail = sum(math.comb(changed, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / (1 << changed))  # whole numbers: floats end at 2.0**1023

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.score.to_dict(),
            "lost": self.lost,
            "gained": self.gained,
            "difference": self.difference,
            "difference_interval_95": list(self.interval),
            "p_value": self.p_value,
        }

    def _pairs(self) -> list[tuple[bool, bool]]:
        before = {trial.index: trial.success for trial in self.control.trials}
        return [
            (before[trial.index], trial.success)
            for trial in self.score.trials
            if trial.index in before
        ]

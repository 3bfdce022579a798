"""One episode as judgements see it: small columns joined over the arms, pictures summed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.fields import STEP_SPECS, arms_of
from teamvla.data.specs import FieldSpec
from teamvla.data.validation.pictures import Pictures
from teamvla.data.validation.thresholds import DEFAULT_HZ, MIN_STEPS, MOST_NUMBERS


@dataclass(frozen=True, eq=False)
class Joints:
    """The joints of all arms side by side.

    Attributes:
        arms: their names, in the order of the columns.
        q: float64[T, J], measured.
        action: float64[T, J], as stored.
        delta: whether actions are differences from ``q``.
    """

    arms: tuple[str, ...]
    sizes: tuple[int, ...]
    q: np.ndarray
    action: np.ndarray
    delta: bool

    def place(self, column: int) -> tuple[str, int]:
        """Arm and joint of a column."""
        for arm, size in zip(self.arms, self.sizes, strict=True):
            if column < size:
                return arm, column
            column -= size
        raise IndexError(column)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Each arm's columns."""
        ends = np.cumsum(self.sizes).tolist()
        starts = [0, *ends[:-1]]
        return {a: slice(s, e) for a, s, e in zip(self.arms, starts, ends, strict=True)}

    @cached_property
    def target(self) -> np.ndarray:
        """float64[T, J]: where each command wants the joint to be, rad."""
        return self.q + self.action if self.delta else self.action

    @cached_property
    def moved(self) -> np.ndarray:
        """float64[T-1, J]: signed way of each joint from step to step."""
        return np.asarray(self.q[1:] - self.q[:-1])

    @cached_property
    def span(self) -> np.ndarray:
        """float64[J]: how far apart the joint's extremes lie."""
        return np.asarray(self.q.max(axis=0) - self.q.min(axis=0))

    @cached_property
    def target_span(self) -> np.ndarray:
        """float64[J]: the same of the commands."""
        return np.asarray(self.target.max(axis=0) - self.target.min(axis=0))

    @cached_property
    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[T-2, J] twice: from each command to the joint in its own row, and one later.

        Deltas are compared with the way that the joint went before and after.
        """
        if self.delta:
            return self.action[1:-1] - self.moved[:-1], self.action[1:-1] - self.moved[1:]
        return self.action[1:-1] - self.q[1:-1], self.action[1:-1] - self.q[2:]

    @cached_property
    def misses(self) -> tuple[np.ndarray, np.ndarray]:
        """float64[J] twice: the sums of squares of :attr:`gaps`."""
        own, later = self.gaps
        return np.einsum("tj,tj->j", own, own), np.einsum("tj,tj->j", later, later)


@dataclass(frozen=True, eq=False)
class Record:
    """What the judgements of one episode may look at.

    Attributes:
        meta: the metadata.
        small: columns of one or two axes that can be trusted: right dtype, finite.
        pictures: summaries of the cameras' columns, by field.
        contract: if the metadata has a legal one.
        contract_digest: its digest.
        specs: the required fields.
        steps: how many the columns have, whatever the metadata say.
        judged: how many of them joints and pictures are judged by: the first ones.
    """

    meta: Mapping[str, Any]
    small: Mapping[str, np.ndarray]
    pictures: Mapping[str, Pictures] = field(default_factory=dict)
    contract: Contract | None = None
    contract_digest: str | None = None
    specs: Mapping[str, FieldSpec] = field(default_factory=lambda: STEP_SPECS)
    steps: int = 0

    @cached_property
    def judged(self) -> int:
        width = sum(int(self.small[f"q_{arm}"].shape[1]) for arm in self.arms)
        return min(self.steps, MOST_NUMBERS // max(1, width))

    @cached_property
    def tick(self) -> float:
        """Seconds a step: of the contract, else of the timestamps, else of the usual rate."""
        if self.contract is not None:
            return 1 / self.contract.control_hz
        time = self.small.get("timestamp")
        usual = float(np.median(np.diff(time))) if time is not None and len(time) > 1 else 0.0
        return usual if usual > 0 else 1 / DEFAULT_HZ

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms with positions and commands of the same shape; in rad, as all thresholds are."""
        if self.contract is not None and self.contract.action == "delta_tool_position":
            return ()
        return tuple(arm for arm in sorted(arms_of(self.specs)) if self._paired(arm))

    def _paired(self, arm: str) -> bool:
        q, action = self.small.get(f"q_{arm}"), self.small.get(f"action_{arm}")
        return q is not None and action is not None and q.shape == action.shape

    @cached_property
    def joints(self) -> Joints | None:
        """The joints, if the episode has any arm that can be judged."""
        if not self.arms or self.judged < MIN_STEPS:
            return None
        q, action = (self._joined(kind) for kind in ("q", "action"))
        sizes = tuple(self.small[f"q_{arm}"].shape[1] for arm in self.arms)
        delta = self.contract is not None and self.contract.action.startswith("delta")
        return Joints(self.arms, sizes, q, action, delta)

    def _joined(self, kind: str) -> np.ndarray:
        columns = [self.small[f"{kind}_{arm}"][: self.judged] for arm in self.arms]
        return np.concatenate(columns, axis=1, dtype=np.float64)

    def reach(self, arm: str | None) -> np.ndarray:
        """float64[T-1]: way of the fastest joint of an arm (of any if ``None``), each step."""
        joints = self.joints
        if joints is None:
            return np.zeros(max(0, self.judged - 1))
        columns = joints.slices.get(arm or "", slice(None))
        return np.asarray(np.abs(joints.moved[:, columns]).max(axis=1))

"""Making an episode of foreign columns, as a mapping says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.formats.mapping import ArmMapping, Column, Columns, Gripper, MappingConfig, Passed
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.errors import SchemaError

_EDGE = 1e-6  # a gripper this far outside its range is rounding


@dataclass(frozen=True)
class Foreign:
    """One foreign episode: its columns, time first, and what its data set says about it.

    Attributes:
        path: for messages.
        columns: name -> array.
        control_hz: if the files say it.
        meta: ``task``, ``episode_id``, ``instruction`` and whatever else becomes metadata.
        bookkeeping: columns that nobody misses (numbers of frames and the like).
    """

    path: Path
    columns: Columns
    control_hz: float | None
    meta: dict[str, Any]
    bookkeeping: frozenset[str] = frozenset()


def to_episode(foreign: Foreign, mapping: MappingConfig, report: Report) -> Episode:
    """The episode in our terms; the report is told what changed, was added or is left.

    Raises:
        SchemaError: the mapping names what is not there, or shapes do not fit.
    """
    return _Making(foreign, mapping, report).episode()


@dataclass
class _Making:
    foreign: Foreign
    mapping: MappingConfig
    report: Report
    fields: dict[str, np.ndarray] = field(default_factory=dict)

    def episode(self) -> Episode:
        for name, arm in self.mapping.arms.items():
            self._arm(name, arm)
        for ours, theirs in self.mapping.cameras.items():
            self.fields[ours] = self._picture(theirs)
            self.report.note("carried", theirs, ours)
        for ours, passed in self.mapping.fields.items():
            self.fields[ours] = self._passed(passed)
            self.report.note("carried", passed.field, ours)
        steps = self._cut()
        self.fields["success"] = self._success(steps)
        self.fields["instruction"] = texts = self._instructions(steps)
        task = str(self.mapping.task or self.foreign.meta["task"])
        self.fields["task"] = np.broadcast_to(np.array(task), (steps,))
        self._leftovers()
        return Episode(self.foreign.path, self._meta(steps, str(texts[0])), self.fields)

    def _instructions(self, steps: int) -> np.ndarray:
        """One prompt a step: the mapping's, else the columns', else the data set's."""
        stored = self.foreign.columns.get("instruction")
        if stored is not None and self.mapping.instruction is None:
            return stored[:steps]
        text = self.mapping.instruction or str(self.foreign.meta["instruction"])
        return np.broadcast_to(np.array(text), (steps,))

    def _arm(self, name: str, arm: ArmMapping) -> None:
        self.fields[f"q_{name}"] = self._numbers(arm.q, f"q_{name}")
        self.fields[f"action_{name}"] = self._numbers(arm.action, f"action_{name}")
        if arm.grip_q is not None:
            self.fields[f"grip_q_{name}"] = self._gripper(arm.grip_q, f"grip_q_{name}", 0.1)
        if arm.grip is not None:
            self.fields[f"grip_{name}"] = self._gripper(arm.grip, f"grip_{name}", 0.0)
        else:
            steps = len(self.fields[f"q_{name}"])
            self.fields[f"grip_{name}"] = np.zeros(steps, np.float32)
            why = "the mapping names no gripper: 0, open, in every step"
            self.report.note("added", f"gripper of arm {name}", f"grip_{name}", why)

    def _column(self, name: str) -> np.ndarray:
        if name not in self.foreign.columns:
            known = ", ".join(sorted(self.foreign.columns))
            raise SchemaError(
                str(self.foreign.path),
                f"a field {name!r}, which the mapping names",
                "none",
                f"There are: {known}.",
                code="E604",
            )
        return self.foreign.columns[name]

    def _numbers(self, column: Column, ours: str) -> np.ndarray:
        values = self._rows(column.field, column.columns)[column.shift :]
        if (column.scale, column.offset) != (1.0, 0.0):
            why = f"times {column.scale:g} plus {column.offset:g}"
            self.report.note("changed", column.field, ours, why)
            values = values * column.scale + column.offset
        if column.shift:
            why = f"row t is row t + {column.shift}; the last {column.shift} rows are dropped"
            self.report.note("changed", column.field, ours, why)
        return self._single(values, column.field, ours)

    def _rows(self, name: str, columns: tuple[int, ...] | None) -> np.ndarray:
        values = self._column(name)
        values = values.reshape(len(values), -1)
        wanted = list(range(values.shape[1]) if columns is None else columns)
        if wanted and not -values.shape[1] <= min(wanted) <= max(wanted) < values.shape[1]:
            expected = f"columns {wanted}, as the mapping says"
            got = f"{values.shape[1]} columns"
            raise SchemaError(f"{self.foreign.path}: {name}", expected, got, code="E604")
        if values.dtype.kind not in "fiu":
            raise SchemaError(
                f"{self.foreign.path}: {name}", "numbers", str(values.dtype), code="E605"
            )
        return values[:, wanted]

    def _single(self, values: np.ndarray, theirs: str, ours: str) -> np.ndarray:
        """As float32, said if that loses anything."""
        single = values.astype(np.float32)
        if np.array_equal(single, values, equal_nan=True):
            self.report.note("carried", theirs, ours)
        else:
            self.report.note("changed", theirs, ours, f"{values.dtype} rounded to float32")
        return single

    def _gripper(self, gripper: Gripper, ours: str, slack: float) -> np.ndarray:
        raw = self._rows(gripper.field, (gripper.column,))[gripper.shift :, 0]
        if gripper.open == gripper.closed:
            where = f"mapping of {ours}"
            raise SchemaError(
                where, "open and closed that differ", f"{gripper.open:g}", code="E605"
            )
        place = f"{gripper.field}[{gripper.column}]"
        values = (raw - gripper.open) / (gripper.closed - gripper.open)
        if (gripper.open, gripper.closed) != (0.0, 1.0):
            why = f"{gripper.open:g} open .. {gripper.closed:g} closed became 0 open .. 1 closed"
            self.report.note("changed", place, ours, why)
        kept = np.clip(values, -slack, 1 + slack)
        beyond = int(np.count_nonzero(np.abs(kept - values) > _EDGE))
        if beyond:
            why = f"values outside the range were clipped to [{-slack:g}, {1 + slack:g}]"
            self.report.note("changed", place, ours, why)
        return self._single(kept, place, ours)

    def _picture(self, name: str) -> np.ndarray:
        values = self._column(name)
        if values.dtype != np.uint8 or values.ndim != 4 or values.shape[-1] != 3:
            got = f"{values.dtype}{list(values.shape)}"
            raise SchemaError(
                f"{self.foreign.path}: {name}", "pictures, uint8[T,H,W,3]", got, code="E605"
            )
        return values

    def _passed(self, passed: Passed) -> np.ndarray:
        values = self._column(passed.field)
        if passed.shape is not None:
            values = values.reshape(len(values), *passed.shape)
        return values if passed.dtype is None else values.astype(np.dtype(passed.dtype))

    def _cut(self) -> int:
        """Let all fields be as long as the shortest, which a shift may have made shorter."""
        lengths = {name: len(values) for name, values in self.fields.items()}
        steps = min(lengths.values())
        longest = max(lengths.values())
        most = max(
            part.shift
            for arm in self.mapping.arms.values()
            for part in (arm.q, arm.action, arm.grip, arm.grip_q)
            if part is not None
        )
        if steps < 1 or longest - steps > most:
            odd = ", ".join(f"{name} {length}" for name, length in sorted(lengths.items()))
            where = str(self.foreign.path)
            raise SchemaError(where, "columns of one length, not empty", odd, code="E605")
        for name in self.fields:
            self.fields[name] = self.fields[name][:steps]
        return steps

    def _success(self, steps: int) -> np.ndarray:
        if self.mapping.success is not None:
            self.report.note("carried", self.mapping.success.field, "success")
            return self._passed(self.mapping.success)[:steps].astype(bool)
        flags = np.zeros(steps, bool)
        flags[-1] = bool(self.foreign.meta.get("success", True))
        if "success" not in self.foreign.meta:
            why = "not in the source: demonstrations are taken to succeed, in their last step"
            self.report.note("added", "success", "success", why)
        return flags

    def _leftovers(self) -> None:
        used = self.mapping.foreign_fields() | self.foreign.bookkeeping | {"instruction"}
        for name in sorted(set(self.foreign.columns) - used):
            self.report.note("lost", name, "", "the mapping does not name it")

    def _meta(self, steps: int, instruction: str) -> dict[str, Any]:
        contract = self._contract()
        return {
            **self.foreign.meta,
            "task": self.mapping.task or self.foreign.meta["task"],
            "instruction": instruction,
            "success": bool(self.foreign.meta.get("success", self.fields["success"][-1])),
            "num_steps": steps,
            "version": 2,
            "contract": contract.to_dict(),
            "contract_digest": contract.digest,
        }

    def _contract(self) -> Contract:
        where = str(self.foreign.path)
        if self.mapping.contract is not None:
            return Contract.parse(self.mapping.contract, f"{where}: mapping")
        hz = self.mapping.control_hz or self.foreign.control_hz
        if hz is None:
            mend = "Say it: --set control_hz=50."
            raise SchemaError(where, "a control rate", "none in the files", mend, code="E604")
        default = "two_arm" if len(self.mapping.arms) == 2 else "single_arm"
        data = {
            "embodiment": self.mapping.embodiment or default,
            "control_hz": hz,
            "action": self.mapping.action,
            "arms": [*self._arms()],
            "cameras": [
                {"field": name, "height": rows.shape[1], "width": rows.shape[2]}
                for name, rows in self.fields.items()
                if name in self.mapping.cameras
            ],
        }
        self.report.note("added", "contract", "metadata.contract", "made of the mapping")
        return Contract.parse(data, where)

    def _arms(self) -> Iterator[dict[str, Any]]:
        for name, arm in self.mapping.arms.items():
            count = self.fields[f"q_{name}"].shape[1]
            joints = arm.joints or tuple(f"{name}_{number}" for number in range(count))
            yield {"name": name, "joints": joints, "limits": arm.limits}

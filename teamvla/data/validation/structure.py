"""One file's rules: its layout, each column by itself, then columns against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Arm, Contract
from teamvla.data.fields import meaning_in
from teamvla.data.npz import Columns, EpisodeFile, parse_json_text
from teamvla.data.schema import STEP_SPECS, FieldSpec, spec_of, validate_columns
from teamvla.data.validation.pictures import Pictures, sum_up
from teamvla.data.validation.record import Record
from teamvla.errors import SchemaError

_LIMIT_SLACK = 1e-4  # rad; float32 targets at a limit may lie this far beyond it
_RATE_SLACK = 0.1
Problem = tuple[int | None, SchemaError]
Problems = Iterator[Problem]


def check_place(file: EpisodeFile, root: Path) -> Problems:
    """Whether a file lies where its metadata says."""
    folder = file.path.parent
    if folder == root:
        return
    for key, got in (("task", folder.name), ("episode_id", file.path.stem)):
        if file.meta[key] != got:
            where = "the folder" if key == "task" else "the file"
            expected = f"{got!r}, the name of {where}"
            yield None, SchemaError(key, expected, repr(file.meta[key]), code="E401")


class Structure:
    """Reads every column of a file once; what can be trusted is kept for the judgements."""

    def __init__(self, file: EpisodeFile) -> None:
        self._file = file
        self._columns: Columns = {}
        self._small: dict[str, np.ndarray] = {}
        self._pictures: dict[str, Pictures] = {}
        self._unsound: set[str] = set()
        self._contract: Contract | None = None
        self._digest: str | None = None
        self._specs: Mapping[str, FieldSpec] = STEP_SPECS

    def record(self) -> Record:
        """What is sound; complete after :meth:`problems`."""
        lengths = Counter(shape[0] for _, shape in self._columns.values() if shape)
        steps = lengths.most_common(1)[0][0] if lengths else 0  # the metadata may be wrong
        kept = {
            name
            for name, of in (self._small | self._pictures).items()
            if name not in self._unsound and len(of) == steps
        }
        small = {name: self._small[name] for name in self._small if name in kept}
        pictures = {name: self._pictures[name] for name in self._pictures if name in kept}
        meaning = self._contract, self._digest, self._specs
        return Record(self._file.meta, small, pictures, *meaning, steps)

    def problems(self) -> Problems:
        """Every broken rule, with the first step at fault."""
        self._contract = yield from self._read_contract()
        for name in self._file.fields:
            if name in self._file.constants:
                continue  # checked with the rest of the metadata
            yield from self._marked(self._column(name))
        yield from self._marked(self._layout())
        yield from self._flags()
        yield from self._time(self._contract)
        if self._contract is not None:
            yield from self._keeps(self._contract)

    def _marked(self, problems: Problems) -> Problems:
        for step, problem in problems:
            self._unsound.add(problem.where)
            yield step, problem

    def _column(self, name: str) -> Problems:
        """Read one column, check its values, and keep what the judgements need of it."""
        try:
            array = self._file.read(name)
        except SchemaError as error:
            yield None, error
            self._shape_at_least(name)
            return
        if not isinstance(array, np.ndarray):
            yield from self._ragged(name, array)
            return
        self._columns[name] = (array.dtype, array.shape)
        if array.ndim and len(array):
            spec = spec_of(name, self._specs)
            if spec is None or spec.fits(array.dtype, array.shape[1:]) is None:
                yield from self._values(name, array, spec)

    def _ragged(self, name: str, column: Any) -> Problems:
        """A column whose steps differ in length: its numbers must be finite, too."""
        self._shape_at_least(name)
        rows = np.asarray(column.values)
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
            step = int(np.searchsorted(column.offsets, bad.argmax(), "right")) - 1
            got = f"NaN or infinity in {int(bad.sum())} rows"
            yield step, SchemaError(name, "finite numbers", got, code="E107")
        spec = spec_of(name, self._specs)
        if spec is None or not spec.is_bounded or rows.dtype != spec.dtype or not len(rows):
            return
        bad = spec.outside(rows).reshape(len(rows), -1).any(axis=1)
        if bad.any():
            step = int(np.searchsorted(column.offsets, bad.argmax(), "right")) - 1
            got = f"others in {int(bad.sum())} rows"
            yield step, SchemaError(name, f"values {spec.span}", got, code="E108")

    def _shape_at_least(self, name: str) -> None:
        """What is damaged may still have a header, and then counts as being there."""
        with suppress(SchemaError):
            self._columns.update(self._file.columns([name]))

    def _values(self, name: str, array: np.ndarray, spec: FieldSpec | None) -> Problems:
        if spec is not None:
            yield from _check_values(name, array, spec)
        if name in self._file.meta.get("json_fields", ()):
            yield from _check_json(self._file.path, name, array)
        if array.ndim <= 2:
            self._small[name] = array
        elif self._is_picture(name, array):
            self._pictures[name] = sum_up(array, self._file.members[name].crc)

    def _is_picture(self, name: str, array: np.ndarray) -> bool:
        signals = () if self._contract is None else self._contract.signals
        if any(signal.field == name for signal in signals):  # such as the cells of a grid
            return False
        return (
            array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and array.size > 0
        )

    def _layout(self) -> Problems:
        meta = self._file
        rules = validate_columns(self._columns, meta.constants, meta.num_steps, self._specs)
        for problem in rules:
            # A field that is there but unreadable was named already.
            if problem.code != "E102" or problem.where not in meta.fields:
                yield None, problem

    def _flags(self) -> Problems:
        meta, small = self._file.meta, self._small
        if "success" in small and meta["success"] and not small["success"][-1]:
            last = len(small["success"]) - 1
            expected = "True at the last step of a success"
            yield last, SchemaError("success", expected, "False", code="E402")
        if "instruction" in small and small["instruction"][0] != meta["instruction"]:
            expected, got = repr(meta["instruction"]), repr(str(small["instruction"][0]))
            yield 0, SchemaError("instruction", f"the metadata's {expected}", got, code="E403")
        if "task" in small:
            wrong = small["task"] != meta["task"]
            expected = f"the metadata's {meta['task']!r}"
            yield from _first(wrong, "task", expected, small["task"], "E404")

    def _read_contract(self) -> Generator[Problem, None, Contract | None]:
        try:
            contract, self._digest, self._specs = meaning_in(self._file.meta)
        except SchemaError as error:
            yield None, error
            return None
        said = self._file.meta.get("contract_digest", self._digest)
        if contract is not None and said != self._digest:
            expected, got = str(self._digest)[:12], str(said)[:12]
            yield None, SchemaError("contract_digest", expected, got, code="E411")
        return contract

    def _time(self, contract: Contract | None) -> Problems:
        time = self._small.get("timestamp")
        if time is None or len(time) < 2 or time.ndim != 1:
            return
        ticks = np.diff(time)
        wrong = np.r_[False, ticks <= 0]
        yield from _first(wrong, "timestamp", "time to increase", time, "E415")
        if contract is None or wrong.any():
            return
        tick = float(np.median(ticks))
        if abs(tick * contract.control_hz - 1) > _RATE_SLACK:
            rate = f"the contract's {contract.control_hz:g} Hz"
            expected = f"about {1 / contract.control_hz:.4g} s a step, {rate}"
            yield None, SchemaError("timestamp", expected, f"{tick:.4g} s", code="E416")

    def _keeps(self, contract: Contract) -> Problems:
        for camera in contract.cameras:
            size = (camera.height, camera.width, 3)
            yield from self._fits(camera.field, size, "the contract's camera", "E413")
        for arm in contract.arms:
            for kind in ("q", "action"):
                joints = (arm.num_joints,)
                yield from self._fits(f"{kind}_{arm.name}", joints, "the contract's arm", "E412")
            if contract.action == "absolute_joint_position":
                yield from self._limits(arm)

    def _fits(self, name: str, shape: tuple[int, ...], what: str, code: str) -> Problems:
        got = self._columns[name][1][1:] if name in self._columns else None
        if got != shape:
            shown = "nothing" if got is None else str(list(got))
            yield None, SchemaError(name, f"{list(shape)}, {what}", shown, code=code)

    def _limits(self, arm: Arm) -> Problems:
        name, limits = f"action_{arm.name}", arm.joint_limits
        action = self._small.get(name)
        if not limits or action is None or action.shape[1:] != (arm.num_joints,):
            return
        low, high = np.array(limits).T
        wrong = (action < low - _LIMIT_SLACK) | (action > high + _LIMIT_SLACK)
        if not wrong.any():
            return
        for joint in np.flatnonzero(wrong.any(axis=0)):
            expected = f"{arm.joint_names[joint]} in [{low[joint]:g}, {high[joint]:g}] rad"
            yield from _first(wrong[:, joint], name, expected, action[:, joint], "E414")


def _check_values(name: str, array: np.ndarray, spec: FieldSpec) -> Problems:
    if array.dtype.kind == "U":
        yield from _first(array == "", name, "text", array, "E109")
    steps = array.reshape(len(array), -1)
    if array.dtype.kind == "f" and spec.finite and not (finite := np.isfinite(steps)).all():
        yield from _worst(~finite, name, "finite numbers", steps, "E107")
    if spec.is_bounded:
        yield from _worst(spec.outside(steps), name, f"values {spec.span}", steps, "E108")


def _worst(wrong: np.ndarray, name: str, expected: str, steps: np.ndarray, code: str) -> Problems:
    """The problem of bool[T, D], with the first value at fault of the first such step."""
    values = np.take_along_axis(steps, wrong.argmax(axis=1)[:, None], axis=1)[:, 0]
    yield from _first(np.asarray(wrong.any(axis=1)), name, expected, values, code)


def _check_json(path: Path, name: str, array: np.ndarray) -> Problems:
    for step, text in enumerate(array.reshape(-1)):
        try:
            parse_json_text(path, name, text)
        except SchemaError as error:
            yield step, error
            return


def _first(wrong: np.ndarray, name: str, expected: str, values: np.ndarray, code: str) -> Problems:
    """The problem at the first step where ``wrong`` holds, with the count of such steps."""
    count = int(wrong.sum())
    if count:
        step = int(wrong.argmax())
        got = f"{values[step].item()!r} ({count} of {len(wrong)} steps)"
        yield step, SchemaError(name, expected, got, code=code)

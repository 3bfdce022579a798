"""Looking for everything that is wrong with recorded episodes.

Reading stops at the first broken rule; validating goes on and lists them all, one
finding per rule and field, with the first step at fault and how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Arm, Contract
from teamvla.data.episodes import find_episodes
from teamvla.data.npz import Columns, EpisodeFile, parse_json_text
from teamvla.data.schema import FieldSpec, spec_of, validate_columns
from teamvla.errors import ContractError, InputError, SchemaError
from teamvla.logs import progress

_LIMIT_SLACK = 1e-4  # rad; float32 targets at a limit may lie this far beyond it
_RATE_SLACK = 0.1
_BATCH = 512
_Problem = tuple[int | None, SchemaError]
_Problems = Iterator[_Problem]


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        code: of the rule, see :mod:`teamvla.data.codes`.
        path: the file.
        step: the first step at fault, counted from 0; ``None`` if it is not about a step.
        field: the field or metadata key; ``None`` if it is about the file.
        message: what was expected and what was found.
    """

    code: str
    path: Path
    step: int | None
    field: str | None
    message: str

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {
            "code": self.code,
            "file": str(self.path),
            "step": self.step,
            "field": self.field,
            "message": self.message,
        }


@dataclass(frozen=True)
class ValidationReport:
    """What was found in a set of episodes.

    Attributes:
        episodes: how many files were looked at.
        findings: in the order of the files.
    """

    episodes: int
    findings: tuple[Finding, ...]

    @property
    def invalid(self) -> int:
        """How many files have findings."""
        return len({finding.path for finding in self.findings})


def validate_roots(roots: Iterable[str | Path], *, workers: int | None = None) -> ValidationReport:
    """Check every episode below ``roots``; a root may also be a single file.

    Args:
        roots: folders of episodes.
        workers: threads; the report is the same for any number.

    Raises:
        InputError: a root is missing or holds no episode.
    """
    files = list(dict.fromkeys(job for root in roots for job in _files(Path(root))))
    findings: list[Finding] = []
    with progress("validate", len(files), "episode") as bar:
        for found in _in_order(files, workers or min(8, os.cpu_count() or 1)):
            findings.extend(found)
            bar.advance(findings=str(len(findings)))
    return ValidationReport(len(files), tuple(findings))


def _files(root: Path) -> list[tuple[Path, Path]]:
    if root.is_file():
        return [(root, root.parent)]
    return [(path, root) for path in find_episodes(root)]


def _in_order(files: Sequence[tuple[Path, Path]], workers: int) -> Iterator[list[Finding]]:
    if workers == 1:
        yield from (validate_file(*file) for file in files)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(0, len(files), _BATCH):
            yield from pool.map(lambda file: validate_file(*file), files[first : first + _BATCH])
    finally:
        pool.shutdown(cancel_futures=True)


def validate_file(path: str | Path, root: str | Path | None = None) -> list[Finding]:
    """Everything that is wrong with one episode file; empty if it is sound.

    Args:
        path: the file.
        root: folder of the episodes, below which files lie as ``TASK/EPISODE_ID.npz``;
            by default two levels up. A file that lies in ``root`` itself may have any name.
    """
    path = Path(path)
    root = path.parent.parent if root is None else Path(root)
    try:
        with EpisodeFile(path) as file:
            problems = [*_Check(file).problems(), *_check_place(file, root)]
    except SchemaError as error:
        problems = [(None, error)]
    except InputError as error:
        problems = [(None, SchemaError(str(path), error.expected, error.got, code="E217"))]
    return [_finding(path, step, problem) for step, problem in problems]


def _finding(path: Path, step: int | None, problem: SchemaError) -> Finding:
    field = problem.where.removeprefix(str(path)).removeprefix(": ").removesuffix(".npy") or None
    message = f"expected {problem.expected}, got {problem.got}"
    return Finding(problem.code or "", path, step, field, message)


def _check_place(file: EpisodeFile, root: Path) -> _Problems:
    folder = file.path.parent
    if folder == root:
        return
    for key, got in (("task", folder.name), ("episode_id", file.path.stem)):
        if file.meta[key] != got:
            where = "the folder" if key == "task" else "the file"
            expected = f"{got!r}, the name of {where}"
            yield None, SchemaError(key, expected, repr(file.meta[key]), code="E401")


class _Check:
    """One file's checks: the layout, each column by itself, then columns against each other."""

    def __init__(self, file: EpisodeFile) -> None:
        self._file = file
        self._columns: Columns = {}
        self._small: dict[str, np.ndarray] = {}

    def problems(self) -> _Problems:
        unsound = set()
        for step, problem in self._layout():
            unsound.add(problem.where)
            yield step, problem
        for name, (_, shape) in self._columns.items():
            if name not in unsound and shape[0]:
                yield from self._column(name)
        yield from self._flags()
        contract = yield from self._read_contract()
        yield from self._time(contract)
        if contract is not None:
            yield from self._keeps(contract)

    def _layout(self) -> _Problems:
        for name in self._file.fields:
            try:
                self._columns.update(self._file.columns([name]))
            except SchemaError as error:
                yield None, error
        meta = self._file
        for problem in validate_columns(self._columns, meta.constants, meta.num_steps):
            # A field that is there but unreadable was named already.
            if problem.code != "E102" or problem.where not in meta.fields:
                yield None, problem

    def _column(self, name: str) -> _Problems:
        """Read one column, check its values, and keep it if it is a small one."""
        try:
            array = self._file.read(name)
        except SchemaError as error:
            yield None, error
            return
        spec = spec_of(name)
        if spec is not None:
            yield from _check_values(name, array, spec)
        if name in self._file.meta.get("json_fields", ()):
            yield from _check_json(self._file.path, name, array)
        if array.ndim <= 2:
            self._small[name] = array

    def _flags(self) -> _Problems:
        meta, small = self._file.meta, self._small
        if "success" in small and meta["success"] and not small["success"][-1]:
            last = len(small["success"]) - 1
            yield (
                last,
                SchemaError("success", "True at the last step of a success", "False", code="E402"),
            )
        if "instruction" in small and small["instruction"][0] != meta["instruction"]:
            expected, got = repr(meta["instruction"]), repr(str(small["instruction"][0]))
            yield 0, SchemaError("instruction", f"the metadata's {expected}", got, code="E403")
        if "task" in small:
            wrong = small["task"] != meta["task"]
            expected = f"the metadata's {meta['task']!r}"
            yield from _first(wrong, "task", expected, small["task"], "E404")

    def _read_contract(self) -> Generator[_Problem, None, Contract | None]:
        meta = self._file.meta
        if "contract" not in meta:
            return None
        try:
            contract = Contract.parse(meta["contract"], "metadata")
        except ContractError as error:
            yield None, SchemaError("contract", "a contract", error.where, code="E411")
            return None
        digest = meta.get("contract_digest", contract.digest)
        if digest != contract.digest:
            got = str(digest)[:12]
            yield None, SchemaError("contract_digest", contract.digest[:12], got, code="E411")
        return contract

    def _time(self, contract: Contract | None) -> _Problems:
        time = self._small.get("timestamp")
        if time is None or len(time) < 2:
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

    def _keeps(self, contract: Contract) -> _Problems:
        for camera in contract.cameras:
            size = (camera.height, camera.width, 3)
            yield from self._fits(camera.field, size, "the contract's camera", "E413")
        for arm in contract.arms:
            for kind in ("q", "action"):
                joints = (arm.num_joints,)
                yield from self._fits(f"{kind}_{arm.name}", joints, "the contract's arm", "E412")
            yield from self._limits(arm)

    def _fits(self, name: str, shape: tuple[int, ...], what: str, code: str) -> _Problems:
        got = self._columns[name][1][1:] if name in self._columns else None
        if got != shape:
            shown = "nothing" if got is None else str(list(got))
            yield None, SchemaError(name, f"{list(shape)}, {what}", shown, code=code)

    def _limits(self, arm: Arm) -> _Problems:
        name = f"action_{arm.name}"
        action = self._small.get(name)
        if action is None or action.shape[1:] != (arm.num_joints,):
            return
        for joint, link in enumerate(arm.links):
            low, high = link.limits
            values = action[:, joint]
            wrong = (values < low - _LIMIT_SLACK) | (values > high + _LIMIT_SLACK)
            expected = f"{link.joint} in [{low:g}, {high:g}] rad"
            yield from _first(wrong, name, expected, values, "E414")


def _check_values(name: str, array: np.ndarray, spec: FieldSpec) -> _Problems:
    steps = array.reshape(len(array), -1)
    if array.dtype.kind == "U":
        yield from _first(array == "", name, "text", array, "E109")
    if array.dtype.kind != "f" or not spec.finite:
        return
    finite = np.isfinite(steps)
    wrong = ~finite.all(axis=1)
    worst = np.take_along_axis(steps, finite.argmin(axis=1)[:, None], axis=1)[:, 0]
    yield from _first(wrong, name, "finite numbers", worst, "E107")
    if spec.low is not None and spec.high is not None:
        outside = ((array < spec.low) | (array > spec.high)) & ~wrong
        expected = f"values in [{spec.low:g}, {spec.high:g}]"
        yield from _first(outside, name, expected, array, "E108")


def _check_json(path: Path, name: str, array: np.ndarray) -> _Problems:
    for step, text in enumerate(array.reshape(-1)):
        try:
            parse_json_text(path, name, text)
        except SchemaError as error:
            yield step, error
            return


def _first(wrong: np.ndarray, name: str, expected: str, values: np.ndarray, code: str) -> _Problems:
    """The problem at the first step where ``wrong`` holds, with the count of such steps."""
    count = int(wrong.sum())
    if count:
        step = int(wrong.argmax())
        got = f"{values[step].item()!r} ({count} of {len(wrong)} steps)"
        yield step, SchemaError(name, expected, got, code=code)

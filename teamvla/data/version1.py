"""Episode files of version 1: object arrays, read without executing them.

Version 1 was a ``.npz`` of two object arrays, as :func:`numpy.savez_compressed` or
:func:`numpy.savez` pickles them. What is accepted:

- the metadata, a dict, as ``metadata``, ``meta`` or ``episode_meta``: an array without
  axes, or with one entry;
- the steps, one dict each, as ``steps`` or ``step_data``: an array with one axis, or one
  without axes that holds a list or tuple;
- values in them: None, bool, int, float, text, lists, dicts with texts as keys, and
  NumPy arrays and scalars of numbers or text. Nothing else, and no other member.

The required fields are those of the contract in the metadata, or of ``two_arm``.

There ``action_*`` of step t are the PREVIOUS targets, those that led to observation t.
Here row t holds the command that was sent from observation t, so:

- ``action_*`` of step t+1 become those of row t, and ``success`` goes with them: it says
  whether the task was done after that command, and the flag of the last step is kept;
- ``grip_*`` stay: version 1 calls them commands of the tick, and not previous ones;
- the last step has an observation, but no command was sent from it: its row is dropped,
  and so are the first step's previous target and flag, from before the first command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from teamvla.data.columns import Column, column_for
from teamvla.data.npy import read_pickle
from teamvla.data.npz import MAX_META_BYTES, Episode
from teamvla.data.pickle_machine import Budget
from teamvla.data.pickles import load_objects
from teamvla.data.ragged import Ragged
from teamvla.data.schema import (
    EPISODE_FILE_VERSION,
    FieldSpec,
    arms_of,
    meaning_in,
    validate_episode_meta,
    validate_step,
)
from teamvla.data.zipcontainer import (
    MAX_BYTES,
    MEND,
    Member,
    MemberStream,
    read_directory,
    refuse,
)
from teamvla.errors import ConfigError, EpisodeError, InputError, SchemaError
from teamvla.files import canonical_json, check_file

LegacyActions = Literal["previous", "current"]
_META = {"meta.npy", "metadata.npy", "episode_meta.npy"}
_STEPS = {"steps.npy", "step_data.npy"}
_MEND = "Mend it where it was written: its bytes are whole, what they say breaks a rule."
_TOO_SHORT = "Remove it; or, if each action is its own step's already, --legacy-actions current."


def read_version1(
    path: str | Path, legacy_actions: LegacyActions = "previous", max_bytes: int = MAX_BYTES
) -> Episode:
    """Read a version-1 file as an episode of version 2.

    Args:
        path: the file.
        legacy_actions: ``previous`` puts the alignment right as the module says;
            ``current`` keeps every row as it is, for files whose actions are those of
            their own step already.
        max_bytes: limit on what the file may take in memory: its content, what the
            pickles in it make, and the columns that come of it.

    Returns:
        The episode; ``meta["version1"]`` says how it was aligned and how many steps the
        old file had.

    Raises:
        ConfigError: ``legacy_actions`` is neither.
        InputError: there is no such file.
        EpisodeError: anything in the file breaks a rule; its code names which.
    """
    if legacy_actions not in get_args(LegacyActions):
        raise ConfigError("legacy_actions", "previous or current", repr(legacy_actions))
    path = Path(path)
    with _opened(path) as file:
        try:
            return _Reader(file, path, max_bytes).episode(legacy_actions)
        except (OSError, MemoryError) as error:
            reason = "not enough memory" if isinstance(error, MemoryError) else str(error.strerror)
            raise refuse(str(path), "to read it", reason.lower(), "E217") from None


def is_version1(path: str | Path) -> bool:
    """Whether a file's members are those of version 1; the members are not looked into.

    Raises:
        InputError: there is no such file.
    """
    with _opened(Path(path)) as file:
        try:
            names = set(read_directory(file, str(path), sys.maxsize))
        except (EpisodeError, OSError):
            return False
        return bool(names & _STEPS)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        check_file(path, "an episode file")
        file = path.open("rb", buffering=0)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(str(path), "an episode file", reason) from None
    with file:
        yield file


class _Reader:
    """One file on its way to an episode."""

    def __init__(self, file: BinaryIO, path: Path, max_bytes: int) -> None:
        self._file, self._path = file, path
        self._members = read_directory(file, str(path), max_bytes)
        content = sum(member.size for member in self._members.values())
        self._budget = Budget(max_bytes - content, str(path))

    def episode(self, legacy_actions: LegacyActions) -> Episode:
        """Everything from the members to the checked columns."""
        meta_member, steps_member = self._pair()
        meta = self._metadata(self._objects(meta_member, MAX_META_BYTES))
        steps = self._steps(self._objects(steps_member, None))
        specs = self._specs(meta)
        said = meta.pop("num_steps", len(steps))
        if said != len(steps):
            raise self._refuse(f"{said!r} steps, as the metadata says", f"{len(steps)}", "E241")
        for number, step in enumerate(steps):
            self._checked(number, validate_step, step, specs)
        rows = _aligned(steps, specs) if legacy_actions == "previous" else steps
        if not rows:
            got = "none: the last step has no command of its own"
            raise self._refuse("two steps or more", got, "E276", _TOO_SHORT)
        meta["version1"] = {"legacy_actions": legacy_actions, "num_steps": len(steps)}
        return self._stacked(meta, rows, specs)

    def _refuse(self, expected: str, got: str, code: str, mend: str = _MEND) -> EpisodeError:
        return EpisodeError(str(self._path), expected, got, mend, code=code)

    def _specs(self, meta: dict[str, Any]) -> Mapping[str, FieldSpec]:
        try:
            return meaning_in(meta).specs
        except SchemaError as error:
            where = f"{self._path}: {error.where}"
            raise EpisodeError(where, error.expected, error.got, _MEND, code=error.code) from None

    def _checked(self, number: int, check: Callable[..., object], *values: Any) -> None:
        """Let what breaks a rule of the schema be told of the file and the step."""
        try:
            check(*values)
        except SchemaError as error:
            where = f"{self._path}: steps[{number}].{error.where}"
            mend = error.mend or _MEND
            raise EpisodeError(where, error.expected, error.got, mend, code=error.code) from None

    def _pair(self) -> tuple[Member, Member]:
        meta, steps = self._members.keys() & _META, self._members.keys() & _STEPS
        if len(meta) != 1 or len(steps) != 1 or len(self._members) != 2:
            got = ", ".join(sorted(self._members)[:9]) or "nothing"
            raise self._refuse("metadata.npy and steps.npy, and no other member", got, "E271", MEND)
        return self._members[meta.pop()], self._members[steps.pop()]

    def _objects(self, member: Member, limit: int | None) -> tuple[tuple[int, ...], list[Any]]:
        """Shape and values of a member that is an object array."""
        where = f"{self._path}: {member.name}"
        if limit is not None and member.size > limit:
            raise refuse(where, f"at most {limit} bytes", str(member.size), "E125")
        found = read_pickle(MemberStream(self._file, member, where), member.size, where)
        if found is None:
            got = "numbers or text: it is no file of version 1"
            raise refuse(where, "an array of objects", got, "E272")
        shape, pickle = found
        self._budget.where = where
        return shape, load_objects(pickle, shape, self._budget)

    def _metadata(self, found: tuple[tuple[int, ...], list[Any]]) -> dict[str, Any]:
        shape, values = found
        if shape not in ((), (1,)) or type(values[0]) is not dict:
            raise self._refuse("one dict as the metadata", f"shape {shape}", "E273")
        meta: dict[str, Any] = _plain(values[0])
        version = meta.pop("version", 1)
        if type(version) is not int or version != 1:
            raise self._refuse("version 1", repr(version)[:40], "E275")
        return meta

    def _steps(self, found: tuple[tuple[int, ...], list[Any]]) -> list[dict[str, Any]]:
        shape, values = found
        steps = values[0] if shape == () else values
        if len(shape) > 1 or type(steps) not in (list, tuple):
            raise self._refuse("a list of steps", f"shape {shape}", "E274")
        return list(steps)

    def _stacked(
        self, meta: dict[str, Any], rows: list[dict[str, Any]], specs: Mapping[str, FieldSpec]
    ) -> Episode:
        first = rows[0]
        for number, row in enumerate(rows):
            if row.keys() != first.keys():
                got = ", ".join(sorted(map(str, row.keys() ^ first.keys()))[:5])
                expected = "the fields of the first step"
                raise self._refuse(expected, f"others in step {number}: {got[:99]}", "E304")
        columns = {name: column_for(name, first[name], specs) for name in sorted(first)}
        for number, row in enumerate(rows):
            for name, column in columns.items():
                self._checked(number, column.check, row[name])
        fields = {n: self._column(n, [row[n] for row in rows], columns[n]) for n in columns}
        meta = {"task": first["task"], "instruction": first["instruction"], **meta}
        meta = {"success": bool(rows[-1]["success"]), **meta, "num_steps": len(rows)}
        meta = {**meta, "version": EPISODE_FILE_VERSION}
        for key, kind in (("json_fields", "is_json"), ("ragged_fields", "is_ragged")):
            meta.pop(key, None)
            if listed := [name for name, column in columns.items() if getattr(column, kind)]:
                meta[key] = listed
        self._check_meta(meta, fields)
        return Episode(self._path, meta, fields)

    def _check_meta(self, meta: dict[str, Any], fields: dict[str, np.ndarray | Ragged]) -> None:
        try:
            validate_episode_meta(meta)
        except SchemaError as error:
            where = f"{self._path}: {error.where}"
            raise EpisodeError(where, error.expected, error.got, _MEND, code=error.code) from None
        tasks, prompts = set(fields["task"]), {fields["instruction"][0]}
        for name, said in (("task", tasks), ("instruction", prompts)):
            if said != {meta[name]}:
                got = repr(sorted(map(str, said)))[:60]
                raise self._refuse(f"the metadata's {name} in the steps", got, "E277")

    def _column(self, name: str, values: list[Any], column: Column) -> np.ndarray | Ragged:
        """The checked values of one field, time first."""
        if column.is_json:
            return self._texts([canonical_json(value).decode("utf-8") for value in values])
        if type(values[0]) is str:
            return self._texts(values)
        if isinstance(values[0], np.ndarray) and values[0].ndim:
            self._budget.charge(sum(value.nbytes for value in values))
            if not column.is_ragged:
                return np.stack(values)
            return Ragged.of(values)
        for value in values:
            column.append(value)
        (array,) = column.members().values()
        return array

    def _texts(self, texts: list[str]) -> np.ndarray:
        width = max(1, *map(len, texts))
        self._budget.charge(4 * width * len(texts))
        return np.array(texts, f"U{width}")


def _aligned(steps: list[dict[str, Any]], specs: Mapping[str, FieldSpec]) -> list[dict[str, Any]]:
    """Each step with the command that was sent from it: that of the step behind it."""
    moved = [f"action_{arm}" for arm in arms_of(specs)] + ["success"]
    return [{**step, **{name: after[name] for name in moved}} for step, after in pairwise(steps)]


def _plain(value: Any) -> Any:
    """NumPy scalars in metadata as the Python values that JSON can hold."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if type(value) in (list, tuple) else value

"""The episode file, version 2: an ordinary ``.npz`` that never needs pickle.

One stacked ``.npy`` member per field, time first. ``meta.npy`` holds the bytes of
canonical UTF-8 JSON: the metadata and everything that is constant in the episode.

- ``task`` is always constant and ``instruction`` usually is: they stand in the
  metadata alone and are expanded on reading, so that ``episode.fields["instruction"]``
  has one text per step either way. An instruction that varies is a member of its own,
  and the metadata's ``instruction`` is that of the first step.
- Texts are fixed-width unicode arrays. Fields named in the metadata's ``json_fields``
  hold JSON texts; :meth:`Episode.step` parses them.
- Fields named in ``ragged_fields`` have steps of different lengths: ``points.npy`` holds
  the rows of all steps one after another, ``points-offsets.npy``, int64[T+1], where each
  step begins and the last one ends. They are read as :class:`teamvla.data.ragged.Ragged`.

``numpy.load(path, allow_pickle=False)`` reads these files; this module's reader does so
without trusting a byte of them: any file gives an :class:`Episode` or an EpisodeError
with a code (:mod:`teamvla.data.codes`), in bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from teamvla.data.fields import meaning_in
from teamvla.data.metadata import EpisodeMeta, validate_episode_meta
from teamvla.data.npy import ArrayInfo, npy_pieces, read_array, read_header
from teamvla.data.ragged import OFFSETS, Ragged
from teamvla.data.schema import validate_columns
from teamvla.data.specs import FieldSpec, check_text, describe, storable
from teamvla.data.zipcontainer import (
    MAX_BYTES,
    MEND,
    Compression,
    Member,
    MemberStream,
    read_directory,
    write_zip,
)
from teamvla.errors import EpisodeError, InputError, SchemaError
from teamvla.files import canonical_json, check_file

MAX_META_BYTES = 1 << 20  # as objects of Python they may take thirty times as much
Columns = dict[str, tuple[np.dtype, tuple[int, ...]]]
CONSTANTS = ("task", "instruction")


@dataclass(frozen=True, eq=False, repr=False)
class Episode:
    """One episode in memory.

    Attributes:
        path: the file it comes from.
        meta: the metadata as JSON data.
        fields: name -> array, time first; a :class:`Ragged` where the steps' lengths vary.
            Constants of the episode are expanded.
    """

    path: Path
    meta: dict[str, Any]
    fields: dict[str, Any]

    @property
    def num_steps(self) -> int:
        return int(self.meta["num_steps"])

    @property
    def task(self) -> str:
        return str(self.meta["task"])

    @property
    def episode_id(self) -> str:
        return str(self.meta["episode_id"])

    @property
    def instruction(self) -> str:
        """The prompt, of the first step if it varies."""
        return str(self.meta["instruction"])

    @property
    def success(self) -> bool:
        return bool(self.meta["success"])

    def step(self, index: int) -> dict[str, Any]:
        """Step ``index`` as a mapping, numbers and texts as Python values, arrays as views."""
        parsed = self.meta.get("json_fields", ())
        return {
            name: parse_json_text(self.path, name, array[index])
            if name in parsed
            else (array[index].item() if array.ndim == 1 else array[index])
            for name, array in self.fields.items()
        }

    def __repr__(self) -> str:
        columns = ", ".join(f"{k}: {describe(a.dtype, a.shape)}" for k, a in self.fields.items())
        return f"Episode({self.task}/{self.episode_id}, {self.num_steps} steps, {columns})"


def write_npz(
    file: BinaryIO, members: Mapping[str, np.ndarray], compression: Compression = "fast"
) -> None:
    """Write arrays as an ``.npz`` whose bytes depend on them and the compression alone.

    (ISA-L picks its code by processor family: ``fast`` bytes may differ between two
    families, their content never.)

    Raises:
        EpisodeError: an array cannot be stored without pickling, or they are too large.
    """
    arrays = {name: np.asarray(members[name], order="C") for name in sorted(members)}
    for name, array in arrays.items():
        if not storable(array.dtype):
            raise EpisodeError(
                name, "numbers or fixed-width text", f"{array.dtype}", MEND, code="E224"
            )
    total = sum(array.nbytes for array in arrays.values())
    if total > MAX_BYTES - (1 << 20):
        raise EpisodeError("episode", f"at most {MAX_BYTES} bytes", str(total), code="E310")
    pieces = ((f"{name}.npy", npy_pieces(array)) for name, array in arrays.items())
    write_zip(file, pieces, compression)


def encode_meta(meta: EpisodeMeta) -> np.ndarray:
    """``meta`` as the uint8 vector that ``meta.npy`` holds; SchemaError if it is too large."""
    text = canonical_json(meta.to_dict())
    if len(text) > MAX_META_BYTES:
        raise SchemaError(
            "metadata", f"at most {MAX_META_BYTES} bytes of JSON", str(len(text)), code="E125"
        )
    return np.frombuffer(text, np.uint8)


def read_meta(path: str | Path) -> dict[str, Any]:
    """The metadata of an episode, without reading its arrays.

    Raises:
        InputError: there is no such file.
        EpisodeError: the file's layout or metadata breaks a rule.
    """
    with EpisodeFile(path) as file:
        return file.meta


def read_episode(
    path: str | Path, fields: Iterable[str] | None = None, max_bytes: int = MAX_BYTES
) -> Episode:
    """Read an episode whose columns keep to the schema.

    Args:
        path: the file.
        fields: those to read; all by default. Others are neither inflated nor checked.
        max_bytes: limit on what the file may expand to.

    Raises:
        InputError: there is no such file.
        EpisodeError: anything in the file breaks a rule; its code names which.
    """
    with EpisodeFile(path, max_bytes) as file:
        wanted = file.fields if fields is None else tuple(dict.fromkeys(fields))
        columns, specs = file.columns(wanted), file.specs
        for problem in validate_columns(columns, file.constants, file.num_steps, specs):
            if fields is None or problem.code != "E102":
                raise file.refuse(problem.expected, problem.got, problem.code, problem.where)
        return Episode(file.path, file.meta, {name: file.read(name) for name in wanted})


class EpisodeFile:
    """An open episode file: directory and metadata checked, arrays still packed.

    Attributes:
        members: what the zip file holds, by name, as its directory says.
        constants: the fields that stand in the metadata, once for the whole episode.
        meta: the metadata.

    Raises:
        InputError: there is no such file.
        EpisodeError: the layout or the metadata breaks a rule.
    """

    def __init__(self, path: str | Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        try:
            check_file(self.path, "an episode file")
            self._file = self.path.open("rb", buffering=1 << 16)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(str(path), "an episode file", reason) from None
        try:
            self.members = self._directory(max_bytes)
            self.constants = tuple(name for name in CONSTANTS if name not in self.members)
            self.meta = self._read_meta()
            self._ragged = self._ragged_fields()
            self._check_json_fields()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> EpisodeFile:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    @property
    def num_steps(self) -> int:
        """What the metadata says; the arrays may disagree."""
        return int(self.meta["num_steps"])

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that :meth:`read` knows, sorted."""
        stored = (name for name in self.members if not name.endswith(OFFSETS))
        return tuple(sorted({*stored, *self.constants} - {"meta"}))

    @property
    def ragged(self) -> tuple[str, ...]:
        """The fields whose steps differ in length, sorted."""
        return self._ragged

    @property
    def specs(self) -> Mapping[str, FieldSpec]:
        """The fields that an episode of this contract must have; E411 if it is malformed."""
        try:
            return meaning_in(self.meta).specs
        except SchemaError as error:
            raise self.refuse(error.expected, error.got, error.code, error.where) from None

    def columns(self, names: Iterable[str]) -> Columns:
        """Dtypes and shapes of the stored fields among ``names``, ``(T, -1, ...)`` if ragged."""
        return {name: self._column(name) for name in names if name not in self.constants}

    def info(self, name: str) -> ArrayInfo:
        """Dtype and shape of a stored field, without reading it; of all rows if ragged."""
        with _Reading(self, name):
            return read_header(*self._open(name))

    def read(self, name: str) -> Any:
        """A field's array, or :class:`Ragged`; constants are expanded (and read-only)."""
        if name in self.constants:
            return np.broadcast_to(np.array(self.meta[name]), (self.num_steps,))
        return self._read_ragged(name) if name in self._ragged else self._read_array(name)

    def refuse(
        self, expected: str | None, got: str | None, code: str | None, field: str | None = None
    ) -> EpisodeError:
        """The error that says what is wrong with this file."""
        where = f"{self.path}: {field}" if field else str(self.path)
        return EpisodeError(where, expected, got, MEND, code=code)

    def _column(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        info = self.info(name)
        if name not in self._ragged:
            return info.dtype, info.shape
        self._check_ragged(name, info)
        return info.dtype, (self.num_steps, -1, *info.shape[1:])

    def _check_ragged(self, name: str, rows: ArrayInfo) -> None:
        if not rows.shape:
            raise self.refuse("rows, one after another", "a single value", "E106", name)
        offsets, length = self.info(name + OFFSETS), self.num_steps + 1
        if offsets.dtype != np.int64 or offsets.shape != (length,):
            got = describe(offsets.dtype, offsets.shape)
            raise self.refuse(f"int64[{length}]", got, "E116", name + OFFSETS)

    def _read_array(self, name: str) -> np.ndarray:
        with _Reading(self, name):
            return read_array(*self._open(name))

    def _read_ragged(self, name: str) -> Ragged:
        self._check_ragged(name, self.info(name))
        offsets, rows = self._read_array(name + OFFSETS), self._read_array(name)
        where = name + OFFSETS
        if offsets[0] != 0:
            raise self.refuse("0 at first", str(offsets[0]), "E117", where)
        if (fall := offsets[1:] < offsets[:-1]).any():
            got = f"one that falls at step {int(fall.argmax())}"
            raise self.refuse("offsets that never fall", got, "E118", where)
        if offsets[-1] != len(rows):
            raise self.refuse(f"{len(rows)}, the rows, at last", str(offsets[-1]), "E119", where)
        return Ragged(rows, offsets)

    def _ragged_fields(self) -> tuple[str, ...]:
        listed = self.meta.get("ragged_fields", [])
        unknown = [name for name in listed if name not in self.members or name == "meta"]
        if unknown or len(set(listed)) != len(listed):
            got = repr(", ".join(unknown or listed))[:80]
            raise self.refuse("fields of this file, once each", got, "E114", "ragged_fields")
        whole = {name + OFFSETS for name in listed}
        found = {name for name in self.members if name.endswith(OFFSETS)}
        if whole != found:
            odd = ", ".join(sorted(whole ^ found))
            expected = "offsets of each of ragged_fields and of no other"
            raise self.refuse(expected, f"a difference in {odd}", "E115")
        return tuple(sorted(listed))

    def _check_json_fields(self) -> None:
        """Nothing but texts may be parsed: of pictures it would be every single pixel."""
        listed = self.meta.get("json_fields", [])
        unknown = [name for name in listed if name not in self.members or name == "meta"]
        if unknown or len(set(listed)) != len(listed):
            got = repr(", ".join(unknown or listed))[:80]
            raise self.refuse("fields of this file, once each", got, "E127", "json_fields")
        for name in listed:
            info = self.info(name)
            if info.dtype.kind != "U" or len(info.shape) != 1:
                got = describe(info.dtype, info.shape)
                raise self.refuse("str[T], as json_fields lists it", got, "E128", name)

    def _directory(self, max_bytes: int) -> dict[str, Member]:
        with _Reading(self, None):
            members = read_directory(self._file, str(self.path), max_bytes)
        return {name.removesuffix(".npy"): member for name, member in members.items()}

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise self.refuse(f"a field called {name}", ", ".join(self.fields), "E242")
        return self.members[name]

    def _open(self, name: str) -> tuple[MemberStream, int, str]:
        member, where = self._member(name), f"{self.path}: {name}"
        return MemberStream(self._file, member, where), member.size, where

    def _read_meta(self) -> dict[str, Any]:
        if "meta" not in self.members:
            old = "steps" in self.members or "step_data" in self.members
            got = "none, as in version 1, which `teamvla convert` rewrites" if old else "none"
            raise self.refuse("metadata", got, "E231")
        info = self.info("meta")
        if info.dtype != np.uint8 or len(info.shape) != 1:
            raise self.refuse("uint8[n]", describe(info.dtype, info.shape), "E231", "meta")
        if info.nbytes > MAX_META_BYTES:
            raise self.refuse(f"at most {MAX_META_BYTES} bytes", str(info.nbytes), "E125", "meta")
        return self._parse_meta(self._read_array("meta").tobytes())

    def _parse_meta(self, text: bytes) -> dict[str, Any]:
        try:
            meta = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            raise self.refuse("UTF-8 JSON", "something else", "E232", "meta") from None
        if not isinstance(meta, dict):
            raise self.refuse("a JSON object", type(meta).__name__, "E233", "meta")
        try:
            validate_episode_meta(meta)  # refuses NaN, infinities and lone surrogates, too
            _check_file_meta(meta)
        except SchemaError as error:
            raise self.refuse(error.expected, error.got, error.code, error.where) from None
        return meta


def _check_file_meta(meta: dict[str, Any]) -> None:
    """What a file's metadata must say, where a writer's caller may leave it out."""
    for key in ("success", "num_steps", "version", "instruction"):
        if key not in meta:
            raise SchemaError(f"metadata.{key}", "a value", "nothing", code="E122")
    check_text("metadata.instruction", meta["instruction"])
    for key in ("json_fields", "ragged_fields"):
        listed = meta.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            got = type(listed).__name__
            raise SchemaError(f"metadata.{key}", "a list of names", got, code="E124")


class _Reading:
    """Turns what the operating system and memory refuse into an EpisodeError."""

    def __init__(self, file: EpisodeFile, field: str | None) -> None:
        self._episode, self._field = file, field

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | MemoryError):
            got = "not enough memory" if isinstance(error, MemoryError) else str(error.strerror)
            raise self._episode.refuse("to read it", got.lower(), "E217", self._field) from None


def parse_json_text(path: Path, name: str, text: Any) -> Any:
    """The value in one text of a JSON field; EpisodeError if it is not JSON."""
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):
        raise EpisodeError(f"{path}: {name}", "JSON text", repr(text)[:60], code="E243") from None

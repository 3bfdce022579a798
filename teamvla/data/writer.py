"""Writing episodes, step by step: validated on insertion, published whole or not at all."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from teamvla.contract import Contract
from teamvla.data.claims import Claims, discard, exists, unwritten
from teamvla.data.columns import Column, column_for
from teamvla.data.episodes import episode_path
from teamvla.data.journal import SYNC_EVERY, Journal, hold, unlock_and_close
from teamvla.data.npz import encode_meta, write_npz
from teamvla.data.schema import (
    STEP_SPECS,
    EpisodeMeta,
    FieldSpec,
    meaning_in,
    validate_columns,
    validate_episode_meta,
    validate_sizes,
    validate_step,
)
from teamvla.data.zipcontainer import MAX_BYTES, Compression
from teamvla.errors import ConfigError, EpisodeError, SchemaError
from teamvla.files import publish, sync_directory

LOG = logging.getLogger(__name__)
_ROOM = 2 << 20  # for metadata and headers
_DERIVED = ("num_steps", "json_fields", "ragged_fields")
CONTRACT_KEYS = ("contract", "contract_digest")
_SETTLED = ("task", "episode_id", "version", "success", *CONTRACT_KEYS, *_DERIVED)
Leftover = Literal["refuse", "discard"]


class EpisodeWriter:
    """Writes ``ROOT/TASK/EPISODE_ID.npz`` files, one episode at a time.

    ::

        with EpisodeWriter("data/episodes", fmt="npz") as writer:
            meta = writer.start_episode({"task": "lift"})
            writer.add_step(step)
            path = writer.end_episode(success=True)

    The bytes of a file depend on its steps, metadata and compression alone. Every step
    goes into a hidden journal as well, from which ``teamvla repair`` makes an episode if
    the process is killed, or an exception leaves the block. Leaving it without one drops
    an episode that was not ended, journal and all, as ``abort`` and ``close`` do. After an
    error the writer can be used again: a refused step changes nothing. An episode that the
    disk did not take can be ended again; else its journal stays for ``teamvla repair``.

    Args:
        root: folder of the episodes; created with the first one.
        fmt: ``npz``.
        compression: ``fast`` (deflate by ISA-L), ``stored`` or ``zlib``.
        journal: ``False`` for what can be made again: nothing outlives a kill, and two
            writers that choose ids by themselves may choose the same.
        leftover: what to do with the journal that a killed writer left of the same
            episode: ``refuse`` (run ``teamvla repair``) or ``discard`` it.
        sync_every: after so many steps the journal is synced: a killed process loses no
            step, a power cut at most these.
    """

    _meta: EpisodeMeta | None
    _success: bool | None
    _journal: Journal | None
    _contract: Contract | None
    _specs: Mapping[str, FieldSpec]
    _columns: dict[str, Column]
    _failed: bool
    _num_steps: int

    def __init__(
        self,
        root: str | Path,
        fmt: str = "npz",
        compression: Compression = "fast",
        *,
        journal: bool = True,
        leftover: Leftover = "refuse",
        sync_every: int = SYNC_EVERY,
    ) -> None:
        if fmt != "npz":
            raise ConfigError("fmt", "npz", repr(fmt))
        if compression not in get_args(Compression):
            raise ConfigError("compression", " or ".join(get_args(Compression)), repr(compression))
        if leftover not in get_args(Leftover):
            raise ConfigError("leftover", " or ".join(get_args(Leftover)), repr(leftover))
        if sync_every < 1:
            raise ConfigError("sync_every", "at least 1", repr(sync_every))
        self.root = Path(root)
        self._compression: Compression = compression
        self._claims = Claims(self.root, compression, journal, leftover == "discard", sync_every)
        self._reset()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        # What was recorded until something went wrong is worth as much as after a kill.
        self._failed |= kind is not None and self._num_steps > 0
        self.close()

    def start_episode(self, meta: Mapping[str, Any]) -> EpisodeMeta:
        """Begin an episode.

        Args:
            meta: ``task``; optionally ``episode_id`` (else the first free
                ``episode-000000``, ``episode-000001``, ...), ``success``,
                ``instruction`` (else the first step's) and anything JSON can hold.

        Returns:
            The metadata with the episode's id.

        Raises:
            SchemaError: the metadata breaks a rule.
            EpisodeError: another episode is being written; this one exists already, another
                process records it, or a killed one left its journal.
            EpisodeWriteError: the disk is full, or the folder cannot be written.
        """
        if self._meta is not None and self._failed:
            self.close()  # the disk refused it: its journal stays
        if self._meta is not None:
            raise self._error("no episode under way", "one that was not ended", "E302")
        if not isinstance(meta, Mapping):
            raise SchemaError("metadata", "a mapping", type(meta).__name__, code="E121")
        given = {key: value for key, value in meta.items() if key not in _DERIVED}
        # The task becomes a folder: it is checked before a path is made of it.
        auto = "episode_id" not in given
        checked = validate_episode_meta({**given, "episode_id": "auto"} if auto else given)
        encode_meta(checked)  # too large is better known now than when all is recorded
        meaning = meaning_in(given)
        claim = self._claims.any_free if auto else self._claims.this
        self._meta, self._journal = claim(given)
        self._contract, self._specs = meaning.contract, meaning.specs
        self._success = given.get("success")
        return self._meta

    def add_step(self, step: Mapping[str, Any]) -> None:
        """Copy one step into the episode.

        Raises:
            SchemaError: the step breaks a rule; it was not added.
            EpisodeError: no episode was started, or it is too large for one file.
            EpisodeWriteError: the disk did not take it; it was not added. The episode goes
                on, and its journal stays if it is not ended.
        """
        meta = self._current()
        try:
            validate_step(step, self._specs)
            self._check_against(meta, step)
            columns = self._columns or {
                name: column_for(name, step[name], self._specs) for name in step
            }
            for name, column in columns.items():
                column.check(step[name])
            if self._num_steps == 0 and self._contract is not None:
                validate_sizes(step, self._contract)
            self._check_room(step)
        except SchemaError as error:
            raise self._located(error) from None
        self._add_to_journal(step)
        for name, column in columns.items():
            column.append(step[name])
        if not self._columns:
            self._columns = columns
        self._num_steps += 1

    def end_episode(
        self, success: bool | None = None, meta: Mapping[str, Any] | None = None
    ) -> Path:
        """Publish the episode; it appears complete or not at all.

        Args:
            success: overrides the metadata's flag; without either, the last step decides.
            meta: metadata that are known only now. Task, id and contract are settled.

        Returns:
            The episode's file.

        Raises:
            SchemaError: ``success`` or ``meta`` break a rule, or ``meta`` has another
                contract than ``start_episode`` was given; the episode goes on.
            EpisodeError: it has no steps, and is dropped; or one of this name appeared
                meanwhile.
            EpisodeWriteError: the disk did not take it. Nothing is visible; call it again
                when there is room, or leave its journal to ``teamvla repair``.
        """
        current = self._current()
        if success is not None:
            STEP_SPECS["success"].check("success", success)
            self._success = bool(success)
        if not self._num_steps:
            error = self._error("at least one step", "none", "E303")
            self.abort()
            raise error
        self._check_contract_stays(current, meta or {})
        more = {key: value for key, value in (meta or {}).items() if key not in _SETTLED}
        members = self._members(validate_episode_meta({**current.to_dict(), **more}))
        self._failed = True  # until it is published: from here on only abort() drops it
        self._end_journal(more)
        path = self._publish(episode_path(self.root, current.task, current.episode_id), members)
        self._failed = False
        self.abort()
        return path

    def abort(self) -> None:
        """Drop the episode under way, if there is one."""
        journal = self._journal
        self._reset()
        if journal is not None:
            discard(journal)

    def close(self) -> None:
        """Drop the episode under way, with a warning. The writer can be used again."""
        if self._meta is not None and self._failed and self._journal is not None:
            mend = f"make an episode of it with: teamvla repair {self.root}"
            LOG.warning("%s: not published; its steps stay in a journal, %s", self._where(), mend)
            self._journal.release()
            self._reset()
        elif self._meta is not None:
            LOG.warning("%s: dropped after %d steps, not ended", self._where(), self._num_steps)
        self.abort()

    def _reset(self) -> None:
        self._meta, self._success, self._journal = None, None, None
        self._failed = False
        self._contract, self._specs, self._columns = None, STEP_SPECS, {}
        self._num_steps = 0

    def _current(self) -> EpisodeMeta:
        if self._meta is None:
            raise self._error("start_episode first", "no episode", "E301")
        return self._meta

    def _check_against(self, meta: EpisodeMeta, step: Mapping[str, Any]) -> None:
        if step["task"] != meta.task:
            raise SchemaError("task", repr(meta.task), repr(step["task"]), code="E306")
        if not self._columns:
            given = meta.extra.get("instruction", step["instruction"])
            if step["instruction"] != given:
                got = repr(step["instruction"])
                raise SchemaError("instruction", f"{given!r} at first", got, code="E306")
        elif step.keys() != self._columns.keys():
            odd = ", ".join(sorted(step.keys() ^ self._columns.keys()))
            raise SchemaError(
                "fields", "those of the first step", f"a change of {odd}", code="E304"
            )

    def _check_room(self, step: Mapping[str, Any]) -> None:
        size = sum(column.size_with(step[name]) for name, column in self._columns.items())
        if size > MAX_BYTES - _ROOM:
            mend = "End it sooner, or record smaller pictures."
            got = f"more with step {self._num_steps}"
            raise SchemaError("size", f"at most {MAX_BYTES} bytes", got, mend, code="E310")

    @staticmethod
    def _check_contract_stays(current: EpisodeMeta, meta: Mapping[str, Any]) -> None:
        for key in CONTRACT_KEYS:
            if key in meta and meta[key] != current.extra.get(key):
                expected, mend = "what start_episode was given", "Give it to start_episode."
                raise SchemaError(f"metadata.{key}", expected, "another", mend, code="E313")

    def _members(self, meta: EpisodeMeta) -> dict[str, np.ndarray]:
        """What the file holds: constants in the metadata, everything else as arrays."""
        arrays: dict[str, np.ndarray] = {}
        for column in self._columns.values():
            arrays |= column.members()
        self._check_columns(arrays)
        del arrays["task"]
        instructions = arrays["instruction"]
        if (instructions == instructions[0]).all():
            del arrays["instruction"]
        last = bool(arrays["success"][-1])
        content = {
            **meta.to_dict(),
            "success": last if self._success is None else self._success,
            "num_steps": self._num_steps,
            "instruction": str(instructions[0]),
        }
        parsed = sorted(name for name, column in self._columns.items() if column.is_json)
        ragged = sorted(name for name, column in self._columns.items() if column.is_ragged)
        content |= {"json_fields": parsed} if parsed else {}
        content |= {"ragged_fields": ragged} if ragged else {}
        return {**arrays, "meta": encode_meta(validate_episode_meta(content))}

    def _check_columns(self, arrays: Mapping[str, np.ndarray]) -> None:
        """What a reader will check, as long as there is a journal to go back to."""
        shapes = {
            name: (self._num_steps, -1, *arrays[name].shape[1:])
            if column.is_ragged
            else arrays[name].shape
            for name, column in self._columns.items()
        }
        columns = {name: (arrays[name].dtype, shape) for name, shape in shapes.items()}
        for problem in validate_columns(columns, (), self._num_steps, self._specs):
            raise self._located(problem)

    def _publish(self, path: Path, members: dict[str, np.ndarray]) -> Path:
        held: list[int] = []  # so that a repair can tell this temporary file from a stale one

        def fill(file: BinaryIO) -> None:
            held.append(hold(file.fileno()))
            write_npz(file, members, self._compression)

        try:
            return publish(path, fill)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and path.is_file()):
                raise unwritten(path, error, self._kept_below) from None
        finally:
            for descriptor in held:
                unlock_and_close(descriptor)
        return self._published_before(path, members)

    def _published_before(self, path: Path, members: dict[str, np.ndarray]) -> Path:
        """The file of this name, if an attempt that failed behind the link made it."""
        expected = io.BytesIO()
        write_npz(expected, members, self._compression)
        try:
            if path.read_bytes() == expected.getbuffer():
                sync_directory(path.parent)
                return path
        except OSError as error:
            raise unwritten(path, error, self._kept_below) from None
        raise exists(path)

    def _add_to_journal(self, step: Mapping[str, Any]) -> None:
        if self._journal is None:
            return
        try:
            self._journal.add(step)
        except OSError as error:
            self._failed = True
            raise unwritten(Path(self._where()), error, self._kept_below) from None

    def _end_journal(self, meta: Mapping[str, Any]) -> None:
        if self._journal is None:
            return
        try:
            self._journal.end(self._success, meta)
        except OSError as error:
            raise unwritten(Path(self._where()), error, self._kept_below) from None

    @property
    def _kept_below(self) -> Path | None:
        return None if self._journal is None else self.root

    def _where(self) -> str:
        if self._meta is None:
            return str(self.root)
        return str(episode_path(self.root, self._meta.task, self._meta.episode_id))

    def _error(self, expected: str, got: str, code: str) -> EpisodeError:
        return EpisodeError(self._where(), expected, got, code=code)

    def _located(self, error: SchemaError) -> SchemaError:
        where = f"{self._where()}: step {self._num_steps}: {error.where}"
        return type(error)(where, error.expected, error.got, error.mend, code=error.code)

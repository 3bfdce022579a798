"""Writing episodes, step by step: validated on insertion, published whole or not at all."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from teamvla.data.columns import Column, column_for
from teamvla.data.episodes import episode_path
from teamvla.data.npz import encode_meta, write_npz
from teamvla.data.schema import STEP_SPECS, EpisodeMeta, validate_episode_meta, validate_step
from teamvla.data.zipcontainer import MAX_BYTES, Compression
from teamvla.errors import ConfigError, EpisodeError, EpisodeWriteError, SchemaError
from teamvla.files import publish

LOG = logging.getLogger(__name__)
_ROOM = 1 << 20  # for metadata and headers
_DERIVED = ("num_steps", "json_fields")


class EpisodeWriter:
    """Writes ``ROOT/TASK/EPISODE_ID.npz`` files, one episode at a time.

    ::

        with EpisodeWriter("data/episodes", fmt="npz") as writer:
            meta = writer.start_episode({"task": "lift"})
            writer.add_step(step)
            path = writer.end_episode(success=True)

    The bytes of a file depend on its steps, metadata and compression alone. Leaving the
    block, by an exception or not, drops an episode that was not ended. After an error
    the writer can be used again: a refused step changes nothing, and an episode that
    could not be written is dropped.

    Args:
        root: folder of the episodes; created with the first one.
        fmt: ``npz``.
        compression: ``fast`` (deflate by ISA-L), ``stored`` or ``zlib``.
    """

    def __init__(
        self, root: str | Path, fmt: str = "npz", compression: Compression = "fast"
    ) -> None:
        if fmt != "npz":
            raise ConfigError("fmt", "npz", repr(fmt))
        if compression not in get_args(Compression):
            raise ConfigError("compression", " or ".join(get_args(Compression)), repr(compression))
        self.root = Path(root)
        self._compression: Compression = compression
        self._next_id: dict[str, int] = {}
        self._meta: EpisodeMeta | None = None
        self._success: bool | None = None
        self._columns: dict[str, Column] = {}
        self._num_steps = self._step_bytes = 0

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, *problem: object) -> None:
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
            EpisodeError: another episode is being written, or this one exists already.
        """
        if self._meta is not None:
            raise self._error("no episode under way", "one that was not ended", "E302")
        if not isinstance(meta, Mapping):
            raise SchemaError("metadata", "a mapping", type(meta).__name__, code="E121")
        given = {key: value for key, value in meta.items() if key not in _DERIVED}
        # The task becomes a folder: it is checked before a path is made of it.
        validate_episode_meta({**given, "episode_id": given.get("episode_id", "auto")})
        given.setdefault("episode_id", self._free_id(given["task"]))
        checked = validate_episode_meta(given)
        encode_meta(checked)  # too large is better known now than when all is recorded
        path = episode_path(self.root, checked.task, checked.episode_id)
        if path.exists():
            raise _exists(path)
        self._meta, self._success = checked, given.get("success")
        return checked

    def add_step(self, step: Mapping[str, Any]) -> None:
        """Copy one step into the episode.

        Raises:
            SchemaError: the step breaks a rule; it was not added.
            EpisodeError: no episode was started, or it is too large for one file.
        """
        meta = self._current()
        try:
            validate_step(step)
            self._check_against(meta, step)
            columns = self._columns or {name: column_for(name, step[name]) for name in step}
            for name, column in columns.items():
                column.check(step[name])
        except SchemaError as error:
            raise self._located(error) from None
        for name, column in columns.items():
            column.append(step[name])
        if not self._columns:
            self._columns, self._step_bytes = columns, sum(c.step_bytes for c in columns.values())
        self._num_steps += 1

    def end_episode(self, success: bool | None = None) -> Path:
        """Publish the episode; it appears complete or not at all.

        Args:
            success: overrides the metadata's flag; without either, the last step decides.

        Returns:
            The episode's file.

        Raises:
            SchemaError: ``success`` is not a flag; the episode is kept.
            EpisodeError: it has no steps, exists already, or cannot be written. The
                episode is dropped.
        """
        meta = self._current()
        if success is not None:
            STEP_SPECS["success"].check("success", success)
            self._success = bool(success)
        try:
            if not self._num_steps:
                raise self._error("at least one step", "none", "E303")
            path = episode_path(self.root, meta.task, meta.episode_id)
            return self._publish(path, self._members(meta))
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the episode under way, if there is one."""
        self._meta = self._success = None
        self._columns = {}
        self._num_steps = self._step_bytes = 0

    def close(self) -> None:
        """Drop the episode under way, with a warning. The writer can be used again."""
        if self._meta is not None:
            LOG.warning("%s: dropped after %d steps, not ended", self._where(), self._num_steps)
        self.abort()

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
        elif (self._num_steps + 1) * self._step_bytes > MAX_BYTES - _ROOM:
            mend = "End it sooner, or record smaller pictures."
            got = f"step {self._num_steps} of {self._step_bytes} bytes each"
            raise SchemaError("size", f"at most {MAX_BYTES} bytes", got, mend, code="E310")

    def _members(self, meta: EpisodeMeta) -> dict[str, np.ndarray]:
        """What the file holds: constants in the metadata, everything else as arrays."""
        arrays = {name: column.array() for name, column in self._columns.items()}
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
        if parsed:
            content["json_fields"] = parsed
        return {**arrays, "meta": encode_meta(validate_episode_meta(content))}

    def _publish(self, path: Path, members: dict[str, np.ndarray]) -> Path:
        def fill(file: BinaryIO) -> None:
            write_npz(file, members, self._compression)

        try:
            return publish(path, fill)
        except OSError as error:
            if isinstance(error, FileExistsError) and path.exists():
                raise _exists(path) from None
            raise _unwritten(path, error) from None

    def _free_id(self, task: str) -> str:
        number = self._next_id.get(task, 0)
        while episode_path(self.root, task, f"episode-{number:06d}").exists():
            number += 1
        self._next_id[task] = number
        return f"episode-{number:06d}"

    def _where(self) -> str:
        if self._meta is None:
            return str(self.root)
        return str(episode_path(self.root, self._meta.task, self._meta.episode_id))

    def _error(self, expected: str, got: str, code: str) -> EpisodeError:
        return EpisodeError(self._where(), expected, got, code=code)

    def _located(self, error: SchemaError) -> SchemaError:
        where = f"{self._where()}: step {self._num_steps}: {error.where}"
        return type(error)(where, error.expected, error.got, error.mend, code=error.code)


def _exists(path: Path) -> EpisodeError:
    mend = "Choose another id or folder, or remove it."
    return EpisodeError(str(path), "a new episode", "one that exists", mend, code="E307")


def _unwritten(path: Path, error: OSError) -> EpisodeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "Free some space and record it again; nothing was left behind."
        return EpisodeWriteError(str(path), "room on the disk", "none left", mend, code="E308")
    reason = (error.strerror or str(error)).lower()
    return EpisodeWriteError(str(path), "a file that can be written", reason, code="E309")

"""What killed recorders leave behind, and what becomes of it.

A journal that ends with its episode's end holds all of it and is published as it would
have been. Any other becomes an episode called ``ID-partial``, so that ``ID`` itself can
be recorded again; ``partial`` in its metadata is true, and it counts as failed unless
its last step says success. Nothing that exists is replaced, no clock is asked, and what
a living writer holds is left alone. A journal goes only when an episode that can be read
has all its steps: one that is damaged in its midst, or has a step that no writer takes,
is set aside as ``.ID.part.damaged`` once what stands before that is saved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from teamvla.data.episodes import episode_path
from teamvla.data.journal import (
    SUFFIX,
    JournalReader,
    Lock,
    is_at,
    journal_path,
    lock,
    unlock_and_close,
)
from teamvla.data.npz import read_episode
from teamvla.data.schema import validate_episode_meta
from teamvla.data.writer import CONTRACT_KEYS, EpisodeWriter
from teamvla.data.zipcontainer import Compression
from teamvla.errors import InputError, SchemaError, TeamVLAError

Action = Literal["publish", "recover", "remove", "keep", "leave", "stuck"]
_NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
_JOURNAL = re.compile(rf"\.({_NAME}){re.escape(SUFFIX)}")
_TEMPORARY = re.compile(rf"\.({_NAME})\.npz\.[a-z0-9_]{{8}}\.tmp")
_DAMAGED = re.compile(rf"\.({_NAME}){re.escape(SUFFIX)}\.damaged(-[0-9]+)?")
_LONGEST_ID = 64


@dataclass(frozen=True)
class Leftover:
    """One left-over file, and what is to be done about it.

    Attributes:
        path: the journal or temporary file.
        action: ``publish`` the whole episode, ``recover`` a partial one, ``remove`` what
            holds nothing new, ``keep`` a damaged journal whose first steps are saved
            already, ``leave`` what a living writer holds, or ``stuck``: nothing can be done
            without you.
        reason: why.
        steps: whole steps that it holds.
        target: the episode that it becomes, or that has its steps already.
        done: whether it was done.
        kept: where a damaged journal was set aside.
    """

    path: Path
    action: Action
    reason: str
    steps: int = 0
    target: Path | None = None
    done: bool = False
    kept: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data."""
        paths = {"path": self.path, "target": self.target, "kept": self.kept}
        texts = {name: None if path is None else str(path) for name, path in paths.items()}
        return {**asdict(self), **texts}


@dataclass(frozen=True)
class RepairReport:
    """What was found below the roots, sorted by path."""

    leftovers: list[Leftover] = field(default_factory=list)

    @property
    def open(self) -> list[Leftover]:
        """What still asks for something to be done."""
        return [
            one for one in self.leftovers if one.kept or not (one.done or one.action == "leave")
        ]


def repair_roots(roots: Sequence[str | Path], apply: bool = False) -> RepairReport:
    """Judge every left-over below ``roots`` and, with ``apply``, act.

    Without ``apply`` nothing is changed. Applying it twice is the same as once, and one
    that is killed midway can be run again.

    Raises:
        InputError: a root is missing, is no folder, or cannot be listed.
    """
    found: dict[str, Leftover] = {}
    for root in roots:
        for path in find_leftovers(root):
            key = os.path.realpath(path)
            one = None if key in found else repair(path, apply)
            if one is not None:
                found[key] = one
    return RepairReport(sorted(found.values(), key=lambda one: one.path))


def find_leftovers(root: str | Path) -> Iterator[Path]:
    """Journals and temporary files of episodes below a root; hidden folders are skipped."""
    if not Path(root).is_dir():
        got = "a file" if Path(root).exists() else "nothing there"
        raise InputError(str(root), "a folder of episodes", got)
    for folder, below, names in os.walk(root, onerror=_refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if any(kind.fullmatch(name) for kind in (_JOURNAL, _TEMPORARY, _DAMAGED)):
                yield Path(folder, name)


def repair(path: Path, apply: bool = False) -> Leftover | None:
    """Judge one left-over file and, with ``apply``, act; ``None`` if it is gone by now."""
    if _DAMAGED.fullmatch(path.name):
        reason = "a damaged journal that was set aside; remove it when you need no more of it"
        return Leftover(path, "stuck", reason)
    judge = _judge_journal if path.name.endswith(SUFFIX) else _judge_temporary
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Leftover(path, "stuck", f"cannot be opened: {_said(error)}")
    try:
        locked = lock(descriptor)
        if not is_at(descriptor, path):
            return None
        if locked is Lock.HELD:
            return Leftover(path, "leave", "a writer is at work on it")
        if locked is Lock.UNKNOWN:
            mend = "no locks here to tell whether its writer lives; repair a copy on a local disk"
            return Leftover(path, "stuck", mend)
        return judge(path, descriptor, apply)
    except OSError as error:
        return Leftover(path, "stuck", _said(error))
    finally:
        unlock_and_close(descriptor)


def _judge_temporary(path: Path, descriptor: int, apply: bool) -> Leftover:
    if _writer_lives(path):
        return Leftover(path, "leave", "a writer is at work on it")
    return _remove(path, "an episode that was not published; a journal holds its steps", apply)


def _writer_lives(temporary: Path) -> bool:
    """Whether the journal beside a temporary file is locked."""
    found = _TEMPORARY.fullmatch(temporary.name)
    assert found is not None
    try:
        descriptor = os.open(journal_path(temporary.with_name(f"{found[1]}.npz")), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return lock(descriptor) is not Lock.TAKEN
    finally:
        unlock_and_close(descriptor)


def _judge_journal(path: Path, descriptor: int, apply: bool) -> Leftover:
    reader = JournalReader(descriptor)
    if reader.start is None and reader.barely_begun:
        return _remove(path, "its writer was killed before the first step", apply)
    try:
        recovery = _Recovery(path, reader)
    except SchemaError as error:
        return Leftover(path, "stuck", f"its metadata are damaged: {error}")
    if not recovery.steps:
        if recovery.loses:
            return Leftover(path, "stuck", recovery.reason)
        return _remove(path, "no step was recorded", apply)
    return recovery.decide(apply)


class _Recovery:
    """One journal with whole metadata, gone through once to see what it holds."""

    def __init__(self, path: Path, reader: JournalReader) -> None:
        start = reader.start or {}
        self.path, self._reader = path, reader
        self._root, self._task = path.parent.parent, path.parent.name
        self._id = path.name[1 : -len(SUFFIX)]
        self._compression: Compression = "fast"
        if start.get("compression") in get_args(Compression):
            self._compression = start["compression"]
        self._meta = dict(start.get("meta", {}))
        self._check_place()
        self.flaw: str | None = None
        self.steps = self._count()
        self._end = reader.end if self.flaw is None else None
        # Known now: whoever goes through the steps again need not come to their end.
        self._damage, self._torn = reader.damage, reader.torn

    def decide(self, apply: bool) -> Leftover:
        """Where the steps go."""
        same, target = self._target()
        if same:
            action: Action = "keep" if self.loses else "remove"
            reason = self.reason if self.loses else "its episode was published"
            plan = Leftover(self.path, action, reason, self.steps, target)
            return self._let_go(plan) if apply else plan
        action = "publish" if self._whole else "recover"
        plan = Leftover(self.path, action, self.reason, self.steps, target)
        return self._carry_out(plan, target.stem) if apply else plan

    @property
    def loses(self) -> bool:
        """Whether the journal holds more than its steps and a record that was cut off."""
        return self.flaw is not None or (self._damage is not None and not self._torn)

    @property
    def _whole(self) -> bool:
        return self._end is not None

    @property
    def reason(self) -> str:
        """Why it is not an episode yet, or not a whole one."""
        if self._whole:
            return "the episode was ended and not yet published"
        return self.flaw or self._damage or "its writer was killed"

    def _check_place(self) -> None:
        meta = validate_episode_meta(self._meta)
        if (meta.task, meta.episode_id) != (self._task, self._id):
            expected, got = f"{self._task}/{self._id}", f"{meta.task}/{meta.episode_id}"
            raise SchemaError("metadata", f"those of {expected}", got)

    def _count(self) -> int:
        """How many steps a writer takes; ``flaw`` says why not the next one."""
        with self._writer() as writer:
            self._start(writer, "any")
            number = self._fill(writer)
            writer.abort()
        return number

    def _fill(self, writer: EpisodeWriter) -> int:
        number = 0
        for step in self._reader.steps():
            try:
                writer.add_step(step)
            except SchemaError as error:
                self.flaw = f"step {number} is refused: [{error.code}] {error.got}"
                break
            number += 1
        return number

    def _writer(self) -> EpisodeWriter:
        return EpisodeWriter(self._root, compression=self._compression, journal=False)

    def _start(self, writer: EpisodeWriter, episode_id: str, **more: Any) -> None:
        # What was promised at the start is not known to have come true.
        given = {key: value for key, value in self._meta.items() if key != "success"}
        writer.start_episode({**given, "episode_id": episode_id, **more})

    def _target(self) -> tuple[bool, Path]:
        """Whether an episode has the steps already, and its path; else the one to make."""
        own = episode_path(self._root, self._task, self._id)
        if own.exists() and self._is_in(own):
            return True, own
        for candidate in self._candidates(own):
            if not candidate.exists() or _is_empty(candidate):
                return False, candidate
            if self._is_in(candidate):
                return True, candidate
        raise AssertionError("names do not end")

    def _candidates(self, own: Path) -> Iterator[Path]:
        if self._whole:
            yield own
        stem = "" if self._whole else "-partial"
        for number in count(1 if stem else 2):
            suffix = stem if number == 1 else f"{stem}-{number}"
            yield own.with_name(f"{self._id[: _LONGEST_ID - len(suffix)]}{suffix}.npz")

    def _is_in(self, path: Path) -> bool:
        """Whether an episode's first steps are those of the journal, bit by bit."""
        try:
            episode = read_episode(path)
        except (SchemaError, InputError):
            return False
        if episode.num_steps < self.steps or (self._whole and episode.num_steps != self.steps):
            return False
        pairs = zip(range(self.steps), self._reader.steps(), strict=False)
        return all(_same_step(episode.step(index), step) for index, step in pairs)

    def _carry_out(self, plan: Leftover, episode_id: str) -> Leftover:
        own = episode_path(self._root, self._task, self._id)
        try:
            if _is_empty(own):
                own.unlink()
            with self._writer() as writer:
                self._start(writer, episode_id, **({} if self._whole else {"partial": True}))
                self._fill(writer)
                self._end_episode(writer)
        except TeamVLAError as error:
            return replace(plan, action="stuck", reason=str(error))
        if plan.target is None or not self._is_in(plan.target):
            reason = f"{plan.target} does not read as the journal does"
            return replace(plan, action="stuck", reason=reason)
        return self._let_go(plan)

    def _let_go(self, plan: Leftover) -> Leftover:
        """Remove the journal, or set it aside if an episode has not all of it."""
        if not self.loses:
            self.path.unlink(missing_ok=True)
            return replace(plan, done=True)
        names = (f"{self.path.name}.damaged{end}" for end in _endings())
        kept = next(one for one in map(self.path.with_name, names) if not one.exists())
        self.path.rename(kept)
        return replace(plan, done=True, kept=kept)

    def _end_episode(self, writer: EpisodeWriter) -> None:
        if self._end is None:
            writer.end_episode()
            return
        success, more = self._end.get("success"), self._end.get("meta")
        promised = self._meta.get("success")
        decided = next((flag for flag in (success, promised) if isinstance(flag, bool)), None)
        more = more if isinstance(more, dict) else {}
        # Once the contract could be changed here, which the steps were not checked against.
        writer.end_episode(decided, {k: v for k, v in more.items() if k not in CONTRACT_KEYS})


def _endings() -> Iterator[str]:
    yield ""
    yield from (f"-{number}" for number in count(2))


def _same_step(stored: dict[str, Any], journalled: dict[str, Any]) -> bool:
    return stored.keys() == journalled.keys() and all(
        _same_value(value, journalled[name]) for name, value in stored.items()
    )


def _same_value(stored: Any, journalled: Any) -> bool:
    if isinstance(stored, np.ndarray) and isinstance(journalled, np.ndarray):
        same = (stored.dtype, stored.shape) == (journalled.dtype, journalled.shape)
        return same and stored.tobytes() == journalled.tobytes()
    if type(stored) is float and type(journalled) is float:
        with np.errstate(over="ignore"):  # a Python number of a float32 field is rounded there
            rounded = float(np.float32(journalled))
        return repr(stored) in (repr(journalled), repr(rounded))
    return type(stored) is type(journalled) and bool(stored == journalled)


def _is_empty(path: Path) -> bool:
    """Whether it is a name that was claimed where there are no links, and never filled."""
    return path.is_file() and path.stat().st_size == 0


def _remove(path: Path, reason: str, apply: bool) -> Leftover:
    if apply:
        path.unlink(missing_ok=True)
    return Leftover(path, "remove", reason, done=apply)


def _refuse(error: OSError) -> None:
    raise InputError(str(error.filename), "a folder that can be listed", _said(error))


def _said(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

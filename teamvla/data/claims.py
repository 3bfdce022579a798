"""Claiming the name of an episode: by its journal, which only one writer can create."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teamvla.data.episodes import episode_path
from teamvla.data.journal import Journal, Lock, is_at, journal_path, lock, unlock_and_close
from teamvla.data.schema import EpisodeMeta, validate_episode_meta
from teamvla.errors import EpisodeError, EpisodeWriteError

LOG = logging.getLogger(__name__)
Claimed = tuple[EpisodeMeta, Journal | None]


@dataclass
class Claims:
    """How one writer comes by its names.

    Attributes:
        root: folder of the episodes.
        compression: of the episode, noted in the journal for a repair.
        journaled: whether there are journals; without, nothing is claimed.
        sync_every: steps between two syncs of a journal.
        discards: whether a journal that a killed writer left may be removed.
    """

    root: Path
    compression: str
    journaled: bool
    discards: bool
    sync_every: int
    _next: dict[str, int] = field(default_factory=dict)

    def any_free(self, given: Mapping[str, Any]) -> Claimed:
        """Claim the first id that neither an episode nor a journal has."""
        task = given["task"]
        number = self._next.get(task, 0)
        while True:
            episode_id = f"episode-{number:06d}"
            path = episode_path(self.root, task, episode_id)
            if not (path.exists() or (self.journaled and journal_path(path).exists())):
                with suppress(FileExistsError):
                    meta, journal = self._open({**given, "episode_id": episode_id}, path)
                    self._next[task] = number
                    return meta, journal
            number += 1

    def this(self, given: Mapping[str, Any]) -> Claimed:
        """Claim the id that was given."""
        path = episode_path(self.root, given["task"], given["episode_id"])
        if path.exists():
            raise exists(path)
        for _ in range(2):
            try:
                return self._open(given, path)
            except FileExistsError:
                if path.exists():
                    raise exists(path) from None
                self._clear(path)
        raise _busy(path)

    def _open(self, given: Mapping[str, Any], path: Path) -> Claimed:
        """Open the journal; FileExistsError if the journal or by now the episode exists."""
        meta = validate_episode_meta(given)
        if not self.journaled:
            return meta, None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritten(path, error) from None
        try:
            journal = Journal.create(journal_path(path), self.sync_every)
        except FileExistsError:
            raise
        except OSError as error:
            raise unwritten(path, error) from None
        try:
            # Whoever published it meanwhile has removed the journal only afterwards.
            if path.exists():
                raise FileExistsError(str(path))
            journal.start(given, self.compression)
        except BaseException as error:
            discard(journal)
            if isinstance(error, OSError) and not isinstance(error, FileExistsError):
                raise unwritten(path, error) from None
            raise
        return meta, journal

    def _clear(self, path: Path) -> None:
        """Remove the journal that a killed writer left, if that is wished."""
        journal = journal_path(path)
        try:
            descriptor = os.open(journal, os.O_RDWR)
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritten(journal, error) from None
        try:
            if lock(descriptor) is Lock.HELD:
                raise _busy(path)
            if not self.discards:
                raise _left_over(path, self.root)
            if is_at(descriptor, journal):
                journal.unlink()
                LOG.info("%s: a killed recording of it is discarded", path)
        finally:
            unlock_and_close(descriptor)


def exists(path: Path) -> EpisodeError:
    """The error of a name that an episode has."""
    mend = "Choose another id or folder, or remove it."
    return EpisodeError(str(path), "a new episode", "one that exists", mend, code="E307")


def unwritten(path: Path, error: OSError, kept_below: Path | None = None) -> EpisodeWriteError:
    """The error of a disk that refused; ``kept_below``: the root, if there is a journal."""
    again = "try again"
    if kept_below is not None:
        again += f", or make an episode of what there is with: teamvla repair {kept_below}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        expected, got, mend = "room on the disk", "none left", f"Free some space and {again}."
        return EpisodeWriteError(str(path), expected, got, mend, code="E308")
    expected, got = "a file that can be written", (error.strerror or str(error)).lower()
    return EpisodeWriteError(str(path), expected, got, f"Mend that and {again}.", code="E309")


def discard(journal: Journal) -> None:
    """Remove a journal; the episode is safe or dropped, so that failing is no reason to fail."""
    try:
        journal.discard()
    except OSError as error:
        LOG.warning("%s: cannot be removed: %s", journal.path, (error.strerror or "").lower())


def _busy(path: Path) -> EpisodeError:
    got, mend = "one that another process records", "Choose another id, or wait until it is done."
    return EpisodeError(str(path), "a new episode", got, mend, code="E311")


def _left_over(path: Path, root: Path) -> EpisodeError:
    got = "the journal of a recording that was killed"
    mend = f"Make an episode of it with: teamvla repair {root}"
    return EpisodeError(str(path), "a new episode", got, mend, code="E312")

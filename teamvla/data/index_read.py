"""Reading the episodes that an index does not know yet, several at a time, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.contract import Contract
from teamvla.data.cache_shards import Stored
from teamvla.data.index_format import IndexConfig
from teamvla.data.layout import Layout
from teamvla.data.manifest import Entry, FileState
from teamvla.data.npz import Episode, read_episode
from teamvla.data.packing import Buffers, pack, store
from teamvla.errors import ContractError, EpisodeError, InputError
from teamvla.files import sha256_file

#: the file could not be read at all: looked at again in every run
UNREADABLE = "E217"
#: episodes disagree with each other: no reason to leave out the one that comes second
_DISAGREEMENT = "E503"
THREADS = min(4, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Read:
    """What became of a file.

    Attributes:
        entry: its row of the table.
        stored: its steps; None if they are known already or left out.
        known: the row of the standing table that has the same bytes, or -1.
        place: its first row among the steps and the actions once they are written; -1: nowhere.
        reason: why it is unusable, if it is.
    """

    entry: Entry
    stored: Stored | None = None
    known: int = -1
    place: tuple[int, int] = (-1, -1)
    reason: str = ""


@dataclass
class Agreement:
    """What all episodes of an index share; the first one decides."""

    layout: Layout | None = None
    contract: dict[str, Any] | None = None
    first: Path | None = None

    def join(self, episode: Episode) -> Layout:
        """The layout; ContractError if the episode's numbers mean something else."""
        contract = episode.meta.get("contract")
        if self.layout is None or self.first is None:
            parsed = Contract.parse(contract, str(episode.path)) if contract else None
            layout = Layout.of(episode, parsed)
            self.layout, self.contract, self.first = layout, contract, episode.path
        elif contract != self.contract:
            self._refuse(contract, episode.path)
        return self.layout

    def _refuse(self, contract: dict[str, Any] | None, path: Path) -> None:
        if contract is None or self.contract is None:
            raise ContractError(
                str(path),
                f"{'a' if contract is None else 'no'} contract, as in {self.first}",
                "none" if contract is None else "one",
            )
        reference = Contract.parse(self.contract, str(self.first))
        reference.require(Contract.parse(contract, str(path)), str(self.first), str(path))


class EpisodeReader:
    """Reads episodes into the form of the cache.

    Args:
        roots: the index's roots.
        config: its settings.
        agreement: what the episodes that stand have in common.
        known: digest of a file -> row of the standing table with its content.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        config: IndexConfig,
        agreement: Agreement,
        known: Mapping[str, int],
    ) -> None:
        self.roots, self.config, self.agreement, self.known = roots, config, agreement, known
        self._quality = config.jpeg_quality if config.codec == "jpeg" else None
        self._buffers = Buffers()

    def read(self, files: Sequence[FileState]) -> Iterator[Read]:
        """Every file in order.

        Raises:
            EpisodeError: an episode cannot be used, and is not to be skipped.
            ContractError: its numbers mean something else than those of the others.
        """
        waiting = deque(files)
        while waiting and self.agreement.layout is None:
            yield self._read(waiting.popleft())
        with ThreadPoolExecutor(THREADS, "index") as pool:
            running: deque[Future[Read]] = deque()
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * THREADS:
                        running.append(pool.submit(self._read, waiting.popleft()))
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()

    def reuse(self, read: Read) -> None:
        """Take back the memory of an episode's pictures, once they are written."""
        if read.stored is not None and self._quality is None:
            self._buffers.give(read.stored.pictures.rows)

    def digest(self, file: FileState) -> str:
        """Of a file's bytes; empty if it cannot be read."""
        path = self.roots[file.root] / file.path
        if not path.is_file():  # a pipe would be waited for without end
            return ""
        try:
            return sha256_file(path)
        except OSError:
            return ""

    def _read(self, file: FileState) -> Read:
        digest = self.digest(file)
        if (row := self.known.get(digest, -1)) >= 0:
            return Read(Entry(file, "", "", 0, False, digest), known=row)
        try:
            return self._episode(file, digest)
        except (EpisodeError, InputError) as error:
            if not self.config.skip_invalid or error.code == _DISAGREEMENT:
                raise
            code = error.code or UNREADABLE
            kept = "" if code == UNREADABLE else digest
            entry = Entry(file, "", "", 0, False, kept, code)
            reason = f"expected {error.expected}, got {error.got}" if error.expected else str(error)
            return Read(entry, reason=f"{_field(error, file)}{reason}")

    def _episode(self, file: FileState, digest: str) -> Read:
        episode = read_episode(self.roots[file.root] / file.path)
        names = (episode.task, episode.episode_id, episode.num_steps, episode.success)
        entry = Entry(file, *names, digest=digest)
        if self.config.only_successful and not episode.success:
            return Read(entry)
        layout = self.agreement.join(episode)
        packed = pack(episode, layout, self._buffers)
        stored = store(packed, digest, self._quality)
        if stored.pictures.rows is not packed.images:
            self._buffers.give(packed.images)
        return Read(entry, stored)


def _field(error: EpisodeError | InputError, file: FileState) -> str:
    """The part of the file that an error names, for a line that names the file already."""
    _, _, field = error.where.partition(f"{file.path}: ")
    return f"{field}: " if field else ""

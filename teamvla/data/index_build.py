"""One run of the index builder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from teamvla.contract import Contract
from teamvla.data.cache import Cache, CacheWriter
from teamvla.data.index_format import (
    SCHEMA,
    SUMMARY,
    Index,
    IndexConfig,
    checksums,
    content_digest,
)
from teamvla.data.manifest import SKIPPED, Entry, FileState, Manifest, read_entry
from teamvla.data.npz import read_episode
from teamvla.data.packing import Layout, Packed, pack
from teamvla.data.splits import SPLITS, assign_splits
from teamvla.data.statistics import column_statistics
from teamvla.errors import ContractError, InputError
from teamvla.files import write_json
from teamvla.logs import progress

LOG = logging.getLogger(__name__)


class IndexBuild:
    """One run of the builder: what stood before, and what all episodes must agree on."""

    def __init__(
        self, roots: list[Path], folder: Path, standing: Index | None, config: IndexConfig | None
    ) -> None:
        self.roots, self.folder, self.standing = roots, folder, standing
        self.config = config or (standing.config if standing else IndexConfig())
        self.layout: Layout | None = None
        self.contract: dict[str, Any] | None = None
        self.first: Path | None = None
        self._rows: dict[str, int] = {}
        if standing is not None:
            kept = standing.episodes.rows()
            self._rows = {standing.episodes.text("digest", r): r for r in kept.tolist()}

    def run(self, files: list[FileState]) -> Index:
        """Build, publish and open the index of ``files``."""
        known = self._known()
        self._announce(files, known)
        entries = [known.get(file) or read_entry(file, self.roots[file.root]) for file in files]
        manifest = self._table(entries)
        standing = self.standing
        if standing is not None and self._same_content(standing, manifest):
            # Only times or places changed: note them, the cache is right as it is.
            manifest.save(self.folder / standing.summary["build"] / "manifest")
            write_json(self.folder / SUMMARY, {**standing.summary, "roots": self._places()})
            return Index.open(self.folder)
        build = self._new_folder()
        try:
            self._fill(build, manifest)
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        return self._publish(build, manifest)

    def _places(self) -> list[str]:
        return [str(root.resolve()) for root in self.roots]

    def _known(self) -> dict[FileState, Entry]:
        """What the standing index says about files; those it knows need not be opened."""
        if self.standing is None:
            return {}
        table = self.standing.episodes
        entries = (table.entry(row) for row in range(len(table)))
        return {entry.file: entry for entry in entries}

    def _announce(self, files: list[FileState], known: dict[FileState, Entry]) -> None:
        roots = ", ".join(map(str, self.roots))
        if self.standing is None:
            LOG.info("indexing %s: %d episodes", roots, len(files))
            return
        before = {(file.root, file.path) for file in known}
        now = {(file.root, file.path) for file in files}
        changed = sum((f.root, f.path) in before and f not in known for f in files)
        LOG.info(
            "indexing %s again: %d episodes added, %d changed, %d removed%s",
            roots,
            len(now - before),
            changed,
            len(before - now),
            "" if self.config == self.standing.config else ", other settings",
        )

    def _new_folder(self) -> Path:
        numbers = (int(folder.name[6:]) for folder in self.folder.glob("build-*"))
        folder = self.folder / f"build-{max(numbers, default=0) + 1:04d}"
        folder.mkdir()
        return folder

    def _table(self, entries: list[Entry]) -> Manifest:
        used = [entry for entry in entries if entry.success or not self.config.only_successful]
        if not used:
            raise InputError(
                ", ".join(map(str, self.roots)),
                "at least one successful episode",
                f"{len(entries)} that are not",
                "Record others, or set index.only_successful=false.",
            )
        names = [(entry.task, entry.episode_id) for entry in used]
        splits = assign_splits(names, self.config.val_fraction, self.config.test_fraction)
        by_file = dict(zip((entry.file for entry in used), splits, strict=True))
        placed = [by_file.get(entry.file, SKIPPED) for entry in entries]
        return Manifest.build(entries, placed, self.config.max_chunk)

    def _same_content(self, standing: Index, manifest: Manifest) -> bool:
        return standing.digest == content_digest(manifest) and standing.config == self.config

    def _fill(self, build: Path, manifest: Manifest) -> None:
        rows = manifest.rows()
        total = int(manifest["num_steps"][rows].sum())
        with (
            progress("index", len(rows), "episode") as state,
            CacheWriter(build / "cache", total, len(rows), self.config.max_chunk) as writer,
        ):
            for row in rows.tolist():
                writer.append(self._pack(manifest.entry(row)))
                state.advance()
        (build / "manifest").mkdir()
        manifest.save(build / "manifest")
        write_json(build / "statistics.json", _statistics(Cache(build / "cache"), manifest))

    def _pack(self, entry: Entry) -> Packed:
        path = self.roots[entry.file.root] / entry.file.path
        row = self._rows.get(entry.digest)
        if row is not None:
            assert self.standing is not None
            table = self.standing.episodes
            self._agree(self.standing.summary["contract"], path)
            self.layout = self.layout or self.standing.layout
            first, action = int(table["first_row"][row]), int(table["first_action"][row])
            return self.standing.cache.packed(first, action, entry.num_steps)
        episode = read_episode(path)
        self._agree(episode.meta.get("contract"), path)
        if self.layout is None:
            parsed = Contract.parse(self.contract, str(path)) if self.contract else None
            self.layout = Layout.of(episode, parsed)
        return pack(episode, self.layout)

    def _agree(self, contract: dict[str, Any] | None, path: Path) -> None:
        """Refuse an episode whose numbers mean something else than those before it."""
        if self.first is None:
            self.first, self.contract = path, contract
        elif contract != self.contract:
            if contract is None or self.contract is None:
                raise ContractError(
                    str(path),
                    f"{'a' if contract is None else 'no'} contract, as in {self.first}",
                    "none" if contract is None else "one",
                )
            reference = Contract.parse(self.contract, str(self.first))
            reference.require(Contract.parse(contract, str(path)), str(self.first), str(path))

    def _publish(self, build: Path, manifest: Manifest) -> Index:
        assert self.layout is not None
        cache = Cache(build / "cache")
        document = {
            "schema": SCHEMA,
            "build": build.name,
            "digest": content_digest(manifest),
            "roots": self._places(),
            "config": self.config.model_dump(mode="json"),
            "contract": self.contract,
            "layout": self.layout.to_dict(),
            "bytes": {"episodes": int(manifest["size"].sum()), "cache": cache.nbytes},
            **_counts(manifest),
            "checksums": checksums(build),
        }
        write_json(self.folder / SUMMARY, document)
        for other in self.folder.glob("build-*"):
            if other != build:
                # Whoever has it open keeps its files; new readers go to the new build.
                shutil.rmtree(other, ignore_errors=True)
        return Index.open(self.folder)


def _statistics(cache: Cache, manifest: Manifest) -> dict[str, Any]:
    steps = manifest.step_slices("train")
    actions = manifest.step_slices("train", "first_action")
    return {
        "state": column_statistics(cache.state, steps),
        "actions": column_statistics(cache.actions, actions),
        "count": sum(piece.stop - piece.start for piece in steps),
    }


def _counts(manifest: Manifest) -> dict[str, Any]:
    rows, steps = manifest.rows(), manifest["num_steps"]
    tasks: dict[str, Any] = {}
    for task in manifest.tasks():
        members = rows[manifest["task"][rows] == task.encode()]
        by_split = {
            split: members[manifest["split"][members] == split.encode()] for split in SPLITS
        }
        tasks[task] = {
            split: {"episodes": len(chosen), "steps": int(steps[chosen].sum())}
            for split, chosen in by_split.items()
        }
    episodes = {
        "total": len(manifest),
        "used": len(rows),
        "skipped": len(manifest) - len(rows),
    }
    return {"episodes": episodes, "steps": int(steps[rows].sum()), "tasks": tasks}

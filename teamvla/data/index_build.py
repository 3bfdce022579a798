"""One run of the index builder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.config.differences import differences
from teamvla.data.cache import Cache
from teamvla.data.cache_shards import RowShape, Shard, ShardInfo
from teamvla.data.index_format import (
    SCHEMA,
    SUMMARY,
    Index,
    IndexConfig,
    checksums,
    content_digest,
)
from teamvla.data.index_plan import Match, match, same_rows, shards_to_copy, usable_rows, wanted
from teamvla.data.index_read import Agreement, EpisodeReader, Read
from teamvla.data.index_shards import NewShards, renumbered, row_ends
from teamvla.data.index_statistics import index_statistics
from teamvla.data.manifest import SKIPPED, Entry, FileState, Manifest, as_text
from teamvla.data.splits import SPLITS, assign_splits
from teamvla.errors import EpisodeError, InputError
from teamvla.files import naming, read_json, sync_directory, write_json
from teamvla.logs import progress

LOG = logging.getLogger(__name__)


class IndexBuild:
    """One run of the builder: what stood before, and what all episodes must agree on.

    While it runs, rows are numbered through the shards that stood and then the new ones;
    at the end those that are no longer used are taken out.
    """

    def __init__(
        self, roots: list[Path], folder: Path, standing: Index | None, config: IndexConfig | None
    ) -> None:
        self.roots, self.folder = roots, folder
        self.config = config or (standing.config if standing else IndexConfig())
        self.before = standing
        keeps = standing is not None and same_rows(standing, self.config)
        self.standing = standing if keeps else None
        self._clear(standing)
        self.build = folder / f"build-{self._free('build'):04d}"
        cache = self.standing.cache if self.standing else None
        first = (int(cache.row_ends[-1]), int(cache.action_ends[-1])) if cache else (0, 0)
        self.new = NewShards(folder, self._free("shard"), first)
        self.agreement = Agreement()
        self._written: dict[str, tuple[int, int]] = {}

    def run(self, files: list[FileState]) -> Index:
        """Build, publish and open the index of ``files``."""
        try:
            return self._run(files)
        except BaseException as error:
            self.new.abandon(error)
            if not self._is_published():
                for folder in (self.build, *self.new.folders):
                    shutil.rmtree(folder, ignore_errors=True)
            raise

    def _is_published(self) -> bool:
        """Whether the summary names this build: what failed, failed after it was replaced."""
        try:
            return bool(read_json(self.folder / SUMMARY)["build"] == self.build.name)
        except (InputError, OSError, KeyError, TypeError):
            return False

    def _run(self, files: list[FileState]) -> Index:
        found = self._match(files)
        self._announce(found)
        reads = self._read(found)
        manifest = self._table(found, reads)
        copied = self._copy(manifest)
        self.new.close()
        infos = self._renumber(manifest)
        cache = Cache(self.folder, infos, self._shape())
        self._save(manifest, cache, self._invalid(manifest, reads))
        last = {
            "added": len(found.fresh) - found.changed,
            "changed": found.changed,
            "removed": found.removed,
            "shards_copied": copied,
        }
        return self._publish(manifest, cache, last)

    def _free(self, kind: str) -> int:
        names = (path.name.rpartition("-")[2] for path in self.folder.glob(f"{kind}-*"))
        return max((int(name) for name in names if name.isdecimal()), default=0) + 1

    def _clear(self, valid: Index | None) -> None:
        """Remove what no index names: left over by a killed build, or replaced by this one."""
        named = set[str]()
        if valid is not None:
            named = {str(valid.summary["build"]), *(s["name"] for s in valid.summary["shards"])}
        for pattern in ("build-*", "shard-*"):
            for path in self.folder.glob(pattern):
                if path.name not in named:
                    # Whoever has it open keeps its files; new readers are sent elsewhere.
                    shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _match(self, files: list[FileState]) -> Match:
        if self.standing is None:
            return match(files, None, np.zeros(0, bool))
        table = self.standing.episodes
        found = match(files, table, usable_rows(table, self.config))
        used = found.rows[table["first_row"][found.rows] >= 0]
        if len(used):
            row = int(used[0])
            first = self.roots[int(table["root"][row])] / table.text("path", row)
            self.agreement = self._standing_agreement(first)
        return found

    def _standing_agreement(self, first: Path) -> Agreement:
        assert self.standing is not None
        return Agreement(self.standing.layout, self.standing.summary["contract"], first)

    def _announce(self, found: Match) -> None:
        roots = ", ".join(map(str, self.roots))
        if self.before is None:
            LOG.info("indexing %s: %d episodes", roots, len(found.fresh))
            return
        changes = differences(
            self.before.config.model_dump(mode="json"), self.config.model_dump(mode="json")
        )
        LOG.info(
            "indexing %s again: %d episodes added, %d changed, %d removed%s",
            roots,
            len(found.fresh) - found.changed if self.standing else 0,
            found.changed,
            found.removed,
            f", {', '.join(changes)}" if changes else "",
        )

    def _read(self, found: Match) -> list[Read]:
        """Look at the files that are not known, and write their steps into new shards."""
        if not found.fresh:
            return []
        reader = EpisodeReader(self.roots, self.config, self.agreement, {})
        known = self._known_digests()
        if known and self.agreement.layout is None:
            # Every file has changed; only if one of them is an old one does the old agreement hold.
            old = (file for file in found.fresh if reader.digest(file) in known)
            if (file := next(old, None)) is None:
                known = {}
            else:
                self.agreement = self._standing_agreement(self.roots[file.root] / file.path)
        reader = EpisodeReader(self.roots, self.config, self.agreement, known)
        reads: list[Read] = []
        with progress("index", len(found.fresh), "episode") as state:
            for read in reader.read(found.fresh):
                reads.append(self._take_in(read))
                reader.reuse(read)
                state.advance()
        return reads

    def _known_digests(self) -> dict[str, int]:
        if self.standing is None:
            return {}
        table = self.standing.episodes
        rows = np.flatnonzero(usable_rows(table, self.config) & (table["problem"] == b""))
        return {table.text("digest", row): row for row in rows.tolist()}

    def _take_in(self, read: Read) -> Read:
        """Put an episode into a shard; the same without its steps, and where they went."""
        entry = read.entry
        if read.known >= 0:
            assert self.standing is not None
            table, row = self.standing.episodes, read.known
            place = int(table["first_row"][row]), int(table["first_action"][row])
            names = table.text("task", row), table.text("episode_id", row)
            facts = int(table["num_steps"][row]), bool(table["success"][row])
            entry = Entry(entry.file, *names, *facts, entry.digest)
        elif read.stored is None:
            place = -1, -1
        elif (again := self._written.get(entry.digest)) is not None:
            place = again
        else:
            place = self.new.append(read.stored, self._shape())
            self._written[entry.digest] = place
        return Read(entry, place=place, reason=read.reason)

    def _shape(self) -> RowShape:
        if self.agreement.layout is None:
            raise InputError(
                ", ".join(map(str, self.roots)),
                "at least one successful episode" if self.config.only_successful else "an episode",
                "none that can be used",
                "Record others, or set index.only_successful=false."
                if self.config.only_successful
                else "Look with `teamvla validate`.",
            )
        return self.agreement.layout.rows(self.config.max_chunk, self.config.codec)

    def _table(self, found: Match, reads: list[Read]) -> Manifest:
        fresh = Manifest.of([read.entry for read in reads])
        fresh.columns["first_row"] = np.array([read.place[0] for read in reads], "i8")
        fresh.columns["first_action"] = np.array([read.place[1] for read in reads], "i8")
        old = self.standing.episodes if self.standing else Manifest.of([])
        manifest = old.merged(found.rows, fresh, found.places)
        used = wanted(manifest, self.config)
        if not used.any():
            self.agreement = Agreement()
            self._shape()  # says that there is none
        for name in ("first_row", "first_action"):
            manifest.columns[name] = np.where(used, manifest[name], -1)
        names = zip(manifest.texts("task"), manifest.texts("episode_id"), strict=True)
        splits = assign_splits(names, self.config.val_fraction, self.config.test_fraction)
        placed = zip(splits, used.tolist(), strict=True)
        manifest.columns["split"] = as_text(split if use else SKIPPED for split, use in placed)
        self._require_most(manifest, reads)
        self._require_training(manifest)
        return manifest

    def _require_most(self, manifest: Manifest, reads: list[Read]) -> None:
        """Refuse to leave out most episodes: then it is more likely the first that is odd."""
        invalid = int((manifest["problem"] != b"").sum())
        if invalid > len(manifest.rows()):
            example = next((f": {r.entry.file.path}: {r.reason}" for r in reads if r.reason), "")
            raise EpisodeError(
                ", ".join(map(str, self.roots)), "most episodes to fit the first",
                f"{invalid} of {len(manifest)} that cannot be used{example}",
                "Look with `teamvla validate`; episodes that differ go into roots of their own.",
                code="E507",
            )  # fmt: skip

    def _require_training(self, manifest: Manifest) -> None:
        training = set(manifest["task"][manifest.rows("train")].tolist())
        if not training:
            raise InputError(
                ", ".join(map(str, self.roots)), "at least one episode that trains",
                f"{len(manifest.rows())} that are held out by their names",
                "Record more, or set index.val_fraction=0 and index.test_fraction=0.",
            )  # fmt: skip
        for task in manifest.tasks():
            if task.encode() not in training:
                LOG.warning("%s: no episode trains, all are held out by their names", task)

    def _copy(self, manifest: Manifest) -> int:
        """Write the episodes of shards that are not worth keeping into new ones."""
        if self.standing is None:
            return 0
        cache, used = self.standing.cache, manifest.rows()
        live = np.unique(manifest["first_row"][used])
        live = live[live < cache.row_ends[-1]]
        home = np.searchsorted(cache.row_ends, live, side="right")
        moved: dict[int, tuple[int, int]] = {}
        chosen = self._shards_to_copy(manifest, live, home)
        for number in sorted(chosen):
            shard = cache.shards[number]
            start = int(cache.row_ends[number]) - shard.info.rows
            for row in live[home == number].tolist():
                episode = int(np.searchsorted(shard.first_rows, row - start))
                moved[row] = self._copied(shard, episode)
        if moved:
            rows = manifest["first_row"]
            for place in np.flatnonzero(np.isin(rows, list(moved))).tolist():
                new = moved[int(rows[place])]
                manifest["first_row"][place], manifest["first_action"][place] = new
        return len(chosen)

    def _shards_to_copy(self, manifest: Manifest, live: np.ndarray, home: np.ndarray) -> set[int]:
        assert self.standing is not None
        if self.config.max_chunk != self.standing.config.max_chunk:
            return set(home.tolist())  # the actions need another padding
        rows = manifest["first_row"]
        steps = dict(zip(rows.tolist(), manifest["num_steps"].tolist(), strict=True))
        count = len(self.standing.cache.shards)
        used = np.zeros(count, np.int64)
        np.add.at(used, home, np.array([steps[row] for row in live.tolist()], np.int64))
        sizes = [shard.info.rows for shard in self.standing.cache.shards]
        return shards_to_copy(sizes, used.tolist(), len(self.new.folders))

    def _copied(self, shard: Shard, episode: int) -> tuple[int, int]:
        try:
            stored = shard.stored(episode)
        except (ValueError, IndexError) as error:
            raise InputError(
                str(shard.folder), "the steps that were written", str(error),
                "It is damaged; build it anew with `teamvla index --rebuild`.",
            ) from None  # fmt: skip
        return self.new.append(stored, self._shape())

    def _renumber(self, manifest: Manifest) -> list[ShardInfo]:
        """Take unused shards out of the numbering; those that stay."""
        old = [shard.info for shard in self.standing.cache.shards] if self.standing else []
        infos = [*old, *self.new.infos]
        steps = row_ends(infos)
        padding = [self.standing.config.max_chunk] * len(old) if self.standing else []
        padding += [self.config.max_chunk] * len(self.new.infos)
        actions = np.cumsum([i.actions(k) for i, k in zip(infos, padding, strict=True)])
        used = manifest.rows()
        homes = np.searchsorted(steps, manifest["first_row"][used], side="right")
        kept = np.unique(homes).tolist()
        for name, ends in (("first_row", steps), ("first_action", actions)):
            manifest.columns[name] = renumbered(manifest[name], ends, kept)
        return [infos[number] for number in kept]

    def _invalid(self, manifest: Manifest, reads: list[Read]) -> list[dict[str, str]]:
        """Path, code and reason of the episodes that cannot be used."""
        before = self.standing.invalid if self.standing else []
        reasons = {one["path"]: one["reason"] for one in before}
        reasons |= {self._path(r.entry.file.root, r.entry.file.path): r.reason for r in reads}
        listed = []
        for row in np.flatnonzero(manifest["problem"] != b"").tolist():
            path = self._path(int(manifest["root"][row]), manifest.text("path", row))
            code = manifest.text("problem", row)
            listed.append({"path": path, "code": code, "reason": reasons.get(path, "")})
        return listed

    def _path(self, root: int, path: str) -> str:
        return str(self.roots[root] / path)

    def _save(self, manifest: Manifest, cache: Cache, invalid: list[dict[str, str]]) -> None:
        assert self.agreement.layout is not None
        (self.build / "manifest").mkdir(parents=True)
        manifest.save(self.build / "manifest")
        with naming(self.build / "manifest"):
            sync_directory(self.build / "manifest")
        figures = index_statistics(cache, manifest, self.agreement.layout)
        write_json(self.build / "statistics.json", figures)
        write_json(self.build / "invalid.json", invalid)
        with naming(self.folder):
            sync_directory(self.folder)

    def _publish(self, manifest: Manifest, cache: Cache, last: dict[str, int]) -> Index:
        assert self.agreement.layout is not None
        shards = [shard.info for shard in cache.shards]
        used = np.unique(manifest["first_row"][manifest.rows()], return_index=True)[1]
        steps = int(manifest["num_steps"][manifest.rows()][used].sum())
        document = {
            "schema": SCHEMA,
            "build": self.build.name,
            "digest": content_digest(manifest, self.config),
            "roots": [str(root.resolve()) for root in self.roots],
            "config": self.config.model_dump(mode="json"),
            "contract": self.agreement.contract,
            "layout": self.agreement.layout.to_dict(),
            "pictures": self.config.pictures,
            "bytes": {"episodes": int(manifest["size"].sum()), "cache": cache.nbytes},
            **_counts(manifest),
            "unused_steps": sum(info.rows for info in shards) - steps,
            "last_run": last,
            "shards": [info.to_dict() for info in shards],
            "checksums": checksums(self.build),
        }
        write_json(self.folder / SUMMARY, document)
        index = Index.open(self.folder)
        self._clear(index)
        return index


def _counts(manifest: Manifest) -> dict[str, Any]:
    """Episodes and steps of every task and split, and what was left out."""
    rows = manifest.rows()
    columns = [manifest[name][rows].tolist() for name in ("task", "split", "num_steps")]
    found = {task: {s: {"episodes": 0, "steps": 0} for s in SPLITS} for task in manifest.tasks()}
    for task, split, steps in zip(*columns, strict=True):
        count = found[task.decode()][split.decode()]
        count["episodes"] += 1
        count["steps"] += steps
    invalid = int((manifest["problem"] != b"").sum())
    episodes = {
        "total": len(manifest),
        "used": len(rows),
        "skipped": len(manifest) - len(rows) - invalid,
        "invalid": invalid,
    }
    return {"episodes": episodes, "steps": sum(columns[2]), "tasks": found}

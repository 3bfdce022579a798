"""The index of a dataset: which episodes there are, how they split, and the packed cache.

    FOLDER/                   ROOT/.index by default
        summary.json          what a person wants to know; names what is valid
        lock                  held while building
        build-NNNN/
            manifest/*.npy    the table of episodes, one file per column
            statistics.json   normalisation, over the train split
            invalid.json      episodes that were left out as unusable, and why
        shard-NNNN/           steps, ready to be gathered (teamvla.data.cache_shards)

What a run of the builder makes becomes valid when ``summary.json`` is replaced, which is
done last and atomically: a killed build leaves the old index as it was. A shard is never
changed; adding episodes adds one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.data.cache import Cache
from teamvla.data.cache_shards import ShardInfo
from teamvla.data.layout import Layout
from teamvla.data.manifest import Manifest
from teamvla.errors import ContractError, InputError
from teamvla.files import read_json, sha256_file

SCHEMA = "teamvla.index/3"
#: of versions that are built anew from the episodes, with the settings that they had
OLDER = ("teamvla.index/2",)
SUMMARY = "summary.json"
#: how digests begin: what stands in checkpoints, whatever the version of the index
_CONTENT = b"teamvla.index/2"
_REBUILD = "Build it anew with `teamvla index --rebuild`."


class IndexConfig(Settings):
    """How episodes become an index."""

    val_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the episodes that only validates."
    )
    test_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="Share that neither trains nor validates."
    )
    max_chunk: int = Field(default=100, ge=1, description="Longest action chunk that can be read.")
    only_successful: bool = Field(default=True, description="Leave out failed episodes.")
    skip_invalid: bool = Field(
        default=False, description="Leave out and list unusable episodes instead of stopping."
    )
    codec: Literal["raw", "jpeg"] = Field(
        default="raw", description="How the cache keeps pictures; jpeg is smaller but lossy."
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="Of codec jpeg.")

    def over(self, before: IndexConfig) -> IndexConfig:
        """The settings that were given here, the others as they were ``before``."""
        given = self.model_dump(include=self.model_fields_set)
        return IndexConfig.model_validate({**before.model_dump(), **given})

    @model_validator(mode="after")
    def _leaves_something_to_train(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self

    @property
    def pictures(self) -> str:
        """What becomes of the pictures, in words."""
        return "exact" if self.codec == "raw" else f"lossy: JPEG, quality {self.jpeg_quality}"


class Index:
    """An index that was built, its arrays mapped into memory. Opening takes the same time at
    any number of episodes: lengths are checked, contents by :meth:`verify` and :meth:`damaged`.

    Attributes:
        folder: where ``summary.json`` stands.
        summary: its content.
        episodes: the table of episodes.
        cache: the packed steps.
        statistics: ``{"state": {mean, std, min, max, q01, q10, q50, q90, q99}, "actions": ...,
            "count", "columns", "pictures", "lengths"}`` over the train split.
        invalid: path, code and reason of each episode that was left out as unusable.
        layout: which fields the cache's rows are made of.
        config: the settings it was built with.
    """

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder, self.summary = folder, summary
        self.build = folder / summary["build"]
        self.episodes = Manifest.open(self.build / "manifest")
        self.statistics: dict[str, Any] = read_json(self.build / "statistics.json")
        self.invalid: list[dict[str, str]] = read_json(self.build / "invalid.json")
        self.layout = Layout.parse(summary["layout"])
        self.config = IndexConfig.model_validate(summary["config"])
        infos = [ShardInfo.parse(shard) for shard in summary["shards"]]
        shape = self.layout.rows(self.config.max_chunk, self.config.codec)
        self.cache = Cache(folder, infos, shape)
        lengths = {len(column) for column in self.episodes.columns.values()}
        if lengths != {int(summary["episodes"]["total"])}:
            raise ValueError(f"columns of other lengths than {SUMMARY} says")

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open the index in ``folder``.

        Raises:
            InputError: there is none, or it is damaged or of another version.
        """
        try:
            return cls._open(Path(folder))
        except InputError:
            # Perhaps replaced between reading the summary and opening what it names.
            return cls._open(Path(folder))

    @classmethod
    def _open(cls, folder: Path) -> Index:
        summary = read_json(folder / SUMMARY)
        schema = summary.get("schema") if isinstance(summary, dict) else None
        mend = "Build it with `teamvla index`."
        if schema != SCHEMA:
            raise InputError(str(folder / SUMMARY), f"schema {SCHEMA}", repr(schema), mend)
        try:
            return cls(folder, summary)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(str(folder), "a whole index", str(error), mend) from None

    def verify(self) -> None:
        """Read what is small: the table, the statistics, and what shards say of themselves.

        Raises:
            InputError: a bit of it changed. The steps are not read: see :meth:`damaged`.
        """
        whole = self.summary.get("checksums") == checksums(self.build)
        if not whole or not all(shard.is_whole() for shard in self.cache.shards):
            expected = "the table, statistics and shards that were built"
            raise InputError(str(self.folder), expected, "others", _REBUILD)
        self._require_places()

    def _require_places(self) -> None:
        table, used = self.episodes, self.episodes.rows()
        known = np.concatenate([np.zeros(0, "i8"), *self._episode_rows()])
        if not np.isin(table["first_row"][used], known).all():
            expected = "rows of the table where the shards have an episode"
            raise InputError(str(self.folder), expected, "others", _REBUILD)

    def _episode_rows(self) -> Iterator[np.ndarray]:
        starts = self.cache.row_ends - [shard.info.rows for shard in self.cache.shards]
        for shard, start in zip(self.cache.shards, starts.tolist(), strict=True):
            yield shard.first_rows + start

    def damaged(self) -> Iterator[tuple[str, list[str]]]:
        """Read every step; gives each episode's path whose cached arrays changed, and which."""
        table = self.episodes
        used = table.rows()
        paths = dict(zip(table["first_row"][used].tolist(), used.tolist(), strict=True))
        for shard, rows in zip(self.cache.shards, self._episode_rows(), strict=True):
            for number, row in enumerate(rows.tolist()):
                if names := shard.damaged(number):
                    known = paths.get(row)
                    where = "an episode that is no longer used" if known is None else None
                    yield where or table.text("path", paths[row]), names

    def changed_files(self, roots: Sequence[Path]) -> Iterator[str]:
        """Read every episode file; the paths of those that are not what was indexed."""
        table = self.episodes
        for row in np.flatnonzero(table["digest"] != b"").tolist():
            path = roots[int(table["root"][row])] / table.text("path", row)
            if not path.is_file() or sha256_file(path) != table.text("digest", row):
                yield str(path)

    @property
    def digest(self) -> str:
        """Hex digest of the content: the episodes' bytes, their splits and order."""
        return str(self.summary["digest"])

    @property
    def contract(self) -> Contract:
        """What the numbers mean; ContractError if the episodes do not say."""
        data = self.summary["contract"]
        if data is None:
            raise ContractError(
                str(self.folder),
                "episodes that carry a contract",
                "none",
                "Pass `contract` to start_episode when recording.",
            )
        return Contract.parse(data, str(self.folder / SUMMARY))

    @property
    def tasks(self) -> list[str]:
        """The tasks that can be read, sorted."""
        return list(self.summary["tasks"])

    @property
    def num_episodes(self) -> int:
        """Episodes in the cache."""
        return int(self.summary["episodes"]["used"])

    @property
    def num_steps(self) -> int:
        """Steps of these episodes."""
        return int(self.summary["steps"])

    def __repr__(self) -> str:
        counts = f"{self.num_episodes} episodes, {self.num_steps} steps"
        return f"Index({self.folder}: {counts}, tasks {', '.join(self.summary['tasks'])})"


def checksums(build: Path) -> dict[str, str]:
    """Digests of what in a build is small and decides what everything else means."""
    return {
        "manifest": Manifest.open(build / "manifest").checksum(),
        "statistics": sha256_file(build / "statistics.json"),
        "invalid": sha256_file(build / "invalid.json"),
    }


def content_digest(manifest: Manifest, config: IndexConfig) -> str:
    """Digest of names, bytes and splits, in order, and of what JPEG makes of the pictures."""
    digest = hashlib.sha256(_CONTENT)
    if config.codec != "raw":
        digest.update(config.pictures.encode())
    columns = [manifest[name].tolist() for name in ("task", "episode_id", "digest", "split")]
    for row in zip(*columns, strict=True):
        digest.update(b"\t".join(row) + b"\n")
    return digest.hexdigest()

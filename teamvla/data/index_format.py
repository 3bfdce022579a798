"""The index of a dataset: which episodes there are, how they split, and the packed cache.

    FOLDER/                   ROOT/.index by default
        summary.json          what a person wants to know; names the build that is valid
        lock                  held while building
        build-NNNN/
            manifest/*.npy    the table of episodes, one file per column
            cache/*.npy       the steps, ready to be gathered
            statistics.json   normalisation, over the train split

A build is made in a folder of its own and becomes valid when ``summary.json`` is replaced,
which is done last and atomically: a killed build leaves the old index as it was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.data.cache import Cache
from teamvla.data.manifest import Manifest
from teamvla.data.packing import Layout
from teamvla.errors import ContractError, InputError
from teamvla.files import read_json, sha256_file

SCHEMA = "teamvla.index/1"
SUMMARY = "summary.json"


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

    @model_validator(mode="after")
    def _leaves_something_to_train(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self


class Index:
    """An index that was built, its arrays mapped into memory.

    Attributes:
        folder: where ``summary.json`` stands.
        summary: its content.
        episodes: the table of episodes.
        cache: the packed steps.
        statistics: ``{"state": {mean, std, min, max, q01, q99}, "actions": ..., "count"}``
            over the steps of the train split.
        layout: which fields the cache's rows are made of.
        config: the settings it was built with.
    """

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        build = folder / summary["build"]
        self.folder, self.summary = folder, summary
        self.episodes = Manifest.open(build / "manifest")
        self.cache = Cache(build / "cache")
        self.statistics: dict[str, Any] = read_json(build / "statistics.json")
        self.layout = Layout.parse(summary["layout"])
        self.config = IndexConfig.model_validate(summary["config"])
        self._require_whole()

    def _require_whole(self) -> None:
        """ValueError unless every array is as long as the summary says."""
        cache, steps = self.cache, self.num_steps
        padded = steps + self.num_episodes * (self.config.max_chunk - 1)
        lengths = {len(column) for column in self.episodes.columns.values()}
        rows = {len(cache.images), len(cache.state), len(cache.language)}
        whole = lengths == {int(self.summary["episodes"]["total"])} and rows == {steps}
        if not whole or len(cache.actions) != padded:
            raise ValueError(f"arrays of other lengths than {SUMMARY} says")

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
        """InputError if a bit of the table or the statistics changed; the cache is not read."""
        if self.summary.get("checksums") != checksums(self.folder / self.summary["build"]):
            raise InputError(
                str(self.folder), "the table and statistics that were built", "others",
                "Build it anew with `teamvla index --rebuild`.",
            )  # fmt: skip

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
    def num_episodes(self) -> int:
        """Episodes in the cache."""
        return int(self.summary["episodes"]["used"])

    @property
    def num_steps(self) -> int:
        """Steps in the cache."""
        return int(self.summary["steps"])

    def __repr__(self) -> str:
        counts = f"{self.num_episodes} episodes, {self.num_steps} steps"
        return f"Index({self.folder}: {counts}, tasks {', '.join(self.summary['tasks'])})"


def checksums(build: Path) -> dict[str, str]:
    """Digests of what in a build is small and decides what everything else means."""
    return {
        "manifest": Manifest.open(build / "manifest").checksum(),
        "statistics": sha256_file(build / "statistics.json"),
        "instructions": sha256_file(build / "cache" / "instructions.json"),
    }


def content_digest(manifest: Manifest) -> str:
    """Digest of names, bytes and splits, in order; the same wherever the files lie."""
    digest = hashlib.sha256(SCHEMA.encode())
    for row in range(len(manifest)):
        names = ("task", "episode_id", "digest", "split")
        digest.update(b"\t".join(bytes(manifest[name][row]) for name in names) + b"\n")
    return digest.hexdigest()

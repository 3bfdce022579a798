"""Episode files of version 1, which conversion rewrites."""

from __future__ import annotations

from pathlib import Path

from teamvla.data.formats.base import ConvertConfig, Source
from teamvla.data.formats.episodes import EpisodeFiles, version_below
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.data.version1 import read_version1


class Version1Files(EpisodeFiles):
    """Files of version 1 below a root."""

    def __init__(self, root: Path, config: ConvertConfig) -> None:
        super().__init__(root)
        self._legacy = config.legacy_actions

    def read(self, key: str, report: Report) -> Episode:
        episode = read_version1(self._paths[key], self._legacy)
        for name in episode.fields:
            report.note("carried", name, name)
        if self._legacy == "previous":
            why = "told of the step before, and moved to its row"
            for name in episode.fields:
                if name == "success" or name.startswith("action_"):
                    report.note("changed", name, name, why)
            report.note("lost", "last step", "", "no command was sent from its observation")
        return episode


class Version1Format:
    """``.npz`` files of object arrays, as older recorders wrote them."""

    def recognises(self, path: Path) -> bool:
        return version_below(path) == 1

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return Version1Files(path, config)

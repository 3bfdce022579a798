"""Episode files of our own: a copy with another compression, or a part of a data set."""

from __future__ import annotations

from pathlib import Path

from teamvla.data.episodes import SUFFIX, find_episodes
from teamvla.data.formats.base import ConvertConfig, Source
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode, read_episode
from teamvla.data.version1 import is_version1
from teamvla.errors import InputError, SchemaError
from teamvla.files import sha256_file


class EpisodeFiles:
    """The episode files below a root, or one file."""

    def __init__(self, root: Path) -> None:
        paths = [root] if root.is_file() else find_episodes(root)
        self._paths = {self._key(path): path for path in paths}
        if len(self._paths) < len(paths):
            expected = "episodes of different names"
            raise SchemaError(str(root), expected, "two of one task and id", code="E601")

    @staticmethod
    def _key(path: Path) -> str:
        return f"{path.parent.name}/{path.stem}"

    def names(self) -> list[str]:
        return list(self._paths)

    def digest(self, key: str) -> str:
        return sha256_file(self._paths[key])

    def read(self, key: str, report: Report) -> Episode:
        episode = read_episode(self._paths[key])
        for name in episode.fields:
            report.note("carried", name, name)
        return episode


class EpisodesFormat:
    """``ROOT/TASK/EPISODE_ID.npz``, version 2."""

    name = "episodes"
    writable = True

    def recognises(self, path: Path) -> bool:
        return version_below(path) == 2

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return EpisodeFiles(path)

    def describe(self, episode: Episode, config: ConvertConfig, report: Report) -> None:
        """Nothing to say: an episode is what an episode file holds."""

    def build(self, source: Source, folder: Path, config: ConvertConfig) -> None:
        raise NotImplementedError("episodes are published one by one, not as a folder")


def version_below(path: Path) -> int | None:
    """2 or 1, by the members of the first episode file; None if there is none."""
    try:
        first = path if path.is_file() else find_episodes(path)[0]
    except InputError:
        return None
    if first.suffix != SUFFIX:
        return None
    return 1 if is_version1(first) else 2

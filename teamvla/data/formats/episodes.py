"""Episode files of our own: a copy with another compression, or a part of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teamvla.data.episodes import SUFFIX, episode_path, find_episodes
from teamvla.data.formats.base import ConvertConfig, Source, Target
from teamvla.data.formats.job import Job
from teamvla.data.formats.joined import DERIVED_META
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode, read_episode, read_meta
from teamvla.data.version1 import is_version1
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import EpisodeError, InputError, SchemaError
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


class EpisodesFormat(Target):
    """``ROOT/TASK/EPISODE_ID.npz``, version 2; published one by one."""

    def recognises(self, path: Path) -> bool:
        return version_below(path) == 2

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return EpisodeFiles(path)

    def foresee(self, job: Job) -> Report:
        report = Report()
        for _ in job.episodes(_doing(job), report):
            pass  # reading tells the report all: an episode is what an episode file holds
        return report

    def write(self, job: Job) -> tuple[Report, int]:
        report, skipped = Report(), 0
        with EpisodeWriter(job.out, compression=job.config.compression, journal=False) as writer:
            for key, episode in job.episodes(_doing(job), report):
                skipped += not _publish(writer, episode, job, job.digest(key))
        job.write_report(job.out, report, skipped)
        return report, skipped


def _doing(job: Job) -> str:
    return f"convert {job.format_from}"


def _publish(writer: EpisodeWriter, episode: Episode, job: Job, digest: str) -> bool:
    """Write an episode unless an earlier run did; whether it was written."""
    path = episode_path(job.out, episode.task, episode.episode_id)
    if path.exists():
        if _origin(path).get("digest") == digest:
            return False
        got = "one of another source or other settings"
        raise job.in_the_way(path, "an episode of this conversion", got)
    meta = {key: value for key, value in episode.meta.items() if key not in DERIVED_META}
    try:
        writer.start_episode({**meta, "converted": {"from": job.format_from, "digest": digest}})
        for index in range(episode.num_steps):
            writer.add_step(episode.step(index))
        writer.end_episode(success=episode.success)
    except EpisodeError as error:
        # Another process may have converted the same episode in the meantime.
        if error.code == "E307" and _origin(path).get("digest") == digest:
            writer.abort()
            return False
        raise
    return True


def _origin(path: Path) -> dict[str, Any]:
    found = read_meta(path).get("converted", {})
    return found if isinstance(found, dict) else {}


def version_below(path: Path) -> int | None:
    """2 or 1, by the members of the first episode file; None if there is none."""
    try:
        first = path if path.is_file() else find_episodes(path)[0]
    except InputError:
        return None
    if first.suffix != SUFFIX:
        return None
    return 1 if is_version1(first) else 2

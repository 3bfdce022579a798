"""Conversions: from one format to another, whole or not at all, and with a report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.data.episodes import episode_path
from teamvla.data.formats.base import FORMATS, ConvertConfig, Source, detect, digest_of, read_only
from teamvla.data.formats.building import building
from teamvla.data.formats.joined import DERIVED_META
from teamvla.data.formats.report import Report
from teamvla.data.formats.verify import verify
from teamvla.data.npz import Episode, read_meta
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import EpisodeError, InputError, SchemaError
from teamvla.files import check_folder, read_json, write_json
from teamvla.logs import progress

LOG = logging.getLogger(__name__)
REPORT = "conversion.json"


@dataclass(frozen=True)
class Conversion:
    """What a conversion did, or would do.

    Attributes:
        source, format_from: what was read.
        out, format_to: what was written.
        episodes: how many the output has.
        skipped: how many of them an earlier run had made.
        written: whether anything may have been written (no dry run).
        report: the fate of every part of the data.
    """

    source: Path
    format_from: str
    out: Path
    format_to: str
    episodes: int
    skipped: int
    written: bool
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """The conversion as JSON data."""
        return {
            "source": str(self.source),
            "from": self.format_from,
            "out": str(self.out),
            "to": self.format_to,
            "episodes": self.episodes,
            "skipped": self.skipped,
            "written": self.written,
            "report": self.report.to_dict(),
        }


def convert(
    source: str | Path,
    to: str,
    out: str | Path,
    *,
    format_from: str | None = None,
    config: ConvertConfig | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Convert a data set.

    Episodes are published one by one, so that a stopped conversion goes on where it was;
    a data set of another format is built in a hidden folder beside ``out`` and renamed
    when it is complete. The report is also written into the output, as ``conversion.json``.

    Args:
        source: a folder, or a file of a format that has single files.
        to: name of a format.
        out: folder of the output.
        format_from: name of the source's format; found out by default.
        config: how to read and write.
        dry_run: read everything, write nothing.

    Raises:
        InputError: there is no source, or another data set is in the way.
        SchemaError: the source breaks a rule.
        MissingDependencyError: the format's extra is not installed.
    """
    source, out, config = Path(source), Path(out), config or ConvertConfig()
    if not source.exists():
        raise InputError(str(source), "a data set", "nothing there")
    target = FORMATS.get(to)()
    if not target.writable:
        raise read_only(to)
    name = format_from or detect(source)
    opened = FORMATS.get(name)().open(source, config)
    if not dry_run:
        check_folder(out)
    job = _Job(source, name, opened, out, to, config)
    if dry_run:
        return job.dry()
    return job.to_episodes() if to == "episodes" else job.build()


@dataclass(frozen=True)
class _Job:
    source: Path
    format_from: str
    opened: Source
    out: Path
    format_to: str
    config: ConvertConfig

    def dry(self) -> Conversion:
        return self._done(self._described(), 0, written=False)

    def to_episodes(self) -> Conversion:
        report, skipped = Report(), 0
        compression = self.config.compression
        with EpisodeWriter(self.out, compression=compression, journal=False) as writer:
            for key, episode in zip(self.opened.names(), self._read(report), strict=True):
                skipped += not self._publish(writer, episode, self._digest(key))
        done = self._done(report, skipped)
        write_json(self.out / REPORT, {"schema": "teamvla.conversion/1", **done.to_dict()})
        return done

    def build(self) -> Conversion:
        digest = self._digest_of_all()
        if (earlier := self._earlier(digest)) is not None:
            return earlier
        report, target = self._described(), FORMATS.get(self.format_to)()
        with building(self.out) as folder:
            target.build(self.opened, folder, self.config)
            verify(self.opened, target.open(folder, ConvertConfig()), report)
            done = self._done(report, 0)
            content = {"schema": "teamvla.conversion/1", "digest": digest, **done.to_dict()}
            write_json(folder / REPORT, content)
        return done

    def _described(self) -> Report:
        """What will become of everything, without writing."""
        report, heard = Report(), Report()
        target = FORMATS.get(self.format_to)()
        for episode in self._read(heard):
            target.describe(episode, self.config, report)
        # What the reading carried has its fate from the format that is written.
        report.merge(heard, leave_out=None if self.format_to == "episodes" else "carried")
        return report

    def _read(self, report: Report) -> Iterator[Episode]:
        keys = self.opened.names()
        with progress(f"convert {self.format_from}", len(keys), "episode") as bar:
            for key in keys:
                yield self.opened.read(key, report)
                bar.advance()

    def _publish(self, writer: EpisodeWriter, episode: Episode, digest: str) -> bool:
        """Write an episode unless an earlier run did; whether it was written."""
        path = episode_path(self.out, episode.task, episode.episode_id)
        if path.exists():
            if read_meta(path).get("converted", {}).get("digest") == digest:
                return False
            mend = "Choose another --out, or remove it."
            got = "one of another source or other settings"
            raise InputError(str(path), "an episode of this conversion", got, mend, code="E602")
        meta = {key: value for key, value in episode.meta.items() if key not in DERIVED_META}
        meta["converted"] = {"from": self.format_from, "digest": digest}
        writer.start_episode(meta)
        for index in range(episode.num_steps):
            writer.add_step(episode.step(index))
        try:
            writer.end_episode(success=episode.success)
        except EpisodeError:
            # Another process may have converted the same episode in the meantime.
            if path.exists() and read_meta(path).get("converted") == meta["converted"]:
                return False
            raise
        return True

    def _digest(self, key: str) -> str:
        settings = self.config.model_dump(mode="json", exclude={"compression"})
        return digest_of(self.format_from, key, self.opened.digest(key), settings)

    def _digest_of_all(self) -> str:
        settings = self.config.model_dump(mode="json", exclude={"compression"})
        parts = [[key, self.opened.digest(key)] for key in self.opened.names()]
        return digest_of(self.format_from, self.format_to, settings, parts)

    def _earlier(self, digest: str) -> Conversion | None:
        """The conversion that ``out`` already is; InputError if it is something else."""
        if not self.out.exists():
            return None
        found = self.out / REPORT
        if found.is_file() and read_json(found).get("digest") == digest:
            LOG.info("%s: was converted before, nothing to do", self.out)
            return self._done(_report_in(found), len(self.opened.names()))
        mend = "Choose another --out, or remove it."
        got = "something that is there already"
        raise InputError(str(self.out), "a new folder", got, mend, code="E602")

    def _done(self, report: Report, skipped: int, *, written: bool = True) -> Conversion:
        episodes = len(self.opened.names())
        if not episodes:
            raise SchemaError(str(self.source), "episodes", "none", code="E601")
        places = (self.source, self.format_from, self.out, self.format_to)
        return Conversion(*places, episodes, skipped, written, report)


def _report_in(path: Path) -> Report:
    report = Report()
    for note in read_json(path)["report"]:
        report.settle(note["fate"], note["what"], note["into"], note["why"], note["episodes"])
    return report

"""Targets that are built as a whole: a hidden folder beside the output, renamed at the end."""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path

from teamvla.data.formats.base import ConvertConfig, Source, Target
from teamvla.data.formats.building import building
from teamvla.data.formats.job import REPORT, Job
from teamvla.data.formats.report import Report
from teamvla.data.formats.verify import verify
from teamvla.data.npz import Episode
from teamvla.files import read_json

LOG = logging.getLogger(__name__)


class FolderTarget(Target):
    """A format whose data set is complete or worth nothing."""

    @abstractmethod
    def open(self, path: Path, config: ConvertConfig) -> Source:
        """Open a data set, to read back what was written."""

    @abstractmethod
    def describe(self, episode: Episode, config: ConvertConfig, report: Report) -> None:
        """Tell the report how the format will hold an episode; refuse one that it cannot hold."""

    @abstractmethod
    def build(self, source: Source, folder: Path, config: ConvertConfig) -> None:
        """Write all episodes of ``source`` into an empty folder."""

    def foresee(self, job: Job) -> Report:
        report, heard = Report(), Report()
        for _, episode in job.episodes(f"convert {job.format_from}", heard):
            self.describe(episode, job.config, report)
        # What the reading carried has its fate from the format that is written.
        report.merge(heard, leave_out="carried")
        return report

    def write(self, job: Job) -> tuple[Report, int]:
        digest = job.digest(*job.names())
        if job.out.exists():
            return self._earlier(job, digest)
        report = self.foresee(job)
        with building(job.out) as folder:
            self.build(job.opened, folder, job.config)
            verify(job.opened, self.open(folder, ConvertConfig()), report)
            job.write_report(folder, report, digest=digest)
        return report, 0

    def _earlier(self, job: Job, digest: str) -> tuple[Report, int]:
        """The conversion that ``out`` already is; InputError if it is something else."""
        found = job.out / REPORT
        content = read_json(found) if found.is_file() else {}
        if content.get("digest") != digest:
            raise job.in_the_way(job.out, "a new folder", "something that is there already")
        LOG.info("%s: was converted before, nothing to do", job.out)
        return Report.from_dict(content["report"]), len(job.names())

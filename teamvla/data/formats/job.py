"""One conversion: what is read, where it goes, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.data.formats.base import ConvertConfig, Source, digest_of
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.errors import InputError, SchemaError
from teamvla.files import write_json
from teamvla.logs import progress

REPORT = "conversion.json"
_SCHEMA = "teamvla.conversion/1"


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


@dataclass(frozen=True)
class Job:
    """A conversion that is asked for.

    Attributes:
        source, format_from: what is read.
        opened: the same, opened.
        out, format_to: what is to be written.
        config: how to read and write.
    """

    source: Path
    format_from: str
    opened: Source
    out: Path
    format_to: str
    config: ConvertConfig

    def names(self) -> list[str]:
        """The episodes of the source; SchemaError if there is none."""
        names = self.opened.names()
        if not names:
            raise SchemaError(str(self.source), "episodes", "none", code="E601")
        return names

    def episodes(self, doing: str, report: Report) -> Iterator[tuple[str, Episode]]:
        """Every episode by its name, with the progress of ``doing`` this."""
        keys = self.names()
        with progress(doing, len(keys), "episode") as bar:
            for key in keys:
                yield key, self.opened.read(key, report)
                bar.advance()

    def digest(self, *keys: str) -> str:
        """Digest of the bytes of these episodes and of all settings that change the output."""
        settings = self.config.model_dump(mode="json", exclude={"compression"})
        parts = [[key, self.opened.digest(key)] for key in keys]
        return digest_of(self.format_from, self.format_to, parts, settings)

    def in_the_way(self, path: Path, expected: str, got: str) -> InputError:
        """The error of an output that is something else."""
        mend = "Choose another --out, or remove it."
        return InputError(str(path), expected, got, mend, code="E602")

    def done(self, report: Report, skipped: int = 0, *, written: bool = True) -> Conversion:
        """The conversion that this job has become."""
        places = (self.source, self.format_from, self.out, self.format_to)
        return Conversion(*places, len(self.names()), skipped, written, report)

    def write_report(self, folder: Path, report: Report, skipped: int = 0, **more: Any) -> None:
        """Put the report into the output."""
        content = self.done(report, skipped).to_dict()
        write_json(folder / REPORT, {"schema": _SCHEMA, **more, **content})

"""One conversion: what is read, where it goes, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.config.source import read_source
from teamvla.contract import Contract
from teamvla.data.episodes import SUFFIX
from teamvla.data.fields import meaning_in, spec_of
from teamvla.data.formats.base import ConvertConfig, Source, digest_of
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode, read_meta
from teamvla.data.ragged import Ragged
from teamvla.errors import EpisodeError, InputError, SchemaError
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
        keys, contract = self.names(), self._contract()
        with progress(doing, len(keys), "episode") as bar:
            for key in keys:
                episode = self.opened.read(key, report)
                if contract is not None and "contract" not in episode.meta:
                    said = {"contract": contract.to_dict(), "contract_digest": contract.digest}
                    episode = replace(episode, meta={**episode.meta, **said})
                    report.note("added", "contract", "contract", f"that of {self.config.contract}")
                _require_finite(episode)
                yield key, episode
                bar.advance()

    def _contract(self) -> Contract | None:
        """What episodes without a contract get."""
        if self.config.contract is None:
            return None
        path = Path(self.config.contract)
        if path.suffix != SUFFIX:
            return Contract.parse(read_source(path, str(path)).data, str(path))
        contract = meaning_in(read_meta(path)).contract
        if contract is None:
            raise InputError(str(path), "an episode with a contract", "one without")
        return contract

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


def _require_finite(episode: Episode) -> None:
    """No format is given numbers that no policy can learn from."""
    for name, column in episode.fields.items():
        spec = spec_of(name)
        if spec is None or not spec.finite or column.dtype.kind != "f":
            continue
        rows = column.values if isinstance(column, Ragged) else column
        wrong = ~np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if wrong.any():
            at = int(wrong.argmax())
            if isinstance(column, Ragged):
                at = int(np.searchsorted(column.offsets, at, "right")) - 1
            where, mend = f"{episode.path}: step {at}: {name}", "Mend or remove the episode."
            raise EpisodeError(where, "finite numbers", "NaN or infinity", mend, code="E107")

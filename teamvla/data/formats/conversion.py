"""Conversions: from one format to another, whole or not at all, and with a report."""

from __future__ import annotations

from pathlib import Path

from teamvla.data.formats.base import FORMATS, ConvertConfig, Target, detect, read_only
from teamvla.data.formats.job import Conversion, Job
from teamvla.errors import InputError
from teamvla.files import check_folder


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
        OSError: the disk is full or broken; nothing half-written is left.
    """
    source, out, config = Path(source), Path(out), config or ConvertConfig()
    if not source.exists():
        raise InputError(str(source), "a data set", "nothing there")
    target = FORMATS.get(to)()
    if not isinstance(target, Target):
        raise read_only(to)
    name = format_from or detect(source)
    opened = FORMATS.get(name)().open(source, config)
    job = Job(source, name, opened, out, to, config)
    if dry_run:
        return job.done(target.foresee(job), written=False)
    check_folder(out)
    return job.done(*target.write(job))

"""Validating files and roots: reading in parallel, judging in the order of the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from teamvla.data.episodes import find_episodes
from teamvla.data.index_format import IndexConfig
from teamvla.data.npz import EpisodeFile
from teamvla.data.validation.collection import judge_set
from teamvla.data.validation.episode import judge
from teamvla.data.validation.findings import Fault, Finding, Selection, ValidationReport
from teamvla.data.validation.quick import entries, look
from teamvla.data.validation.structure import Structure, check_place
from teamvla.data.validation.summary import Summary, summarise
from teamvla.errors import InputError, SchemaError
from teamvla.logs import progress

_BATCH = 512
Job = tuple[Path, Path]
Looked = tuple[Summary | None, list[Fault]]


def validate_roots(
    roots: Iterable[str | Path],
    *,
    workers: int | None = None,
    quick: bool = False,
    selection: Selection | None = None,
) -> ValidationReport:
    """Check every episode below ``roots``, each by itself and beside the others.

    Args:
        roots: folders of episodes; a root may also be a single file.
        workers: threads; the report is the same for any number.
        quick: look at the files' directories only, without inflating anything.
        selection: which findings are reported; by default errors and warnings.

    Raises:
        InputError: a root is missing or holds no episode.
    """
    selection = selection or Selection()
    files = list(dict.fromkeys(job for root in roots for job in _files(Path(root))))
    found: dict[Path, list[Finding]] = {}
    summaries: list[Summary] = []
    with progress("validate", len(files), "episode") as bar:
        for (path, _), (summary, faults) in zip(files, _looks(files, workers, quick), strict=True):
            shown = list(selection.of(_named(path, faults)))
            if shown:
                found.setdefault(path, []).extend(shown)
            if summary is not None:
                summaries.append(summary)
            bar.advance(findings=str(sum(map(len, found.values()))))
    config = IndexConfig()
    for summary, fault in judge_set(summaries, (config.val_fraction, config.test_fraction)):
        finding = Finding(fault.code, summary.path, *fault[1:])
        if selection.shows(finding):
            found.setdefault(summary.path, []).append(finding)
    ordered = (finding for path, _ in files for finding in found.pop(path, ()))
    return ValidationReport(len(files), tuple(ordered))


def validate_file(path: str | Path, root: str | Path | None = None) -> list[Finding]:
    """Everything that is wrong with one episode file by itself; empty if it is sound.

    Args:
        path: the file.
        root: folder of the episodes, below which files lie as ``TASK/EPISODE_ID.npz``;
            by default two levels up. A file that lies in ``root`` itself may have any name.
    """
    path = Path(path)
    root = path.parent.parent if root is None else Path(root)
    return list(Selection().of(_named(path, _read((path, root))[1])))


def _named(path: Path, faults: Iterable[Fault]) -> Iterator[Finding]:
    return (Finding(fault.code, path, *fault[1:]) for fault in faults)


def _files(root: Path) -> list[Job]:
    if root.is_file():
        return [(root, root.parent)]
    return [(path, root) for path in find_episodes(root)]


def _looks(files: Sequence[Job], workers: int | None, quick: bool) -> Iterator[Looked]:
    """What each file shows, in order; a batch of them is in memory at a time."""
    if quick:  # a directory is read faster than a thread is woken
        yield from (look(path) for path, _ in files)
        return
    workers = workers or min(8, os.cpu_count() or 1)
    if workers == 1:
        yield from map(_read, files)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for first in range(0, len(files), _BATCH):
            yield from pool.map(_read, files[first : first + _BATCH])
    finally:
        pool.shutdown(cancel_futures=True)


def _read(job: Job) -> Looked:
    """Read one file whole and judge it."""
    path, root = job
    try:
        with EpisodeFile(path) as file:
            structure = Structure(file)
            faults = [_fault(path, *problem) for problem in structure.problems()]
            faults += [_fault(path, *problem) for problem in check_place(file, root)]
            record = structure.record()
            summary = summarise(path, entries(file.members), record)
    except SchemaError as error:
        return None, [_fault(path, None, error)]
    except InputError as error:
        return None, [Fault("E217", None, None, f"expected {error.expected}, got {error.got}")]
    return summary, faults + judge(record)


def _fault(path: Path, step: int | None, problem: SchemaError) -> Fault:
    field = problem.where.removeprefix(str(path)).removeprefix(": ").removesuffix(".npy") or None
    message = f"expected {problem.expected}, got {problem.got}"
    return Fault(problem.code or "", step, field, message)

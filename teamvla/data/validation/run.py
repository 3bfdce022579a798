"""Validating files and roots: reading in parallel, judging in the order of the files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from teamvla.data.episodes import find_episodes
from teamvla.data.index import index_folder
from teamvla.data.index_format import Index, IndexConfig
from teamvla.data.npz import EpisodeFile
from teamvla.data.parallel import in_order
from teamvla.data.repair import find_leftovers
from teamvla.data.validation.collection import judge_set
from teamvla.data.validation.episode import judge
from teamvla.data.validation.findings import Fault, Finding, Selection, ValidationReport
from teamvla.data.validation.quick import entries, look
from teamvla.data.validation.structure import Structure, check_place
from teamvla.data.validation.summary import Summary, summarise
from teamvla.errors import InputError, SchemaError
from teamvla.logs import progress

LOG = logging.getLogger(__name__)
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
    folders = list(map(Path, roots))
    files = list(dict.fromkeys(job for root in folders for job in _jobs(root)))
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
    for summary, fault in judge_set(summaries, _fractions(folders)):
        finding = Finding.at(summary.path, fault)
        if selection.shows(finding):
            found.setdefault(summary.path, []).append(finding)
    ordered = (finding for path, _ in files for finding in found.pop(path, ()))
    return ValidationReport(len(files), tuple(ordered), tuple(_leftovers(folders)))


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


def _fractions(roots: list[Path]) -> tuple[float, float]:
    """Shares of validation and test episodes: of the index that stands, else the usual ones."""
    config = IndexConfig()
    if all(root.is_dir() for root in roots):
        with suppress(InputError, OSError, ValueError):
            config = Index.open(index_folder(roots)).config
    return config.val_fraction, config.test_fraction


def _leftovers(roots: list[Path]) -> Iterator[Path]:
    yield from dict.fromkeys(
        path for root in roots if root.is_dir() for path in find_leftovers(root)
    )


def _named(path: Path, faults: Iterable[Fault]) -> Iterator[Finding]:
    return (Finding.at(path, fault) for fault in faults)


def files_below(root: Path) -> list[Path]:
    """The episodes below a root, which may be a single file."""
    return [root] if root.is_file() else find_episodes(root)


def _jobs(root: Path) -> list[Job]:
    folder = root.parent if root.is_file() else root
    return [(path, folder) for path in files_below(root)]


def _looks(files: list[Job], workers: int | None, quick: bool) -> Iterator[Looked]:
    """What each file shows, in order."""
    if quick:  # a directory is read faster than a thread is woken
        return (look(path) for path, _ in files)
    return in_order(_read, files, workers)


def _read(job: Job) -> Looked:
    """Read one file whole and judge it."""
    path, root = job
    faults: list[Fault] = []
    try:
        with EpisodeFile(path) as file:
            structure = Structure(file)
            problems = chain(structure.problems(), check_place(file, root))
            faults.extend(Fault.of(path, error, step) for step, error in problems)
            record = structure.record()
            summary = summarise(path, entries(file.members), record)
        return summary, faults + judge(record)
    except (SchemaError, InputError) as error:
        faults.append(Fault.of(path, error))
    except Exception as error:  # one file must not cost the findings of all others
        LOG.debug("validating %s failed", path, exc_info=True)
        got = "not enough memory" if isinstance(error, MemoryError) else repr(error)
        message = f"expected a file that can be judged to its end, got {got}"
        faults.append(Fault("E440", None, None, message))
    return None, faults

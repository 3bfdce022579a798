"""Bringing an index up to date, and noticing that it is."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from teamvla.data.index_build import IndexBuild
from teamvla.data.index_format import OLDER, SUMMARY, Index, IndexConfig
from teamvla.data.manifest import FileState, list_files
from teamvla.errors import InputError
from teamvla.files import naming, read_json

__all__ = ["Index", "IndexConfig", "build_index", "index_folder"]
LOG = logging.getLogger(__name__)
Roots = str | Path | Sequence[str | Path]


def build_index(
    roots: Roots,
    out: str | Path | None = None,
    config: IndexConfig | None = None,
    *,
    rebuild: bool = False,
) -> Index:
    """Bring the index of one root or several up to date, and open it.

    Nothing is written when no file was added, changed (size, time, then digest) or removed
    and the settings are the same. Otherwise the others are read and put into new shards;
    what stands is neither changed nor copied, but for shards that are mostly unused or many
    and small, which are merged now and then. The result does not depend on the way there:
    samples, their order, splits, statistics and digest are those of a fresh build.

    Args:
        roots: folders of episodes.
        out: where the index goes; :func:`index_folder` decides if not given.
        config: settings; those that were not given to it are kept from the index that stands.
        rebuild: read every episode again, whatever stands.

    Raises:
        InputError: a root is missing or empty, or no episode is left to use.
        EpisodeError: an episode cannot be used; the message names the file.
        ContractError: the episodes do not all mean the same.
    """
    paths = [Path(root) for root in ([roots] if isinstance(roots, str | Path) else roots)]
    if not paths:
        raise InputError("index", "at least one root", "none")
    files = list_files(paths)
    folder = index_folder(paths, out)
    standing = _standing(folder)
    config = _settled(config, standing, folder)
    standing = None if rebuild else standing
    if standing is not None and _is_current(standing, files, config):
        return standing
    _make(folder)
    with _exclusive(folder):
        before, standing = standing, None if rebuild else _standing(folder, LOG.warning)
        config = _settled(config, standing, folder)
        if _build(before) != _build(standing):
            files = list_files(paths)  # another process was here; its list may be newer
        if standing is not None and _is_current(standing, files, config):
            return standing
        return IndexBuild(paths, folder, standing, config).run(files)


def index_folder(roots: Sequence[Path], out: str | Path | None = None) -> Path:
    """Where the index of ``roots`` stands.

    ``out`` if given; ``ROOT/.index`` for one root; for several a folder beside it in the
    first, named after them all; in the user's cache folder if that root is read-only.
    """
    if out is not None:
        return Path(out)
    real = [str(root.resolve()) for root in roots]
    key = hashlib.sha256(os.fsencode("\0".join(real))).hexdigest()[:12]
    beside = roots[0] / (".index" if len(roots) == 1 else f".index-{key}")
    if (beside / SUMMARY).exists() or os.access(roots[0], os.W_OK):
        return beside
    return _cache_home(roots[0]) / "teamvla" / "index" / key


def _make(folder: Path) -> None:
    try:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise  # another folder is no mend
        mend = "Name another one (--out, or dataset.index when training)."
        reason = (error.strerror or str(error)).lower()
        raise InputError(str(folder), "a folder for the index", reason, mend) from None


def _cache_home(root: Path) -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given) if given else Path.home() / ".cache"
    except RuntimeError:
        mend = "Name another folder for the index (--out, or dataset.index when training)."
        raise InputError(
            str(root), "a folder that can be written, or a home", "neither", mend
        ) from None


def _standing(folder: Path, tell: Callable[..., None] = LOG.debug) -> Index | None:
    if not (folder / SUMMARY).exists():
        return None
    try:
        index = Index.open(folder)
        index.verify()
        return index
    except InputError as error:
        tell("the index in %s cannot be used and is built anew: %s", folder, error)
        return None


def _settled(
    config: IndexConfig | None, standing: Index | None, folder: Path
) -> IndexConfig | None:
    before = _older_settings(folder) if standing is None else standing.config
    if before is None or config is None:
        return config or before
    return config.over(before)


def _older_settings(folder: Path) -> IndexConfig | None:
    """Those of an index of an older version: it is built anew, and they still hold."""
    try:
        summary = read_json(folder / SUMMARY)
        if summary["schema"] in OLDER:
            return IndexConfig.model_validate(summary["config"])
    except (InputError, OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or nothing that can be told from it
    return None


def _build(index: Index | None) -> str | None:
    return None if index is None else str(index.summary["build"])


def _is_current(index: Index, files: list[FileState], config: IndexConfig | None) -> bool:
    if config is not None and config != index.config:
        return False
    table = index.episodes
    if len(files) != len(table):
        return False
    sizes = np.array([(f.root, f.size, f.mtime_ns) for f in files])
    same = np.stack([table["root"], table["size"], table["mtime_ns"]], axis=1) == sizes
    paths = np.array([os.fsencode(f.path) for f in files], "S")
    # What could not even be read is looked at again.
    unread = table["digest"] == b""
    return bool(same.all() and (table["path"] == paths).all() and not unread.any())


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOG.info("another process is building %s; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        if not (folder / SUMMARY).exists():
            _remove_empty(folder)
        lock.release()


def _remove_empty(folder: Path) -> None:
    """After a first build that was refused: no folder with nothing but a lock."""
    # Whoever waits for the lock finds that its file is gone, and makes it again.
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} == {"lock"}:
            (folder / "lock").unlink()
            folder.rmdir()

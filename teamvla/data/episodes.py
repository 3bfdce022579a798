"""Where episodes lie: ``ROOT/TASK/EPISODE_ID.npz``."""

from __future__ import annotations

import os
from pathlib import Path

from teamvla.errors import InputError

SUFFIX = ".npz"


def episode_path(root: str | Path, task: str, episode_id: str) -> Path:
    """Where an episode lies below its root."""
    return Path(root) / task / f"{episode_id}{SUFFIX}"


def find_episodes(root: str | Path) -> list[Path]:
    """Every episode file below ``root``, sorted by path; hidden names are skipped.

    Links are followed; a folder that is linked twice is looked into once.

    Raises:
        InputError: ``root`` is missing, is not a folder, or holds no episode.
    """
    return [Path(root, name) for name in episode_names(root)]


def episode_names(root: str | Path) -> list[str]:
    """The same as paths below ``root``, in the same order: many paths as objects are slow."""
    root = Path(root)
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        mend = f"Record some with: teamvla record --out {root}."
        raise InputError(str(root), "a folder of episodes", got, mend)
    found: list[str] = []
    seen: set[str] = set()
    top = len(os.fspath(root))
    for folder, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = f"{folder[top:].lstrip('/')}/".lstrip("/")
        files = (name for name in names if name.endswith(SUFFIX) and not name.startswith("."))
        found.extend(inside + name for name in files)
    if not found:
        raise InputError(str(root), f"episodes ({SUFFIX} files)", "none", _mend(root))
    # As paths are sorted, folder by folder: no name has a zero byte.
    return sorted(found, key=lambda name: name.replace("/", "\0"))


def _mend(root: Path) -> str:
    if any(root.rglob(".*.part*")):  # journals
        return f"Recordings were interrupted here: see teamvla repair {root}."
    return f"Record some with: teamvla record --out {root}."


def _refuse(error: OSError) -> None:
    # Episodes in a folder that cannot be listed must not be left out in silence.
    raise InputError(str(error.filename), "a folder that can be listed", str(error.strerror))

"""Whether what is still to be recorded fits on the disk."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from teamvla.errors import InputError
from teamvla.sim.interface import RobotEnv

LOG = logging.getLogger(__name__)


class Room:
    """The room that ``missing`` episodes below ``out`` need, and the room that there is."""

    def __init__(self, out: Path, missing: int) -> None:
        self._out, self._missing = out, missing

    def announce(self, env: RobotEnv) -> None:
        """Say how much it can become at most, from the sizes of the fields and the steps."""
        most = self._missing * env.max_steps * _row_bytes(env)
        free = _free(self._out)
        told = "%d episodes need at most %s (uncompressed); %s are free in %s"
        LOG.info(told, self._missing, show_bytes(most), show_bytes(free), self._out)

    def require(self, path: Path, done: int = 0) -> None:
        """InputError unless the rest fits if every episode is as large as the one at ``path``."""
        size = path.stat().st_size
        need, free = size * (self._missing - done), _free(self._out)
        if need > free:
            raise InputError(
                str(self._out),
                f"room for {self._missing - done} episodes of about {show_bytes(size)}, "
                f"{show_bytes(need)} in all",
                f"{show_bytes(free)} free",
                "Free some, choose another --out, or record fewer; what is recorded stays.",
            )
        told = "%d more episodes need about %s; %s are free"
        LOG.info(told, self._missing - done, show_bytes(need), show_bytes(free))


def _row_bytes(env: RobotEnv) -> int:
    spaces = getattr(env.observation_space, "spaces", {})
    seen: int = sum(
        int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
        for space in spaces.values()
        if space.shape is not None and space.dtype is not None
    )
    return seen + 4 * env.contract.action_dim


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def show_bytes(count: float) -> str:
    """``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

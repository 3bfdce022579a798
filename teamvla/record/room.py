"""Whether what is still to be recorded fits on the disk."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from teamvla.errors import InputError
from teamvla.sim.interface import RobotEnv

LOG = logging.getLogger(__name__)
#: of an episode besides its steps: heads of its columns, and metadata with the reset's state
_FILE_BYTES = 16_000
#: of a step besides what is seen and commanded: success, reward, timestamp and phase
_MORE_ROW_BYTES = 64


class Room:
    """The room that ``missing`` episodes below ``out`` need, and the room that there is."""

    def __init__(self, out: Path, missing: int) -> None:
        self._out, self._missing = out, missing

    def announce(self, env: RobotEnv) -> None:
        """Say how much it can become at most, from the sizes of the fields and the steps."""
        most = self._missing * (_FILE_BYTES + env.max_steps * _row_bytes(env))
        free = _free(self._out)
        told = "%s at most %s (uncompressed); %s are free in %s"
        needs = _needs(self._missing)
        LOG.info(told, needs, show_bytes(most), show_bytes(free), self._out)

    def require(self, path: Path, done: int = 0) -> None:
        """InputError unless the rest fits if every episode is as large as the one at ``path``."""
        size = path.stat().st_size
        need, free = size * (self._missing - done), _free(self._out)
        if need > free:
            raise InputError(
                str(self._out),
                f"room for {counted(self._missing - done, 'episode')} of about "
                f"{show_bytes(size)}, {show_bytes(need)} in all",
                f"{show_bytes(free)} free",
                "Free some, choose another --out, or record fewer; what is recorded stays.",
            )
        told = "%s about %s; %s are free"
        LOG.info(told, _needs(self._missing - done, "more "), show_bytes(need), show_bytes(free))


def _needs(episodes: int, more: str = "") -> str:
    return f"{counted(episodes, f'{more}episode')} {'needs' if episodes == 1 else 'need'}"


def counted(number: int, what: str) -> str:
    """``1 episode``, ``2 episodes``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _row_bytes(env: RobotEnv) -> int:
    spaces = getattr(env.observation_space, "spaces", {})
    seen: int = sum(
        int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
        for space in spaces.values()
        if space.shape is not None and space.dtype is not None
    )
    return seen + 4 * env.contract.action_dim + _MORE_ROW_BYTES


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

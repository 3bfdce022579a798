"""Numbers that say what a pixel shows, the same in every episode of a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.scene import ARMS

#: The first numbers, whatever the task: nothing is 0.
COMMON = ("nothing", "room", *(f"arm_{arm}" for arm in ARMS), *(f"gripper_{arm}" for arm in ARMS))
#: What was not there when the environment was made, such as a distractor.
OTHER = 255
_ROOM = ("table", "stand")
_HAND = ("l6", "f1", "f2")


class Segments:
    """The segments of a task's scene.

    Behind :data:`COMMON` come the task's own, in the order of the scene: its bodies, and
    geoms with a name that are fixed to the world. 255 is whatever else turns up.

    Args:
        model: a scene of the task; those of other episodes have the same names.

    Attributes:
        numbers: name -> number.
    """

    def __init__(self, model: Any) -> None:
        names = dict.fromkeys((*COMMON, *_names(model)))
        self.numbers = {name: number for number, name in enumerate(names)} | {"other": OTHER}
        self._known: tuple[Any, NDArray[np.uint8]] | None = None

    def of(self, model: Any, geoms: NDArray[np.int32]) -> NDArray[np.uint8]:
        """The segments of geoms of ``model``, uint8 of the same shape; -1 is nothing."""
        if self._known is None or self._known[0] is not model:
            numbers = [self.numbers.get(name, OTHER) for name in _names(model)]
            self._known = model, np.array([*numbers, 0], np.uint8)
        return np.asarray(self._known[1][geoms])


def _names(model: Any) -> Iterator[str]:
    """The segment of each geom, by name."""
    for index in range(model.ngeom):
        geom = model.geom(index)
        body = model.body(int(geom.bodyid[0])).name
        arm, _, part = body.partition("_")
        if arm in ARMS and part:
            yield f"gripper_{arm}" if part in _HAND else f"arm_{arm}"
        elif body == "world":
            yield geom.name if geom.name and geom.name not in _ROOM else "room"
        else:
            yield body or "other"

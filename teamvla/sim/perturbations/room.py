"""Where on the table a thing can lie without being in the way of the task."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.sim.scene import ARMS, Element, to_xml

_LEAST, _MOST = (0.22, -0.5), (0.75, 0.5)  # of the table, m
_CLEARANCE_M = 0.12  # from the edge of anything: an open gripper reaches 5.4 cm to either side
_APART_M = 0.15  # of the middles of two things
_TRIES = 500
_DRAWN_OUT = np.linspace(0.0, 1.0, 5)  # of the way of what slides
_SURROUNDINGS = ("table", "stand")


class Room:
    """The free places of a scene, float[2] m each, whatever the task put into it.

    Taken is what any geom but those of table and arms covers, touchable or painted (a goal)
    alike; of what slides, such as a drawer, all of its way.

    Args:
        root: of the MJCF.
    """

    def __init__(self, root: Element) -> None:
        self._boxes = np.concatenate([*_footprints(to_xml(root))])
        self._taken: list[NDArray[np.float64]] = []

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """A free place, which is taken from then on; None if none was found."""
        for place in rng.uniform(_LEAST, _MOST, (_TRIES, 2)):
            if self._is_free(place):
                self._taken.append(place)
                return np.asarray(place)
        return None

    def _is_free(self, place: NDArray[np.float64]) -> bool:
        if any(np.linalg.norm(place - other) < _APART_M for other in self._taken):
            return False
        centres, axes, halves = np.split(self._boxes, [1, 4], axis=1)
        there = np.append(place, 0.0) - centres[:, 0] * (1.0, 1.0, 0.0)
        inside = np.einsum("nji,nj->ni", axes, there)
        beyond = np.maximum(np.abs(inside) - halves[:, 0], 0.0)
        return bool((np.linalg.norm(beyond, axis=1) > _CLEARANCE_M).all())


def _footprints(xml: str) -> list[NDArray[np.float64]]:
    """Boxes around the geoms, float[N, 5, 3]: centre, three axes and half of the sizes, m."""
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    arms = [model.body(f"{arm}_base").id for arm in ARMS]
    mine = ~np.isin(model.body_rootid[model.geom_bodyid], arms)
    mine[[model.geom(name).id for name in _SURROUNDINGS]] = False
    slides = (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE) & ~np.isin(
        model.body_rootid[model.jnt_bodyid], arms
    )
    boxes = []
    for share in _DRAWN_OUT if slides.any() else (0.0,):
        least, most = model.jnt_range[slides].T
        data.qpos[model.jnt_qposadr[slides]] = least + share * (most - least)
        mujoco.mj_kinematics(model, data)
        axes = data.geom_xmat[mine].reshape(-1, 3, 3)
        centre, half = np.split(model.geom_aabb[mine], 2, axis=1)
        middle = data.geom_xpos[mine] + np.einsum("nij,nj->ni", axes, centre)
        boxes.append(np.concatenate([middle[:, None], axes, half[:, None]], axis=1))
    return boxes

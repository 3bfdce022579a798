"""Lift: both arms take a tray by its handles and raise it, level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.sim.tasks.base import Span, TaskConfig

if TYPE_CHECKING:
    pass

_REST_Z = 0.012  # height of the tray's centre when it lies on the table, m
_HANDLE_Y = {"a": 0.19, "b": -0.19}  # along the tray, m
_HANDLE_COLOUR = {"a": (0.86, 0.12, 0.16), "b": (0.10, 0.22, 0.86)}
_GRASP_Z = 0.016  # of the tools above the tray's centre, m
_CLEARANCE_Z = 0.12  # of the tools above the handles before they go down, m
# A parallel gripper could take a handle in two ways half a turn apart. Each arm always
# uses the one that turns its wrist less: were the nearer one chosen anew every time, the
# demonstrations would jump where the tray's yaw is 0.
_BRANCH = {"a": 0.0, "b": np.pi}


class LiftReward(Settings):
    """Weights of the shaped reward; they should add up to 1."""

    reach: float = Field(0.25, ge=0, description="Tools near their handles.")
    grasp: float = Field(0.25, ge=0, description="Fingers on their handles.")
    raise_: float = Field(0.5, ge=0, alias="raise", description="Height while both hold.")


class LiftConfig(TaskConfig):
    """The lift task. Spans are (least, greatest) of a uniform distribution."""

    instructions: tuple[str, ...] = Field(
        (
            "lift the tray with both arms",
            "raise the tray off the table together",
            "pick up the tray by its two handles",
            "grab both handles and lift the tray",
        ),
        min_length=1,
        description="Phrasings; one is drawn per episode.",
    )
    tray_x: Span = Field((0.36, 0.48), description="Forward position of the tray, m.")
    tray_y: Span = Field((-0.06, 0.06), description="Sideways position of the tray, m.")
    tray_yaw: Span = Field((-0.25, 0.25), description="Heading of the tray, rad.")
    tray_mass: Span = Field((0.8, 1.3), description="Factor on the tray's 0.35 kg.")
    tray_colour: float = Field(0.08, ge=0, le=0.3, description="Greatest change of each channel.")
    light_shift: float = Field(0.25, ge=0, le=1, description="Greatest shift of the light, m.")
    light_level: Span = Field((0.9, 1.1), description="Factor on the light's strength.")
    height: float = Field(0.12, gt=0, description="Rise of the tray that counts as lifted, m.")
    max_tilt: float = Field(0.25, gt=0, description="Greatest tilt that counts as level, rad.")
    max_speed: float = Field(0.15, gt=0, description="Greatest speed that counts as still, m/s.")
    reward: LiftReward = LiftReward()

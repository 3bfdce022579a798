"""The two-arm simulator: a Gymnasium environment on MuJoCo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teamvla.sim.graphics import import_simulator
from teamvla.sim.registration import register

if TYPE_CHECKING:
    from teamvla.sim.env import TwoArmEnv, make_env
    from teamvla.sim.experts import Expert
    from teamvla.sim.interface import RobotEnv
    from teamvla.sim.tasks import TASKS, CameraConfig, Task, TaskConfig, TwoArmTaskConfig

__all__ = [
    "TASKS",
    "CameraConfig",
    "Expert",
    "RobotEnv",
    "Task",
    "TaskConfig",
    "TwoArmEnv",
    "TwoArmTaskConfig",
    "make_env",
]

_HOMES = {
    "TwoArmEnv": "teamvla.sim.env",
    "make_env": "teamvla.sim.env",
    "Expert": "teamvla.sim.experts",
    "RobotEnv": "teamvla.sim.interface",
    "TASKS": "teamvla.sim.tasks",
    "CameraConfig": "teamvla.sim.tasks",
    "Task": "teamvla.sim.tasks",
    "TaskConfig": "teamvla.sim.tasks",
    "TwoArmTaskConfig": "teamvla.sim.tasks",
}

register()  # the ids; MuJoCo is imported when an environment is made


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_simulator(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

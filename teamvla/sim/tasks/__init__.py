"""Tasks of the two-arm environment."""

from teamvla.sim.tasks.base import TASKS, CameraConfig, Task, TaskConfig, TwoArmTaskConfig

__all__ = ["TASKS", "CameraConfig", "Task", "TaskConfig", "TwoArmTaskConfig"]

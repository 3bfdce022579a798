"""The Gymnasium ids of this package's environments. Importing this imports no simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
from pydantic import ValidationError

from teamvla.errors import ConfigError

if TYPE_CHECKING:
    from teamvla.sim.interface import RobotEnv
    from teamvla.sim.tasks import TaskConfig

#: id -> name of the task
IDS = {
    "teamvla/TwoArmLift-v0": "lift",
    "teamvla/TwoArmHandoff-v0": "handoff",
    "teamvla/TwoArmDrawer-v0": "drawer",
    "teamvla/TwoArmSort-v0": "sort",
    "teamvla/TwoArmRecall-v0": "recall",
    "teamvla/Driving-v0": "driving",
}


def register() -> None:
    """Make the ids known to Gymnasium; a second call changes nothing."""
    for env_id, task in IDS.items():
        if env_id not in gymnasium.registry:
            entry_point = f"{__name__}:open_env"
            gymnasium.register(env_id, entry_point=entry_point, kwargs={"task": task})


def open_env(
    task: str,
    config: TaskConfig | None = None,
    render_mode: str | None = None,
    **settings: Any,
) -> RobotEnv:
    """What ``gymnasium.make`` calls.

    Args:
        task: its name.
        config: its settings; or give single ones by name, such as ``camera={"height": 32}``.
        render_mode: ``rgb_array`` or None.

    Raises:
        ConfigError: a setting that the task does not have, or another way to render.
    """
    from teamvla.sim.tasks import TASKS

    kind = TASKS.get(task)
    if render_mode not in (None, "rgb_array"):
        raise ConfigError("render_mode", "rgb_array or None", repr(render_mode))
    if config is not None and settings:
        raise ConfigError(f"task {task}", "config or single settings", "both")
    try:
        config = config or kind.Config.model_validate({"name": task, **settings})
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError("\n".join([f"task {task}:", *lines])) from None
    return kind.make(config, render_mode)

"""Pictures of a foreign MuJoCo model through the cameras of this simulator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mujoco

from teamvla.errors import ConfigError
from teamvla.registry import did_you_mean
from teamvla.sim.adapters.task import PictureConfig
from teamvla.sim.cameras import Picture, Renderer, make_renderer


class ModelCameras:
    """Renders what cameras of a model see, without the environment's own renderer.

    Args:
        physics: MjModel and MjData.
        config: size and renderer.
    """

    def __init__(self, physics: tuple[Any, Any], config: PictureConfig) -> None:
        self.model, self._data = physics
        # A copy is looked at: environments may rely on poses being as their last step left them.
        self._scratch: Any = mujoco.MjData(self.model)
        world = SimpleNamespace(model=self.model, data=self._scratch)
        size = (config.height, config.width)
        self._renderer: Renderer = make_renderer(world, config.renderer, *size, config.shadows)

    def require(self, field: str, camera: str) -> None:
        """ConfigError with the nearest name unless the model has this camera."""
        names = [self.model.camera(index).name for index in range(self.model.ncam)]
        if camera not in names:
            raise ConfigError(
                f"task.mapping.pictures.{field}.camera",
                "a camera of the model",
                repr(camera),
                did_you_mean(camera, names),
            )

    def render(self, camera: str) -> Picture:
        """What the camera sees of the present positions, uint8[height, width, 3]."""
        for name in ("qpos", "mocap_pos", "mocap_quat"):
            getattr(self._scratch, name)[:] = getattr(self._data, name)
        mujoco.mj_kinematics(self.model, self._scratch)
        mujoco.mj_camlight(self.model, self._scratch)
        return self._renderer.render(camera)

    def close(self) -> None:
        """Give back what the renderer holds."""
        self._renderer.close()

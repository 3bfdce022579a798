"""OpenGL is optional, but MuJoCo looks for what MUJOCO_GL names as soon as it is imported."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from teamvla.errors import ConfigError

OPENGL = (
    "Install EGL (Debian: libegl1 libgl1) and set MUJOCO_GL=egl, or OSMesa (libosmesa6) and set "
    "MUJOCO_GL=osmesa"
)


def import_simulator(name: str) -> ModuleType:
    """Import a module that imports MuJoCo.

    Raises:
        ConfigError: MUJOCO_GL names something that MuJoCo does not know or that is not here.
    """
    try:
        return importlib.import_module(name)
    except (RuntimeError, ImportError, AttributeError) as error:
        backend = os.environ.get("MUJOCO_GL")
        if backend is None or "mujoco" in sys.modules:
            raise
        raise ConfigError(
            "environment variable MUJOCO_GL",
            "an OpenGL that is installed, or no such variable",
            f"{backend!r} ({type(error).__name__}: {error})",
            f"Unset it, pictures need none by default. {OPENGL}",
        ) from error


@contextmanager
def without_a_display() -> Iterator[None]:
    """Let GLFW not warn, when it is imported or tried, that there is no display.

    dm_control tries it without a need; where there is one, an error says more.
    """
    missing = ".*(DISPLAY environment|GLFW library is not initialized)"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=missing, module="glfw")
        yield

"""OpenGL's absence is explained; where it is, its context is kept."""

from __future__ import annotations

import os
import subprocess
import sys

import mujoco
import pytest

from teamvla.errors import MissingDependencyError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.cameras import GlRenderer
from teamvla.sim.tasks import TwoArmTaskConfig


def with_opengl() -> TwoArmEnv:
    return make_env(TwoArmTaskConfig.model_validate({"camera": {"renderer": "gl"}}))


def test_missing_opengl_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gl(*_: object) -> None:
        raise mujoco.FatalError("gladLoadGL error")

    monkeypatch.setattr(mujoco, "GLContext", no_gl)
    with pytest.raises(MissingDependencyError, match=r"libegl1.*libosmesa6.*renderer=ray") as told:
        with_opengl()
    assert told.value.exit_code == 2


def test_opengl_that_did_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mujoco, "GLContext")  # as MuJoCo leaves it where PyOpenGL finds none
    with pytest.raises(MissingDependencyError, match="libegl1"):
        with_opengl()


def test_an_unusable_mujoco_gl_is_explained() -> None:
    code = """
from teamvla.errors import ConfigError
try:
    from teamvla.sim import make_env
except ConfigError as error:
    print(error.exit_code, error)
"""
    there = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MUJOCO_GL": "foo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.startswith("2 environment variable MUJOCO_GL: expected an OpenGL")
    assert "'foo'" in there.stdout
    assert "Unset it" in there.stdout
    assert "libegl1" in there.stdout


class FlatGl:
    """An OpenGL context that was made; nothing can be drawn with it."""

    freed = 0

    def __init__(self, width: int, height: int) -> None: ...

    def make_current(self) -> None: ...

    def free(self) -> None:
        FlatGl.freed += 1


def test_a_context_that_cannot_draw_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_drawing(*_: object) -> None:
        raise mujoco.FatalError("OpenGL ARB_framebuffer_object required")

    monkeypatch.setattr(mujoco, "GLContext", FlatGl)
    monkeypatch.setattr(mujoco, "MjrContext", no_drawing)
    env = make_env()
    before = env.world.model.vis.quality.shadowsize
    with pytest.raises(MissingDependencyError, match="FatalError"):
        GlRenderer(env.world, 64, 64)
    assert FlatGl.freed == 1
    assert env.world.model.vis.quality.shadowsize == before


def test_a_new_scene_keeps_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(mujoco, "GLContext", FlatGl)
    monkeypatch.setattr(mujoco, "MjrContext", lambda *_: made.append(1) or Context())
    monkeypatch.setattr(mujoco, "mjr_setBuffer", lambda *_: None)
    drawn = []
    monkeypatch.setattr(mujoco, "mjr_render", lambda _, scene, __: drawn.append(scene.ngeom))
    monkeypatch.setattr(mujoco, "mjr_readPixels", lambda *_: None)
    env = make_env()
    renderer = GlRenderer(env.world, 16, 16)
    for seed in (0, 1):
        env.reset(seed=seed)
        assert renderer.render("rgb_a").shape == (16, 16, 3)
    assert (len(made), len(drawn)) == (1, 2)
    assert min(drawn) >= env.world.model.ngeom - 2


class Context:
    readDepthMap: object = None

    def free(self) -> None: ...


def test_without_a_display_nothing_but_the_error_is_said() -> None:
    code = """
import mujoco
from teamvla.errors import MissingDependencyError
from teamvla.sim.cameras import GlRenderer
from types import SimpleNamespace
model = mujoco.MjModel.from_xml_string("<mujoco/>")
try:
    GlRenderer(SimpleNamespace(model=model, data=mujoco.MjData(model)), 8, 8)
except MissingDependencyError:
    pass
"""
    bare = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    there = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    )
    assert there.stderr == ""

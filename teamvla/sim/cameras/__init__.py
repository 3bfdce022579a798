"""Cameras: a ray caster that needs no graphics library, and OpenGL as an option."""

from teamvla.sim.cameras.opengl import GlRenderer
from teamvla.sim.cameras.rays import Capture, Picture, RayRenderer, Simulated
from teamvla.sim.cameras.rig import CameraRig, Renderer, make_renderer
from teamvla.sim.cameras.segments import Segments

__all__ = [
    "CameraRig",
    "Capture",
    "GlRenderer",
    "Picture",
    "RayRenderer",
    "Renderer",
    "Segments",
    "Simulated",
    "make_renderer",
]

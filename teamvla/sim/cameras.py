"""Cameras: a ray caster that needs no graphics library, and OpenGL as an option."""

from __future__ import annotations



"""Perturbations of the two-arm scene: cameras, light and objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from teamvla.sim.env import TwoArmEnv
from teamvla.sim.interface import RobotEnv
from teamvla.sim.perturbations.base import Perturbation
from teamvla.sim.perturbations.room import Room
from teamvla.sim.scene import Element, add, paint

_PUSH_BETWEEN = (0.05, 0.30)  # of the longest episode: while the arms are on their way


class _Scene(Perturbation, ABC):
    """Changes the MJCF of every episode before it is compiled."""

    needs = "the two-arm simulator"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return isinstance(env.unwrapped, TwoArmEnv)

    def attach(self, env: RobotEnv) -> None:
        inner: Any = env.unwrapped
        inner.edits.append(self.edit)

    @abstractmethod
    def edit(self, root: Element, rng: np.random.Generator) -> None:
        """Change the scene whose root is ``root``, drawing from ``rng``."""


class _Objects(_Scene):
    """Changes the objects that the task is about."""

    needs = "a task of the two-arm simulator that has objects"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return _has_objects(env.unwrapped)

    def attach(self, env: RobotEnv) -> None:
        super().attach(env)
        inner: Any = env.unwrapped
        self._objects: tuple[str, ...] = inner.task.objects

    def geoms(self, root: Element) -> Iterator[Element]:
        """The geoms of the task's objects."""
        for body in root.iter("body"):
            if body.get("name") in self._objects:
                yield from body.iter("geom")


class CameraShift(_Scene):
    """Every fixed camera stands this far from its place, in a direction of its own."""

    unit, default, limit = "m", 0.05, 0.5

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        for camera in root.iter("camera"):
            if camera.get("name", "").startswith("rgb_") and "wrist" not in camera.get("name", ""):
                direction = rng.standard_normal(3)
                direction *= self.strength / np.linalg.norm(direction)
                _change(camera, "pos", partial(np.add, direction))


class Lighting(_Scene):
    """All light is brighter by this share in half of the episodes, and darker in the others."""

    unit, default, limit = "share", 0.4, 0.95

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        factor = 1.0 + self.strength * (1.0 if rng.random() < 0.5 else -1.0)
        for light in (*root.iter("light"), *root.iter("headlight")):
            for kind in ("ambient", "diffuse"):
                if kind in light.attrib:
                    _change(light, kind, lambda level: np.minimum(level * factor, 1.0))


class ObjectColour(_Objects):
    """The objects' colours move this far, towards a random corner of the colour cube."""

    unit, default, limit = "of each channel, 0..1", 0.3, 1.0

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        change = np.append(self.strength * rng.choice([-1.0, 1.0], 3), 0.0)
        for geom in self.geoms(root):
            _change(geom, "rgba", lambda rgba: np.clip(rgba + change, 0.0, 1.0))


class ObjectSize(_Objects):
    """The objects are larger by this share in half of the episodes, and smaller in the others."""

    unit, default, limit = "share", 0.1, 0.5

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        factor = 1.0 + self.strength * (1.0 if rng.random() < 0.5 else -1.0)
        for body in root.iter("body"):
            if body.get("name") in self._objects:
                # An object lies with its origin half its height above the table.
                _change(body, "pos", lambda place: place * (1.0, 1.0, factor))
        for geom in self.geoms(root):
            _change(geom, "size", lambda size: size * factor)
            _change(geom, "pos", lambda place: place * factor)


class ObjectMass(_Objects):
    """The objects weigh more by this share; it goes up to eleven times what they weighed."""

    unit, default, limit = "share", 1.0, 10.0

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        for geom in self.geoms(root):
            _change(geom, "mass", lambda mass: mass * (1.0 + self.strength))


class Distractor(_Scene):
    """So many more things lie on the table, where there is room for them."""

    unit, default, limit = "things", 2.0, 6.0

    def edit(self, root: Element, rng: np.random.Generator) -> None:
        world = root.find("worldbody")
        assert world is not None
        room = Room(root)
        for number in range(round(self.strength)):
            place = room.draw(rng)
            shape = ("box", "cylinder", "sphere")[int(rng.integers(3))]
            radius = float(rng.uniform(0.015, 0.025))
            colour = rng.uniform(0.0, 1.0, 3)
            if place is not None:
                name = f"distractor_{number}"
                body = add(world, "body", name=name, pos=(*place, radius))
                add(body, "freejoint")
                size = (radius,) * {"box": 3, "cylinder": 2, "sphere": 1}[shape]
                look = {"type": shape, "size": size, "mass": 0.05, "rgba": paint(colour)}
                add(body, "geom", name=name, class_="object", **look)


class Push(Perturbation):
    """Once in the first third of an episode one of the objects is pushed along the table."""

    unit, default, limit = "m/s, of its speed", 0.3, 3.0
    needs = "a task of the two-arm simulator that has objects"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return _has_objects(env.unwrapped)

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        objects: tuple[str, ...] = self._inner(env).task.objects
        self._body = objects[int(rng.integers(len(objects)))]
        self._when = int(env.max_steps * rng.uniform(*_PUSH_BETWEEN))
        heading = rng.uniform(-np.pi, np.pi)
        self._velocity = self.strength * np.array([np.cos(heading), np.sin(heading), 0.0])

    def before_step(self, env: RobotEnv, step: int) -> None:
        if step == self._when:
            self._inner(env).world.push(self._body, self._velocity)

    def _inner(self, env: RobotEnv) -> Any:
        return env.unwrapped


def _has_objects(inner: Any) -> TypeGuard[TwoArmEnv]:
    return isinstance(inner, TwoArmEnv) and bool(inner.task.objects)


def _change(
    element: Element, key: str, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    """Change an attribute of numbers; one that is not given stays so."""
    text = element.get(key)
    if text is not None:
        numbers = change(np.array([float(word) for word in text.split()]))
        element.set(key, " ".join(repr(float(number)) for number in numbers))

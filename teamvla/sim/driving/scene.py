"""The driving scene as MJCF: what was drawn for an episode, as bodies.

Geoms collide with nothing: what touches is decided by footprints on the ground. The ground itself
is no geom either, so that rays need not be tested against it: see ``ground``.
"""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from teamvla.sim.driving import layout
from teamvla.sim.driving.layout import Layout
from teamvla.sim.driving.roads import FloatArray
from teamvla.sim.driving.vehicle import LENGTH_M, MIDDLE_M, TIMESTEP_S, WIDTH_M
from teamvla.sim.scene import Element, add, paint

LIDAR_AT = (1.2, 0.0, 1.9)  # in the frame of the rear axle, m
RADAR_AT = (3.6, 0.0, 0.5)
IMU_AT = (MIDDLE_M, 0.0, 0.5)
CAMERAS_AT = (1.4, 0.0, 1.6)  # one point for all six, as a panoramic head has it
_GLASS = (0.12, 0.15, 0.19)
_TYRE = (0.07, 0.07, 0.08)
_EGO_MASS = 1400.0
_MOVABLE = {"contype": 0, "conaffinity": 0, "mass": 0}


def scene_xml(drawn: Layout) -> str:
    """MJCF of the ego, the traffic (mocap bodies ``car0``, ...), parked vehicles and buildings."""
    root = ElementTree.Element("mujoco", model="driving")
    add(root, "option", timestep=TIMESTEP_S, integrator="Euler")
    world = add(root, "worldbody")
    _add_ego(world)
    for index, colour in enumerate(drawn["traffic_colour"]):
        body = add(world, "body", name=f"car{index}", mocap="true")
        _add_car(body, colour, layout.CAR_LENGTH_M)
    _add_parked(world, drawn)
    for index, (x, y, *half) in enumerate(drawn["buildings"]):
        body = add(world, "body", name=f"building{index}", pos=(x, y, half[2]))
        colour = paint(drawn["building_colour"][index])
        add(body, "geom", type="box", size=tuple(half), rgba=colour, **_MOVABLE)
    sensors = add(root, "sensor")
    add(sensors, "accelerometer", site="imu")
    add(sensors, "gyro", site="imu")
    return ElementTree.tostring(root, encoding="unicode")


def _add_ego(world: Element) -> None:
    ego = add(world, "body", name="ego")
    for name, axis in (("x", (1, 0, 0)), ("y", (0, 1, 0))):
        add(ego, "joint", name=name, type="slide", axis=axis)
    add(ego, "joint", name="yaw", type="hinge", axis=(0, 0, 1))
    box = {"size": (LENGTH_M / 2, WIDTH_M / 2, 0.4), "pos": (MIDDLE_M, 0.0, 0.75)}
    look = {"rgba": paint((0.75, 0.1, 0.1)), "contype": 0, "conaffinity": 0}
    add(ego, "geom", name="ego", type="box", mass=_EGO_MASS, **box, **look)
    cabin = {"size": (1.2, 0.78, 0.3), "pos": (MIDDLE_M - 0.2, 0.0, 1.4), "rgba": paint(_GLASS)}
    add(ego, "geom", name="ego_cabin", type="box", **cabin, **_MOVABLE)
    places = {"lidar": LIDAR_AT, "radar": RADAR_AT, "imu": IMU_AT, "cameras": CAMERAS_AT}
    for name, place in places.items():
        add(ego, "site", name=name, pos=place)


def _add_car(body: Element, colour: FloatArray, length: float) -> None:
    half = length / 2
    hull = {"size": (half, WIDTH_M / 2, 0.32), "pos": (0.0, 0.0, 0.67)}
    add(body, "geom", type="box", rgba=paint(colour), **hull, **_MOVABLE)
    cabin = {"size": (0.27 * length, 0.78, 0.26), "pos": (-0.06 * length, 0.0, 1.25)}
    add(body, "geom", type="box", rgba=paint(_GLASS), **cabin, **_MOVABLE)
    under = {"size": (half - 0.35, 0.87, 0.18), "pos": (0.0, 0.0, 0.18)}
    add(body, "geom", type="box", rgba=paint(_TYRE), **under, **_MOVABLE)


def _add_truck(body: Element, colour: FloatArray) -> None:
    """A lorry with 0.95 m under its bed: only what looks from below sees what is behind it."""
    half, wide = layout.TRUCK_LENGTH_M / 2, layout.TRUCK_WIDTH_M / 2
    bed = {"size": (half - 1.2, wide, 1.3), "pos": (-1.2, 0.0, 2.25), "rgba": paint(colour)}
    add(body, "geom", type="box", **bed, **_MOVABLE)
    cab = {"size": (1.1, wide, 1.0), "pos": (half - 1.1, 0.0, 1.95), "rgba": paint(_GLASS)}
    add(body, "geom", type="box", **cab, **_MOVABLE)
    for x in (half - 1.3, 1.2 - half, 2.5 - half):
        for y in (0.25 - wide, wide - 0.25):
            wheel = {"size": (0.45, 0.2, 0.475), "pos": (x, y, 0.475), "rgba": paint(_TYRE)}
            add(body, "geom", type="box", **wheel, **_MOVABLE)


def _add_parked(world: Element, drawn: Layout) -> None:
    for index, (x, y, heading, length, _) in enumerate(drawn["parked"]):
        turn = (float(np.cos(heading / 2)), 0.0, 0.0, float(np.sin(heading / 2)))
        body = add(world, "body", name=f"parked{index}", pos=(x, y, 0.0), quat=turn)
        colour = drawn["parked_colour"][index]
        if length > 2 * layout.CAR_LENGTH_M:
            _add_truck(body, colour)
        else:
            _add_car(body, colour, length)

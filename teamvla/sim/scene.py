"""The two-arm scene as MJCF, built from typed pieces.

The same numbers make the MuJoCo model and the contract's kinematic chains, so that
forward kinematics anywhere in the package agrees with the simulator.

Frame: x forward over the table, y to the left (arm ``a`` stands at +y), z up, origin on
the table top between the arms. Metres, radians, kilograms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Arm, Camera, Contract, Link, Vector

Element = ElementTree.Element
Colour = tuple[float, float, float]

ARMS = ("a", "b")
BASES: dict[str, Vector] = {"a": (0.0, 0.30, 0.0), "b": (0.0, -0.30, 0.0)}
TOOL: Vector = (0.085, 0.0, 0.0)  # between the finger tips, in the frame of the last link
HOME = (0.0, -0.6, 1.3, 0.0, 0.87, 0.0)  # gripper pointing straight down
MAX_OPENING = 0.042  # travel of one finger, m
CONTROL_HZ = 20.0

SUN_POSITION: Vector = (0.75, -0.45, 1.9)
SUN_STRENGTH = 0.5

_SHELL: Colour = (0.93, 0.93, 0.92)
_DARK: Colour = (0.20, 0.21, 0.25)
_PALM: Colour = (0.36, 0.38, 0.44)
_ELBOW: dict[str, Colour] = {"a": (0.96, 0.55, 0.36), "b": (0.36, 0.66, 0.93)}
_TABLE: Colour = (0.72, 0.77, 0.79)
# The surroundings are a backdrop that blends from one to the other. A floor they are not:
# mj_multiRay culls geoms that reach all around the camera where it should not.
GROUND: Colour = (0.80, 0.78, 0.75)
SKY: Colour = (0.88, 0.91, 0.95)
_UNTOUCHABLE = {"contype": 0, "conaffinity": 0}  # links pass through each other
_SKIN = {"condim": 4, "solimp": (0.95, 0.99, 0.001), "solref": (0.008, 1.0)}


@dataclass(frozen=True)
class Joint:
    """One hinge, the actuator that drives it and the link behind it.

    Attributes:
        offset: where the joint sits in the frame of the link before it, m.
        limits: least and greatest angle, rad; commands are clipped to them.
        gain: stiffness of the position actuator, Nm/rad; it is critically damped.
        torque: greatest torque, Nm.
        radius: thickness of the capsule that runs to the next joint, m.
    """

    name: str
    offset: Vector
    axis: Vector
    limits: tuple[float, float]
    gain: float
    torque: float
    radius: float


JOINTS = (
    Joint("j1", (0.0, 0.0, 0.08), (0.0, 0.0, 1.0), (-2.8, 2.8), 600, 90, 0.045),
    Joint("j2", (0.0, 0.0, 0.12), (0.0, 1.0, 0.0), (-1.6, 1.7), 900, 120, 0.035),
    Joint("j3", (0.0, 0.0, 0.32), (0.0, 1.0, 0.0), (-1.2, 2.6), 700, 90, 0.030),
    Joint("j4", (0.16, 0.0, 0.0), (1.0, 0.0, 0.0), (-3.0, 3.0), 250, 40, 0.027),
    Joint("j5", (0.16, 0.0, 0.0), (0.0, 1.0, 0.0), (-1.9, 2.4), 200, 30, 0.026),
    Joint("j6", (0.07, 0.0, 0.0), (1.0, 0.0, 0.0), (-3.1, 3.1), 80, 20, 0.040),
)


@dataclass(frozen=True)
class View:
    """A camera: where it stands, what it looks at (m) and its field of view.

    Places and directions are in the world's frame, or in that of the body it is mounted on.
    ``up`` is the direction that points upward in the picture.
    """

    name: str
    position: Vector
    target: Vector
    fovy_deg: float
    body: str = ""
    up: Vector = (0.0, 0.0, 1.0)


#: The arms' cameras stand between them and above, where no arm hides its own work.
CAMERA_FIELDS = ("rgb_a", "rgb_b")
WRIST_FIELDS = ("rgb_wrist_a", "rgb_wrist_b")
TOP_FIELD = "rgb_top"
#: Before the hand, looking along the fingers, which reach into the picture from below.
_ON_WRIST: tuple[Vector, Vector, float] = ((0.0, 0.0, 0.06), (0.13, 0.0, 0.03), 85.0)
VIEWS = (
    View("rgb_a", (0.05, 0.02, 0.85), (0.45, 0.15, 0.03), 48.0),
    View("rgb_b", (0.05, -0.02, 0.85), (0.45, -0.15, 0.03), 48.0),
    View(TOP_FIELD, (0.40, 0.0, 1.35), (0.40, 0.0, 0.0), 48.0, up=(1.0, 0.0, 0.0)),
    View("overview", (1.55, -0.95, 1.02), (0.27, -0.03, 0.06), 41.0),
    View("rgb_wrist_a", *_ON_WRIST, "a_l6"),
    View("rgb_wrist_b", *_ON_WRIST, "b_l6"),
)


@dataclass(frozen=True)
class Physics:
    """How the solver steps: one physics step in s, and MuJoCo's name of the integrator."""

    timestep_s: float = 0.005
    integrator: str = "implicitfast"


@dataclass(frozen=True)
class Light:
    """The one light: where it hangs (m, world) and how bright it is, 0..1."""

    position: Vector = SUN_POSITION
    strength: float = SUN_STRENGTH


def add(parent: Element, tag: str, **attributes: object) -> Element:
    """Append an element; numbers and vectors become text, a trailing ``_`` is dropped."""
    named = {key.rstrip("_"): _text(value) for key, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, named)


def paint(colour: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    """An opaque rgba from a colour in 0..1."""
    return (*colour, 1.0)


def build_scene(
    physics: Physics, light: Light, camera_shift: Mapping[str, Vector]
) -> tuple[Element, Element]:
    """The table, both arms and the cameras: the MJCF's root and its worldbody.

    Geoms that are put in to be grasped use the default class ``object``.

    Args:
        camera_shift: camera -> how far it stands from its place, m.
    """
    root = ElementTree.Element("mujoco", model="two_arm")
    _add_physics(root, physics)
    world = add(root, "worldbody")
    _add_room(root, world, light)
    for arm in ARMS:
        _add_arm(world, arm)
    for view in VIEWS:
        shift = camera_shift.get(view.name, (0.0, 0.0, 0.0))
        x, y, z = (place + moved for place, moved in zip(view.position, shift, strict=True))
        _add_camera(world, replace(view, position=(x, y, z)))
    _add_drives(root)
    return root, world


def to_xml(root: Element) -> str:
    """The MJCF as text."""
    return ElementTree.tostring(root, encoding="unicode")


def two_arm_contract(height: int, width: int, fields: Sequence[str] = CAMERA_FIELDS) -> Contract:
    """The contract of this embodiment with cameras of ``height`` x ``width`` pixels."""
    links = tuple(
        Link(joint=j.name, offset=j.offset, axis=j.axis, limits=j.limits, radius=j.radius)
        for j in JOINTS
    )
    arms = tuple(Arm(name=arm, base=BASES[arm], links=links, tool=TOOL) for arm in ARMS)
    cameras = tuple(Camera(field=field, height=height, width=width) for field in fields)
    return Contract(control_hz=CONTROL_HZ, arms=arms, cameras=cameras)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence | np.ndarray):
        return " ".join(repr(float(entry)) for entry in value)
    return repr(value)


def _add_camera(world: Element, view: View) -> None:
    home = world.find(f".//body[@name='{view.body}']") if view.body else world
    assert home is not None
    back = np.subtract(view.position, view.target)
    back /= np.linalg.norm(back)
    right = np.cross(view.up, back)
    right /= np.linalg.norm(right)
    axes = (*right, *np.cross(back, right))
    add(home, "camera", name=view.name, pos=view.position, xyaxes=axes, fovy=view.fovy_deg)


def _add_physics(root: Element, physics: Physics) -> None:
    """Solver and defaults under which friction grasps hold: elliptic cones, impratio 10."""
    add(root, "compiler", angle="radian", autolimits=True)
    option = add(
        root,
        "option",
        timestep=physics.timestep_s,
        integrator=physics.integrator,
        cone="elliptic",
        impratio=10,
    )
    # A state that blew up must be reported, never silently replaced by the initial one.
    add(option, "flag", autoreset="disable")
    visual = add(root, "visual")
    add(visual, "global", offwidth=1280, offheight=960)
    add(visual, "headlight", ambient=(0.40,) * 3, diffuse=(0.20,) * 3, specular=(0.0,) * 3)
    defaults = add(root, "default")
    add(defaults, "joint", armature=0.05, damping=1)
    add(defaults, "geom", friction=(0.8, 0.005, 0.0001))
    finger = add(defaults, "default", class_="finger")
    add(finger, "geom", friction=(1.6, 0.02, 0.001), mass=0.03, rgba=paint(_DARK), **_SKIN)
    thing = add(defaults, "default", class_="object")
    add(thing, "geom", friction=(1.0, 0.01, 0.0005), **_SKIN)


def _add_room(root: Element, world: Element, light: Light) -> None:
    sky = {"type": "skybox", "builtin": "gradient", "width": 64, "height": 384}
    add(add(root, "asset"), "texture", name="sky", **sky, rgb1=SKY, rgb2=GROUND)
    add(
        world,
        "light",
        name="sun",
        pos=light.position,
        dir=(0.1, -0.2, -1.0),
        diffuse=(light.strength,) * 3,
        specular=(0.0,) * 3,
        cutoff=90,
        exponent=0,
    )
    top = {"size": (0.5, 0.7, 0.02), "pos": (0.35, 0.0, -0.02), "rgba": paint(_TABLE)}
    add(world, "geom", name="table", type="box", **top)
    stand = {"size": (0.16, 0.24, 0.58), "pos": (0.35, 0.0, -0.62), "rgba": paint(_PALM)}
    add(world, "geom", name="stand", type="box", **stand, **_UNTOUCHABLE)


def _add_arm(world: Element, arm: str) -> None:
    body = add(world, "body", name=f"{arm}_base", pos=BASES[arm], gravcomp=1)
    plinth = {"size": (0.06, 0.04), "pos": (0.0, 0.0, 0.04), "rgba": paint(_DARK)}
    add(body, "geom", type="cylinder", **plinth, **_UNTOUCHABLE)
    for number, joint in enumerate(JOINTS):
        body = add(body, "body", name=f"{arm}_l{number + 1}", pos=joint.offset, gravcomp=1)
        add(body, "joint", name=f"{arm}_{joint.name}", axis=joint.axis, range=joint.limits)
        if number + 1 < len(JOINTS):
            _add_shell(body, joint, JOINTS[number + 1])
    elbow = world.find(f".//body[@name='{arm}_l3']")
    assert elbow is not None
    add(elbow, "geom", type="sphere", size=(0.042,), rgba=paint(_ELBOW[arm]), **_UNTOUCHABLE)
    _add_gripper(body, arm)


def _add_shell(body: Element, joint: Joint, following: Joint) -> None:
    ends = (0.0, 0.0, 0.0, *following.offset)
    shape = {"type": "capsule", "size": (joint.radius,), "fromto": ends}
    add(body, "geom", **shape, rgba=paint(_SHELL), **_UNTOUCHABLE)


def _add_gripper(hand: Element, arm: str) -> None:
    palm = {"size": (0.015, 0.055, 0.018), "pos": (0.01, 0.0, 0.0), "mass": 0.15}
    add(hand, "geom", name=f"{arm}_palm", type="box", **palm, rgba=paint(_PALM))
    add(hand, "site", name=f"{arm}_tcp", pos=TOOL, size=(0.005,), group=4)
    for finger, side in ((f"{arm}_f1", 1.0), (f"{arm}_f2", -1.0)):
        body = add(hand, "body", name=finger, pos=(0.025, 0.0, 0.0), gravcomp=1)
        slide = {"type": "slide", "axis": (0.0, side, 0.0), "range": (0.0, MAX_OPENING)}
        # Lighter fingers chatter against what they hold at 5 ms steps, and lose it.
        add(body, "joint", name=finger, **slide, armature=0.05, damping=5)
        pad = {"size": (0.035, 0.006, 0.012), "pos": (0.035, side * 0.006, 0.0)}
        add(body, "geom", name=finger, class_="finger", type="box", **pad)


def _add_drives(root: Element) -> None:
    tendons, equality = add(root, "tendon"), add(root, "equality")
    actuators = add(root, "actuator")
    for arm in ARMS:
        for joint in JOINTS:
            drive = {"kp": joint.gain, "dampratio": 1, "inheritrange": 1}
            force = (-joint.torque, joint.torque)
            name = f"{arm}_{joint.name}"
            add(actuators, "position", name=name, joint=name, **drive, forcerange=force)
        _add_gripper_drive(tendons, equality, actuators, arm)


def _add_gripper_drive(tendons: Element, equality: Element, actuators: Element, arm: str) -> None:
    """Both fingers move alike: a joint equality, and one actuator on their mean."""
    fingers = (f"{arm}_f1", f"{arm}_f2")
    mean = add(tendons, "fixed", name=f"{arm}_grip")
    for finger in fingers:
        add(mean, "joint", joint=finger, coef=0.5)
    stiff = {"solimp": (0.95, 0.99, 0.001), "solref": (0.005, 1.0)}
    add(equality, "joint", joint1=fingers[0], joint2=fingers[1], **stiff)
    drive = {"kp": 1500, "kv": 60, "forcerange": (-30, 30), "ctrlrange": (0.0, MAX_OPENING)}
    add(actuators, "position", name=f"{arm}_grip", tendon=f"{arm}_grip", **drive)

"""Ways to damage a clean recording, each with what validating must say of it.

A fault is a pure function from an episode's columns and metadata to damaged ones. It never
touches what it is given, and names the code, the step and the field that must be found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray]
Meta = dict[str, Any]
Damage = Callable[[Columns, Meta], tuple[Columns, Meta]]
STEP = 40  # in the middle of the tray's approach


@dataclass(frozen=True)
class Fault:
    """One way to damage an episode.

    Attributes:
        name: what happened.
        code, step, field: what must be found.
        damage: the function that does it.
        alone: whether the episode shows it by itself, or only beside the others.
    """

    name: str
    code: str
    step: int | None
    field: str | None
    damage: Damage
    alone: bool = True


FAULTS: list[Fault] = []


def fault(
    code: str, field: str | None, step: int | None = None, *, alone: bool = True
) -> Callable[[Damage], Damage]:
    """Enter a function into :data:`FAULTS` under its own name."""

    def enter(damage: Damage) -> Damage:
        FAULTS.append(Fault(damage.__name__, code, step, field, damage, alone))
        return damage

    return enter


def changed(columns: Columns, name: str, at: Any, value: Any) -> Columns:
    """The columns with some entries of one replaced."""
    array = columns[name].copy()
    array[at] = value
    return {**columns, name: array}


def swap(columns: Columns, one: str, two: str) -> Columns:
    return {**columns, one: columns[two], two: columns[one]}


# Numbers.


@fault("E107", "q_a", STEP)
def nan_in_positions(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "q_a", (STEP, 2), np.nan), meta


@fault("E107", "action_b", STEP)
def infinite_action(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "action_b", (STEP, 0), np.inf), meta


@fault("W401", "q_b", STEP)
def outlier(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "q_b", (STEP, 1), columns["q_b"][STEP, 1] + 0.8), meta


@fault("W402", "action_a", STEP)
def action_jump(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "action_a", (STEP, 3), columns["action_a"][STEP, 3] + 1.0), meta


@fault("W403", "q_a", STEP)
def joint_skips(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    rows = slice(STEP, None)
    return changed(columns, "q_a", (rows, 0), columns["q_a"][rows, 0] + 0.5), meta


@fault("W410", "q_b")
def stuck_joint(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "q_b", (slice(None), 1), columns["q_b"][0, 1]), meta


@fault("W434", "q_a")
def joint_offset_between_arms(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    offset = np.float32([0, 0, 0.25, 0, 0, 0])
    return {**columns, "q_a": columns["q_a"] + offset}, meta


@fault("W435", "q_b", 0, alone=False)
def joint_offset_between_episodes(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    offset = np.float32([0, 0, 0, 0.4, 0, 0])
    return {k: v + offset if k in ("q_b", "action_b") else v for k, v in columns.items()}, meta


@fault("E437", "q_a")
def degrees(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    arms = ("q_a", "q_b", "action_a", "action_b")
    return {k: np.rad2deg(v) if k in arms else v for k, v in columns.items()}, meta


@fault("W438", "q_b", STEP)
def joint_beyond_its_limits(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    high = meta["contract"]["arms"][1]["links"][4]["limits"][1]
    return changed(columns, "q_b", (slice(STEP, STEP + 4), 4), high + 0.2), meta


@fault("E414", "action_a", STEP)
def command_beyond_its_limits(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    high = meta["contract"]["arms"][0]["links"][1]["limits"][1]
    return changed(columns, "action_a", (STEP, 1), high + 0.2), meta


# What belongs together.


@fault("W412", "action_a", 0)
def previous_actions(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    shifted = {f"action_{arm}": np.roll(columns[f"action_{arm}"], 1, axis=0) for arm in "ab"}
    for arm in "ab":
        shifted[f"action_{arm}"][0] = columns[f"q_{arm}"][0]
    return {**columns, **shifted}, meta


@fault("W413", "action_b", 0)
def actions_repeat_positions(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "action_b": columns["q_b"]}, meta


@fault("E419", "q_a")
def swapped_arms(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return swap(columns, "q_a", "q_b"), meta


@fault("E420", "action_a")
def deltas_called_absolute(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    deltas = {f"action_{arm}": columns[f"action_{arm}"] - columns[f"q_{arm}"] for arm in "ab"}
    return {**columns, **deltas}, meta


@fault("W442", "qd_a")
def velocities_in_degrees(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    rate = meta["contract"]["control_hz"]
    velocity = np.gradient(columns["q_a"], axis=0) * np.float32(rate)
    return {**columns, "qd_a": np.rad2deg(velocity).astype(np.float32)}, meta


@fault("W443", "ee_a", STEP)
def broken_quaternion(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    pose = np.tile(np.float32([0.4, 0.2, 0.3, 1, 0, 0, 0]), (len(columns["q_a"]), 1))
    pose[STEP, 3:] = 0
    return {**columns, "ee_a": pose}, meta


# Grippers.


@fault("E108", "grip_a", 0)
def gripper_from_minus_one(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "grip_a": 2 * columns["grip_a"] - 1}, meta


@fault("E421", "grip_a")
def gripper_sign_flipped(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "grip_a": 1 - columns["grip_a"]}, meta


@fault("W422", "grip_b", 0, alone=False)
def both_gripper_signs_flipped(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, **{k: 1 - columns[k] for k in ("grip_b", "grip_q_b")}}, meta


@fault("W423", "grip_b")
def gripper_in_metres(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "grip_b": columns["grip_b"] * np.float32(0.085)}, meta


@fault("W439", "grip_q_b")
def gripper_never_measured(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "grip_q_b": np.zeros_like(columns["grip_q_b"])}, meta


# Cameras.


@fault("W405", "rgb_a", 0)
def black_camera(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "rgb_a": np.zeros_like(columns["rgb_a"])}, meta


@fault("W405", "rgb_b", STEP)
def one_black_picture(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "rgb_b", STEP, 0), meta


@fault("W406", "rgb_b", 10)
def frozen_camera(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "rgb_b", slice(11, None), columns["rgb_b"][10]), meta


@fault("W407", "rgb_a")
def camera_at_half_the_rate(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    rows = np.arange(len(columns["rgb_a"])) // 2 * 2
    return {**columns, "rgb_a": columns["rgb_a"][rows]}, meta


@fault("W408", "rgb_b")
def one_camera_twice(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "rgb_b": columns["rgb_a"]}, meta


@fault("W414", "rgb_a", 0, alone=False)
def swapped_cameras(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return swap(columns, "rgb_a", "rgb_b"), meta


@fault("W441", "rgb_a", 0, alone=False)
def blue_first(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {k: v[..., ::-1] if k.startswith("rgb") else v for k, v in columns.items()}, meta


# Time and order.


@fault("W409", None, 15)
def step_twice(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    rows = np.r_[:15, 14, 15 : len(columns["q_a"])]
    doubled = {name: column[rows] for name, column in columns.items() if name != "timestamp"}
    return doubled, {**meta, "num_steps": len(rows)}


@fault("E415", "timestamp", STEP)
def time_goes_back(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "timestamp", slice(STEP, None), columns["timestamp"][STEP:] - 1), meta


@fault("E416", "timestamp")
def wrong_rate(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "timestamp": columns["timestamp"] * 2}, meta


@fault("W424", "timestamp", STEP)
def steps_missing(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return changed(columns, "timestamp", slice(STEP, None), columns["timestamp"][STEP:] + 1), meta


@fault("W445", None, alone=False)
def broken_off(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    kept = {name: column[-14:] for name, column in columns.items()}
    return kept, {**meta, "num_steps": 14}


# Success and words.


@fault("E402", "success")
def success_that_is_none(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "success": np.zeros_like(columns["success"])}, meta


@fault("W425", "success", STEP)
def failure_that_is_none(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    flags = np.arange(len(columns["success"])) >= STEP
    return {**columns, "success": flags}, {**meta, "success": False}


@fault("W426", "success", 0)
def success_everywhere(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "success": np.ones_like(columns["success"])}, meta


@fault("W430", "success", alone=False)
def failed_demonstration(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    flags = np.zeros_like(columns["success"])
    return {**columns, "success": flags}, {**meta, "success": False}


@fault("E403", "instruction", 0)
def instruction_of_other_steps(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    words = np.full(len(columns["q_a"]), "fold the towel")
    return {**columns, "instruction": words}, meta


@fault("W429", "instruction", alone=False)
def instruction_of_another_task(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return columns, {**meta, "instruction": "open the drawer"}


# The contract.


@fault("W436", "contract", alone=False)
def another_contract(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    contract = {**meta["contract"], "control_hz": 20.5}
    return columns, {k: v for k, v in meta.items() if k != "contract_digest"} | {
        "contract": contract
    }


@fault("E412", "q_b")
def joint_missing(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {k: v[:, :5] if k in ("q_b", "action_b") else v for k, v in columns.items()}, meta


@fault("E413", "rgb_a")
def smaller_pictures(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "rgb_a": columns["rgb_a"][:, ::2, ::2]}, meta


@fault("E411", "contract_digest")
def foreign_digest(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return columns, {**meta, "contract_digest": "0" * 64}


# Copies.


@fault("W432", None, alone=False)
def copy_of_another(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return columns, meta


@fault("W432", None, alone=False)
def copy_with_other_pictures(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return {**columns, "rgb_a": columns["rgb_a"] // 2 + 20}, meta


@fault("E433", None, alone=False)
def copy_in_another_split(columns: Columns, meta: Meta) -> tuple[Columns, Meta]:
    return columns, meta

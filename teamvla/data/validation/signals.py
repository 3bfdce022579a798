"""What grippers, clocks, flags and the other sensors of one episode tell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from teamvla.data.fields import arms_of
from teamvla.data.validation.findings import Fault
from teamvla.data.validation.record import Record
from teamvla.data.validation.thresholds import (
    AGAINST,
    GAP,
    GRIP_RANGE,
    METRES,
    QUATERNION_SLACK,
    REPEAT_MOTION,
    VELOCITY_RATIO,
)


def grippers(record: Record) -> Iterator[Fault]:
    """Commands and measured openings that run against each other, stand still, or are lengths."""
    for arm in arms_of(record.specs):
        name = f"grip_{arm}"
        if (command := record.small.get(name)) is None:
            continue
        span = float(np.ptp(command))
        if span > 0 and float(command.max()) <= METRES:
            got = f"{float(command.min()):.3g} to {float(command.max()):.3g}: metres?"
            yield Fault("W423", None, name, f"expected 0 open .. 1 closed, got {got}")
        measured = record.small.get(f"grip_q_{arm}")
        if measured is None or measured.shape != command.shape or span < GRIP_RANGE:
            continue
        if float(np.ptp(measured)) == 0:
            got = f"{float(measured[0]):.3g} in all steps while the command spans {span:.2g}"
            message = f"expected an opening that changes, got {got}"
            yield Fault("W439", None, f"grip_q_{arm}", message)
        elif (agreement := _correlation(command, measured)) < AGAINST:
            got = f"a correlation of {agreement:.2f} with grip_q_{arm}"
            yield Fault("E421", None, name, f"expected the gripper to do as told, got {got}")


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    first, second = (values.astype(np.float64) - values.mean() for values in (one, two))
    size = float(np.sqrt(first @ first) * np.sqrt(second @ second))
    return float(first @ second) / size if size > 0 else 0.0


def gaps(record: Record) -> Iterator[Fault]:
    """Time that is missing between two steps."""
    time = record.small.get("timestamp")
    if time is None or time.ndim != 1:
        return
    ticks = np.diff(time)
    usual = float(np.median(ticks))
    wide = ticks > GAP * usual
    if usual > 0 and wide.any():
        step = int(wide.argmax()) + 1
        got = f"{ticks[step - 1]:.3g} s ({int(wide.sum())} times)"
        yield Fault("W424", step, "timestamp", f"expected about {usual:.3g} s a step, got {got}")


def success(record: Record) -> Iterator[Fault]:
    """Flags that are a constant, or that the episode's own flag denies."""
    flags = record.small.get("success")
    if flags is None or flags.dtype.kind != "b":
        return
    if flags.all():
        message = "expected steps that lead to success, got success from the first step on"
        yield Fault("W426", 0, "success", message)
    elif flags[-1] and not record.meta["success"]:
        start = len(flags) - int(np.argmin(flags[::-1]))
        message = f"expected a success: steps {start} to {len(flags) - 1} say so, got a failure"
        yield Fault("W425", start, "success", message)


def twice(record: Record) -> Iterator[Fault]:
    """A step that stands in the file twice, in the middle of a motion."""
    joints = record.joints
    if joints is None or not all(pictures.same.any() for pictures in record.pictures.values()):
        return
    moves = joints.moved.any(axis=1) | np.diff(joints.action, axis=0).any(axis=1)
    same = np.asarray(~moves)
    for pictures in record.pictures.values():
        same &= pictures.same[: len(same)]
    reach = record.reach(None)
    around = np.minimum(np.r_[0, reach[:-1]], np.r_[reach[1:], 0]) > REPEAT_MOTION / 2
    if (wrong := same & around).any():
        got = f"the step before once more ({int(wrong.sum())} times)"
        yield Fault("W409", int(wrong.argmax()) + 1, None, f"expected a new step, got {got}")


def velocities(record: Record) -> Iterator[Fault]:
    """Velocities that are not the positions' rate of change."""
    if (joints := record.joints) is None:
        return
    for arm, columns in joints.slices.items():
        stated = record.small.get(f"qd_{arm}")
        stated = None if stated is None else stated[: record.judged]
        moved = joints.moved[:, columns] / record.tick
        if stated is None or stated.ndim != 2 or stated[1:].shape != moved.shape:
            continue
        # The speed of the moment and the mean over a step differ; both ends are looked at.
        mean = 0.5 * (stated[1:] + stated[:-1])
        own, seen = float(np.sum(mean * mean)), float(np.sum(moved * moved))
        shared = float(np.sum(mean * moved))
        if seen < (0.1 * len(moved) ** 0.5) ** 2:
            continue
        factor = shared / seen
        if not 1 / VELOCITY_RATIO < factor < VELOCITY_RATIO or shared < 0.5 * (own * seen) ** 0.5:
            got = f"{factor:.3g} times that"
            message = f"expected the rate of change of q_{arm} in rad/s, got {got}"
            yield Fault("W442", None, f"qd_{arm}", message)


def quaternions(record: Record) -> Iterator[Fault]:
    """Poses whose quaternion has another length than one."""
    for name, pose in record.small.items():
        if not name.startswith("ee_") or pose.ndim != 2 or pose.shape[1] != 7:
            continue
        length = np.linalg.norm(pose[:, 3:], axis=1)
        wrong = np.abs(length - 1) > QUATERNION_SLACK
        if wrong.any():
            row = int(wrong.argmax())
            got = f"{length[row]:.3g} ({int(wrong.sum())} steps)"
            yield Fault("W443", row, name, f"expected a quaternion of length 1, got {got}")


CHECKS = {
    "E421": grippers,
    "W424": gaps,
    "W425": success,
    "W409": twice,
    "W442": velocities,
    "W443": quaternions,
}

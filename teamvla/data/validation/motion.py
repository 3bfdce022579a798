"""What the joints of one episode tell: jumps, stuck joints, shifted, swapped or foreign actions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from teamvla.data.validation.findings import Fault
from teamvla.data.validation.record import Joints, Record
from teamvla.data.validation.thresholds import (
    FAST,
    FASTER_THAN_USUAL,
    KIND_DISTANCE,
    KIND_RATIO,
    LAG_DELTA,
    LAG_NOTICEABLE,
    LAG_RATIO,
    LIMIT_SLACK,
    MOVES,
    OFFSET,
    SPIKE,
    SWAP_DISTANCE,
    SWAP_RATIO,
    TURNS,
)


def measured_jumps(record: Record) -> Iterator[Fault]:
    """Single values far from both neighbours (W401), and places where a joint skips (W403)."""
    if (joints := record.joints) is None:
        return
    spike = _spikes(joints.moved, record.tick)
    yield from _report(joints, "q", "W401", spike, joints.q[1:-1], "a value near its neighbours")
    skip = _wild(joints.moved, record.tick)
    if skip is None:
        return
    skip[:-1] &= ~spike
    skip[1:] &= ~spike
    yield from _report(joints, "q", "W403", skip, joints.moved, "a smooth motion", " rad in a step")


def command_jumps(record: Record) -> Iterator[Fault]:
    """Commands far from the one before, or (deltas) far away."""
    if (joints := record.joints) is None:
        return
    steps = joints.action if joints.delta else np.diff(joints.action, axis=0)
    wild = _wild(steps, record.tick)
    if wild is not None:
        first = 0 if joints.delta else 1
        expected, unit = "a command near the one before", " rad in a step"
        yield from _report(joints, "action", "W402", wild, steps, expected, unit, first)


def _spikes(moved: np.ndarray, tick: float) -> np.ndarray:
    """bool[T-2, J]: away and back within two steps, farther than this joint ever bends."""
    back = moved[:-1] * moved[1:] < 0
    size = np.minimum(np.abs(moved[:-1]), np.abs(moved[1:]))
    spike = np.asarray(back & (size > SPIKE * tick))
    if not spike.any():
        return spike
    bends = np.abs(moved[1:] - moved[:-1])
    spike &= bends > FASTER_THAN_USUAL * np.quantile(bends, 0.9, axis=0)
    return spike


def _wild(steps: np.ndarray, tick: float) -> np.ndarray | None:
    """bool[T-1, J]: faster than an arm goes, and than this joint usually does."""
    size = np.abs(steps)
    fast = FAST * tick
    if not (size.max(axis=0) > fast).any():
        return None
    usual = np.quantile(size, 0.95, axis=0)
    return np.asarray(size > np.maximum(fast, FASTER_THAN_USUAL * usual))


def _report(
    joints: Joints, kind: str, code: str, wild: np.ndarray, values: np.ndarray,
    expected: str, unit: str = "", first: int = 1,
) -> Iterator[Fault]:  # fmt: skip
    """One fault per arm: its first wild step and the joint there."""
    if not wild.any():
        return
    for arm, columns in joints.slices.items():
        mine = wild[:, columns]
        if count := int(mine.any(axis=1).sum()):
            row = int(mine.any(axis=1).argmax())
            joint = int(mine[row].argmax())
            got = f"{values[row, columns][joint]:+.3g}{unit} at joint {joint} ({count} times)"
            yield Fault(code, row + first, f"{kind}_{arm}", f"expected {expected}, got {got}")


def stuck(record: Record) -> Iterator[Fault]:
    """Joints that never change: against their commands (W410), or with them (I411)."""
    if (joints := record.joints) is None or not (constant := joints.span == 0).any():
        return
    for arm, columns in joints.slices.items():
        told = joints.target_span[columns]
        still = constant[columns]
        against = np.flatnonzero(still & (told > MOVES)) if not joints.delta else np.array([], int)
        if len(against):
            got = f"{_listed(against)} constant while commanded through {told[against].max():.2g}"
            yield Fault("W410", None, f"q_{arm}", f"expected joints that move, got {got} rad")
        elif still.any():
            named = _listed(np.flatnonzero(still))
            yield Fault("I411", None, f"q_{arm}", f"{named}: constant, as commanded")


def _listed(joints: np.ndarray) -> str:
    return f"joint{'s' * (len(joints) > 1)} {', '.join(map(str, joints))}"


def lag(record: Record) -> Iterator[Fault]:
    """Whether a command belongs to the observation of its own row."""
    if (joints := record.joints) is None:
        return
    own, later = joints.misses
    for arm, columns in joints.slices.items():
        before, after = float(own[columns].sum()), float(later[columns].sum())
        span = float(joints.span[columns].max())
        if span < MOVES:
            continue
        if not joints.delta and np.array_equal(joints.action[:, columns], joints.q[:, columns]):
            message = "expected a command, got the measured position of the same step"
            yield Fault("W413", 0, f"action_{arm}", message)
        elif before < min(_lag_bound(joints, columns, after), after - _noticeable(joints, columns)):
            distance = [np.sqrt(miss / own[columns].size / len(joints.gaps[0])) for miss in
                        (before, after)]  # fmt: skip
            got = f"{distance[0]:.2g} rad from q of its own row, {distance[1]:.2g} from the next"
            message = f"expected a command that the next observation follows, got one {got}"
            yield Fault("W412", 0, f"action_{arm}", message)


def _lag_bound(joints: Joints, columns: slice, after: float) -> float:
    """How near to its own row a command must lie to belong to it.

    Deltas lie far from both rows where they belong to another arm: they must resemble one.
    """
    if not joints.delta:
        return LAG_RATIO * after
    deltas = joints.action[1:-1, columns]
    return min(LAG_RATIO * after, LAG_DELTA * float(np.einsum("tj,tj->", deltas, deltas)))


def _noticeable(joints: Joints, columns: slice) -> float:
    return LAG_NOTICEABLE**2 * joints.gaps[0][:, columns].size


def swapped(record: Record) -> Iterator[Fault]:
    """Commands that the other arm follows."""
    if (joints := record.joints) is None or joints.delta:
        return
    sizes = dict(zip(joints.arms, joints.sizes, strict=True))
    for one, two in combinations(joints.arms, 2):
        first, second = joints.slices[one], joints.slices[two]
        if sizes[one] != sizes[two]:
            continue
        straight = sum(joints.misses[1][of].sum() for of in (first, second))
        crossed = _miss(joints, first, second) + _miss(joints, second, first)
        size = len(joints.gaps[0]) * 2 * sizes[one]
        if straight > SWAP_DISTANCE**2 * size and crossed < SWAP_RATIO * straight:
            got = f"q_{two} that follows action_{one}, and q_{one} action_{two}"
            yield Fault("E419", None, f"q_{one}", f"expected joints of arm {one}, got {got}")


def _miss(joints: Joints, commanded: slice, measured: slice) -> float:
    gap = joints.action[1:-1, commanded] - joints.q[2:, measured]
    return float(np.einsum("tj,tj->", gap, gap))


def kind_of_action(record: Record) -> Iterator[Fault]:
    """Deltas where the contract says absolute positions, and the reverse."""
    if (joints := record.joints) is None or record.contract is None:
        return
    steps = len(joints.gaps[0])
    as_delta = joints.action[1:-1] - joints.moved[1:]
    for arm, columns in joints.slices.items():
        delta = as_delta[:, columns]
        absolute = joints.action[1:-1, columns] - joints.q[2:, columns]
        misses = [float(np.einsum("tj,tj->", gap, gap)) for gap in (absolute, delta)]
        stated, other = misses[::-1] if joints.delta else misses
        large = stated > KIND_DISTANCE**2 * steps * delta.shape[1]
        if large and other < KIND_RATIO * stated:
            kinds = ("absolute positions", "differences")
            wanted, got = kinds[::-1] if joints.delta else kinds
            message = f"expected {wanted}, as the contract says, got {got}"
            yield Fault("E420", None, f"action_{arm}", message)


def offset(record: Record) -> Iterator[Fault]:
    """A joint that follows its commands at a constant distance."""
    joints = record.joints
    if joints is None or joints.delta or record.steps < 3:
        return
    gap = joints.gaps[1]
    # The root of the mean square is at least 0.7 times a median, and much cheaper.
    if (joints.misses[1] < 0.5 * OFFSET**2 * len(gap)).all():
        return
    apart = np.median(gap, axis=0)
    spread = np.median(np.abs(gap - apart), axis=0)
    wrong = (np.abs(apart) > OFFSET) & (spread < 0.25 * np.abs(apart))
    for arm, columns in joints.slices.items():
        if (mine := wrong[columns]).any():
            joint = int(mine.argmax())
            got = f"{apart[columns][joint]:+.2f} rad at joint {joint} in most steps"
            message = f"expected commands and joints to meet, got a difference of {got}"
            yield Fault("W434", None, f"q_{arm}", message)


def limits(record: Record) -> Iterator[Fault]:
    """Angles that no joint can have: beyond its limits (W438), or in degrees (E437)."""
    if (joints := record.joints) is None:
        return
    described = record.contract.arms if record.contract else ()
    bounds = {arm.name: arm.joint_limits for arm in described}
    for arm, columns in joints.slices.items():
        q = joints.q[:, columns]
        if np.abs(q).max() > TURNS:
            row, joint = np.unravel_index(np.abs(q).argmax(), q.shape)
            message = f"expected radians, got {q[row, joint]:.4g} at joint {joint}: degrees?"
            yield Fault("E437", int(row), f"q_{arm}", message)
            continue
        limit = np.array(bounds.get(arm) or ()).reshape(-1, 2)
        if len(limit) == q.shape[1]:
            yield from _beyond(f"q_{arm}", q, limit)


def _beyond(name: str, q: np.ndarray, limit: np.ndarray) -> Iterator[Fault]:
    wrong = (q < limit[:, 0] - LIMIT_SLACK) | (q > limit[:, 1] + LIMIT_SLACK)
    if wrong.any():
        row = int(wrong.any(axis=1).argmax())
        joint = int(wrong[row].argmax())
        low, high = limit[joint]
        message = f"expected joint {joint} in [{low:g}, {high:g}] rad, got {q[row, joint]:.4g}"
        yield Fault("W438", row, name, f"{message} ({int(wrong.any(axis=1).sum())} steps)")


CHECKS = {
    "W401": measured_jumps,
    "W402": command_jumps,
    "W410": stuck,
    "W412": lag,
    "E419": swapped,
    "E420": kind_of_action,
    "W434": offset,
    "W438": limits,
}

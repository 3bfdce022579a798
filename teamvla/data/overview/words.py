"""What table and page say alike: shares, sizes, and the rows of their tables."""

from __future__ import annotations

from dataclasses import dataclass

from teamvla.contract import Arm, Contract
from teamvla.data.overview.spread import Spread
from teamvla.data.overview.survey import Group

_SLACK = 1e-4  # rad; float32 targets at a limit may lie this far beyond it
Interval = tuple[float, float]


@dataclass(frozen=True)
class JointRow:
    """What a joint did: ranges of its positions and actions, and its limits, rad.

    ``beyond`` says that an absolute action leaves the limits. ``None``: not known.
    """

    joint: str
    measured: Interval | None
    action: Interval | None
    limits: Interval | None
    beyond: bool


def share(part: int, whole: int) -> str:
    """``98.5 %``; 0 and 100 mean none and all. A dash of nothing."""
    if part in (0, whole):
        return ("100 %" if part else "0 %") if whole else "-"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.3g} %"


def duration(seconds: float) -> str:
    """``76.6 s``, ``12.3 min`` or ``4.5 h``."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """``12 kB``, ``5.4 MB`` or ``1.2 GB``."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def interval(ends: Interval | None) -> str:
    """``-1.20 .. 0.80``; a dash of nothing."""
    if ends is None:
        return "-"
    low, high = (f"{end + 0.0:.2f}" if abs(end) < 1e4 else f"{end:.3g}" for end in ends)
    return f"{_unsigned(low)} .. {_unsigned(high)}"


def _unsigned(number: str) -> str:
    return "0.00" if number == "-0.00" else number


def heading(group: Group, groups: tuple[Group, ...]) -> str:
    """The task; and which of its contracts, where it has several."""
    same = [one for one in groups if one.task == group.task]
    if len(same) == 1:
        return group.task
    return f"{group.task} ({same.index(group) + 1} of {len(same)} contracts)"


def contract_facts(group: Group) -> list[tuple[str, str]]:
    """What the contract says, in words."""
    contract = group.contract
    if contract is None:
        return [("contract", "none in these files")]
    actions = contract.action.replace("_", " ") if contract.arms else "no arms"
    arms = [f"{arm.name} ({arm.num_joints} joints)" for arm in contract.arms]
    cameras = [f"{one.field} {one.height} x {one.width}" for one in contract.cameras]
    return [
        ("contract", f"{contract.embodiment}, {contract.control_hz:g} Hz, {actions}"),
        ("arms", ", ".join(arms) or "none"),
        ("cameras", ", ".join(cameras) or "none"),
        *((f"{role}s", "; ".join(told)) for role, told in _signals(contract).items()),
    ]


def _signals(contract: Contract) -> dict[str, list[str]]:
    """The contract's signals in words, by role; no role without any."""
    told: dict[str, list[str]] = {}
    for signal in contract.signals:
        kind = str(signal).removeprefix(f"{signal.role} ")
        told.setdefault(signal.role, []).append(f"{signal.field} {kind}")
    return told


def joint_names(arm: Arm | None, count: int) -> list[str]:
    """Names of ``count`` joints: the contract's if it has as many, else ``joint 0`` ..."""
    names = list(arm.joint_names) if arm is not None else []
    return names if len(names) == count else [f"joint {index}" for index in range(count)]


def joint_limits(arm: Arm | None, count: int) -> list[Interval | None]:
    """Limits of ``count`` joints, rad; ``None`` where the contract gives none."""
    limits = (arm.joint_limits if arm is not None else None) or ()
    return [*limits] if len(limits) == count else [None] * count


def joint_rows(group: Group, arm: str) -> list[JointRow]:
    """One row per joint of an arm."""
    states, actions = group.spread(f"q_{arm}"), group.spread(f"action_{arm}")
    count = max((one.width for one in (states, actions) if one is not None), default=0)
    names, limits = joint_names(group.arm(arm), count), joint_limits(group.arm(arm), count)
    rows = []
    for index, (name, ends) in enumerate(zip(names, limits, strict=True)):
        measured, action = _range(states, index), _range(actions, index)
        beyond = not group.delta and _beyond(action, ends)
        rows.append(JointRow(name, measured, action, ends, beyond))
    return rows


def _range(spread: Spread | None, column: int) -> Interval | None:
    if spread is None or column >= spread.width or not spread.columns[column].count:
        return None
    return spread.columns[column].low, spread.columns[column].high


def _beyond(action: Interval | None, limits: Interval | None) -> bool:
    if action is None or limits is None:
        return False
    return action[0] < limits[0] - _SLACK or action[1] > limits[1] + _SLACK

"""The figures of a look at recordings, as SVG elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from teamvla.data.overview.samples import Sample
from teamvla.data.overview.spread import Spread
from teamvla.data.overview.survey import Group
from teamvla.data.overview.words import joint_limits, joint_names
from teamvla.page import BLUE, GREEN, ORANGE, RED, SOFT, new_figure, svg

_COLUMNS = 3
_MOST_JOINTS = 32
_LIMIT: dict[str, Any] = {"color": RED, "linewidth": 0.8, "alpha": 0.8}


def lengths(group: Group) -> str:
    """How long the episodes are, failures stacked on successes."""
    steps = [[t.steps for t in group.takes if t.success is kind] for kind in (True, False)]
    low, _, high = group.lengths
    edges = np.linspace(low - 0.5, high + 0.5, min(30, high - low + 1) + 1)
    with new_figure(5.6, 2.1) as figure:
        axes = figure.subplots()
        for kind, colour in ((0, GREEN), (1, RED)):
            label = ("success", "failure")[kind]
            counts, under = (np.histogram(steps[one], edges)[0] for one in (kind, 0))
            bottom = under * kind
            if counts.any():
                width = 0.92 * np.diff(edges)
                axes.bar(edges[:-1], counts, width, bottom, align="edge", color=colour, label=label)
        axes.set(xlabel="steps", ylabel="episodes")
        axes.grid(axis="x", visible=False)
        axes.yaxis.get_major_locator().set_params(integer=True)
        _legend(figure, axes)
        return svg(figure, f"Lengths of {group.episodes} episodes, {low} to {high} steps")


@dataclass(frozen=True)
class _Panel:
    """One small histogram: a column of what was measured, of what was commanded, or both."""

    title: str
    measured: Spread | None
    command: Spread | None
    column: int
    limits: tuple[float, float] | None = None


def _panels(group: Group, arm: str) -> Iterator[_Panel]:
    states, actions = group.spread(f"q_{arm}"), group.spread(f"action_{arm}")
    count = min(_MOST_JOINTS, (states or actions or Spread(0)).width)
    names, limits = joint_names(group.arm(arm), count), joint_limits(group.arm(arm), count)
    for index, (name, ends) in enumerate(zip(names, limits, strict=True)):
        yield _Panel(name, states, None if group.delta else actions, index, ends)
    if group.delta:  # steps and positions share no axis
        yield from (_Panel(f"Δ {name}", None, actions, i) for i, name in enumerate(names))
    grips = group.spread(f"grip_q_{arm}"), group.spread(f"grip_{arm}")
    if any(grips):
        yield _Panel("gripper", *grips, 0)


def distributions(group: Group, arm: str) -> str | None:
    """Histograms of an arm: each joint's position and target, and its gripper."""
    panels = list(_panels(group, arm))
    if not panels:
        return None
    rows = -(-len(panels) // _COLUMNS)
    with new_figure(5.6, 0.35 + 1.25 * rows) as figure:
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _bars(axes, panel.measured, panel.command, panel.column)
            _limits(axes, panel.limits, axes.axvline, axes.get_xlim())
            _title(axes, panel.title)
        for axes in grid:
            _bare(axes)
        _legend(figure, grid[0])
        return svg(figure, f"Histograms of positions and actions of arm {arm}")


def _bare(axes: Any) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(labelsize=7.5)
    if not axes.has_data():
        axes.set_axis_off()


def _bars(axes: Any, measured: Spread | None, command: Spread | None, column: int) -> None:
    for spread, label in ((measured, "measured"), (command, "action")):
        if spread is None or column >= spread.width or not spread.columns[column].count:
            continue
        edges, counts = spread.columns[column].histogram.bars()
        heights = counts / counts.max()
        if label == "measured":
            axes.stairs(heights, edges, fill=True, color=BLUE, alpha=0.45, label=label)
        else:
            axes.stairs(heights, edges, color=ORANGE, linewidth=1.1, label=label)
    axes.set_ylim(0, 1.08)


def traces(group: Group, sample: Sample, arm: str) -> str | None:
    """An arm's joints and gripper over the time of one episode, actions laid over."""
    states, actions = (sample.columns.get(f"{kind}_{arm}") for kind in ("q", "action"))
    states = states if states is not None and states.ndim == 2 else None
    targets = _targets(group, states, actions)
    joints = next((one.shape[1] for one in (states, targets) if one is not None), 0)
    joints = min(_MOST_JOINTS, joints)
    grips = {kind: sample.columns.get(f"{kind}_{arm}") for kind in ("grip_q", "grip")}
    rows = joints + any(one is not None for one in grips.values())
    if not rows:
        return None
    time = _time(group, sample.take.steps)
    names = [*joint_names(group.arm(arm), joints), "gripper"]
    with new_figure(5.6, 0.75 + 0.72 * rows) as figure:
        grid = figure.subplots(rows, 1, squeeze=False, sharex=True).ravel()
        for index, axes in enumerate(grid):
            gripper = index == joints
            measured = grips["grip_q"] if gripper else _column(states, index)
            command = grips["grip"] if gripper else _column(targets, index)
            _lines(axes, time, measured, command)
            limits = None if gripper else joint_limits(group.arm(arm), joints)[index]
            _window(axes, (measured, command), limits, gripper)
            _title(axes, names[index])
            axes.tick_params(labelsize=7.5)
        unit = "s" if group.contract is not None else "step"
        grid[-1].set_xlabel("time, s" if unit == "s" else unit)
        _legend(figure, grid[0])
        return svg(figure, f"Joints of arm {arm} in episode {sample.episode_id}")


def _targets(
    group: Group, states: np.ndarray | None, actions: np.ndarray | None
) -> np.ndarray | None:
    """Actions as joint positions, whatever the contract says they are."""
    if actions is None or actions.ndim != 2:
        return None
    if group.delta and states is not None and states.shape == actions.shape:
        return np.asarray(states + actions)
    return actions


def _time(group: Group, steps: int) -> np.ndarray:
    rate = group.contract.control_hz if group.contract is not None else 1.0
    return np.arange(steps) / rate


def _column(array: np.ndarray | None, index: int) -> np.ndarray | None:
    return None if array is None or index >= array.shape[1] else array[:, index]


def _lines(
    axes: Any, time: np.ndarray, measured: np.ndarray | None, command: np.ndarray | None
) -> None:
    for values, colour, label in ((measured, BLUE, "measured"), (command, ORANGE, "action")):
        if values is not None and values.shape == time.shape:
            finite = np.where(np.isfinite(values), values, np.nan)
            axes.plot(time, finite, color=colour, linewidth=1.1, label=label)
    axes.set_xlim(time[0], max(time[-1], time[0] + 1e-9))


def _window(
    axes: Any,
    values: tuple[np.ndarray | None, ...],
    limits: tuple[float, float] | None,
    gripper: bool,
) -> None:
    """Show what moves at a sensible size: at least 0.2 rad high, and limits that are near."""
    given = [one[np.isfinite(one)] for one in values if one is not None]
    shown = np.concatenate(given) if given else np.zeros(0)
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 0.0)
    low, high = (min(low, 0.0), max(high, 1.0)) if gripper else (low, high)
    room = max(0.12 * (high - low), (0.2 - (high - low)) / 2)
    axes.set_ylim(low - room, high + room)
    _limits(axes, limits, axes.axhline, (low - room, high + room))


def _limits(
    axes: Any, limits: tuple[float, float] | None, draw: Any, window: tuple[float, float]
) -> None:
    """Thin lines at those limits that lie in or near the window, which they may widen a little."""
    room = 0.25 * (window[1] - window[0])
    for limit in limits or ():
        if window[0] - room <= limit <= window[1] + room:
            draw(limit, **_LIMIT)


def _title(axes: Any, text: str) -> None:
    # Whoever wrote the contract may have meant no mathematics by a dollar sign.
    shown = text if len(text) <= 28 else f"{text[:27]}…"
    axes.set_title(shown, loc="left", pad=3, fontsize=8, color=SOFT, parse_math=False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        place = {"loc": "outside upper right", "ncols": 3, "fontsize": 8, "borderpad": 0}
        figure.legend(handles, labels, **place)

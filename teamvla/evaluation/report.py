"""One self-contained HTML page about a training: everything it shows is inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.evaluation.suites import Score
from teamvla.files import publish
from teamvla.page import BLUE, GREEN, ORANGE, embedded, new_figure, render_page, svg

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        scores: name -> score; the first is the policy and makes the headline.
        metrics: rows of metrics.jsonl.
        tables: heading -> facts.
        commands: how to do it by hand.
    """

    title: str
    lead: str
    note: str
    scores: dict[str, Score]
    metrics: Sequence[dict[str, Any]]
    contact_sheet: bytes
    animation: bytes
    tables: dict[str, Facts]
    commands: Sequence[str]


def write_report(path: Path, report: Report) -> Path:
    """Publish the page at ``path``."""
    page = render(report).encode("utf-8")
    return publish(path, lambda file: file.write(page), replace=True)


def render(report: Report) -> str:
    """The page as HTML."""
    return render_page(
        "evaluation/report.html.j2",
        title=report.title,
        lead=report.lead,
        note=report.note,
        scores=[_row(name, score) for name, score in report.scores.items()],
        animation=embedded("image/webp", report.animation),
        contact_sheet=embedded("image/png", report.contact_sheet),
        curves=training_curves(report.metrics),
        curves_caption="Left: loss on the training and the held-out episodes. "
        "Right: success in the rollouts that chose the checkpoint.",
        tables=list(report.tables.items()),
        commands=report.commands,
    )


def training_curves(metrics: Sequence[dict[str, Any]]) -> str:
    """Losses and rollout success over the training steps, as an SVG element."""
    rollouts = [row for row in metrics if row["split"] == "rollout"]
    with new_figure(9.2, 3.2) as figure:
        left, *right = figure.subplots(1, 1 + bool(rollouts), squeeze=False)[0]
        _plot_losses(left, metrics)
        for axes in right:
            _plot_rollouts(axes, rollouts)
        return svg(figure, "Losses and rollout success over the training steps")


def _plot_losses(axes: Any, metrics: Sequence[dict[str, Any]]) -> None:
    for split, colour, label in (("train", BLUE, "training"), ("val", ORANGE, "held out")):
        rows = [row for row in metrics if row["split"] == split]
        style = {"marker": "o", "markersize": 3} if split == "val" else {"linewidth": 1.2}
        if rows:
            steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
            axes.plot(steps, losses, color=colour, label=label, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    if axes.lines:
        axes.legend()


def _plot_rollouts(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    steps, rates = [row["step"] for row in rows], [100 * row["success_rate"] for row in rows]
    axes.plot(steps, rates, color=GREEN, marker="o")
    axes.set(xlabel="step", ylabel="success in rollouts, %", ylim=(-4, 104))


def _row(name: str, score: Score) -> dict[str, Any]:
    return {
        "name": name,
        "successes": score.successes,
        "episodes": score.episodes,
        "success_rate": score.success_rate,
        "interval": score.interval,
        "steps": score.mean_steps_to_success,
    }

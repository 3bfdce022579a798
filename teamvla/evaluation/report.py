"""One self-contained HTML page about a training: everything it shows is inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from teamvla.evaluation.suites import Score
from teamvla.files import publish

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
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    source = resources.files("teamvla.evaluation").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(source).render(
        title=report.title,
        lead=report.lead,
        note=report.note,
        scores=[_row(name, score) for name, score in report.scores.items()],
        animation=_embedded("image/webp", report.animation),
        contact_sheet=_embedded("image/png", report.contact_sheet),
        curves=Markup(training_curves(report.metrics)),
        curves_caption="Left: loss on the training and the held-out episodes. "
        "Right: success in the rollouts that chose the checkpoint.",
        tables=list(report.tables.items()),
        commands=report.commands,
    )


def training_curves(metrics: Sequence[dict[str, Any]]) -> str:
    """Losses and rollout success over the training steps, as an SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    rollouts = [row for row in metrics if row["split"] == "rollout"]
    left, *right = figure.subplots(1, 1 + bool(rollouts), squeeze=False)[0]
    for split, colour, label in (("train", "#2f6fb3", "training"), ("val", "#d9822b", "held out")):
        rows = [row for row in metrics if row["split"] == split]
        points = [(row["step"], row["loss"]) for row in rows]
        style = {"marker": "o", "markersize": 3} if split == "val" else {"linewidth": 1.2}
        left.plot(
            *zip(*points, strict=True), color=colour, label=label, **style
        ) if points else None
    left.set(xlabel="step", ylabel="loss", yscale="log")
    if left.lines:
        left.legend(frameon=False)
    for axes in right:
        _plot_rollouts(axes, rollouts)
    for axes in (left, *right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _plot_rollouts(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    steps, rates = [row["step"] for row in rows], [100 * row["success_rate"] for row in rows]
    axes.plot(steps, rates, color="#2e8b57", marker="o")
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


def _embedded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

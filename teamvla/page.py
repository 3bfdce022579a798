"""Self-contained HTML pages: one look for all of them, light or dark as the reader likes it.

Colours in figures are the light theme's; :func:`svg` turns them into the page's CSS
variables, so that a figure turns dark with its page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

INK, SOFT, LINE = "#1f2430", "#667085", "#e4e7ec"
BLUE, ORANGE, GREEN, RED = "#2f6fb3", "#d9822b", "#2e8b57", "#c83c3c"
_VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", BLUE: "mark", ORANGE: "warm", GREEN: "good", RED: "bad"
}  # fmt: skip
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "font.size": 9,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "teamvla",
    "text.color": INK,
    "xtick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.color": SOFT,
    "ytick.major.width": 0.6,
}


def render_page(template: str, **values: Any) -> str:
    """The page that a template below the package makes of ``values``, each of them escaped.

    Args:
        template: such as ``evaluation/report.html.j2``; it extends ``page.html.j2``.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_source),
    )
    return environment.get_template(template).render(**values)


def _source(name: str) -> str:
    return resources.files("teamvla").joinpath(name).read_text("utf-8")


def embedded(kind: str, content: bytes) -> str:
    """A file as the address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of the page's style, in inches; draw and save it inside the block."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg(figure: Any, label: str) -> str:
    """A figure as an SVG element; ``label`` says what it shows to who cannot see it."""
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[a-z0-9.]+_\d+"', "", text)  # would repeat from figure to figure
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))

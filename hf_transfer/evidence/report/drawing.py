"""Matplotlib figures as SVG that lives in a page: its colours are CSS variables, its text is text, its ids are its own."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_transfer.escaping import visible

WIDTH = 344
"""Pixels of a figure: what a phone 390 wide shows at 1:1."""
POINTS_AN_INCH = 72
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★")
"""The same markers as text, for legends."""
INK, MUTED, GRID, PAPER = "#f00001", "#f00002", "#f00003", "#f00004"
NUM_COLOURS = 8
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper"}
VARIABLES |= {f"#f001{index:02x}": f"arm-{index}" for index in range(NUM_COLOURS + 1)}
"""Placeholder colours of the drawing -> CSS variables of the page."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.05,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
}


@dataclass(frozen=True)
class Chart:
    """A drawing, with what it shows in words."""

    title: str
    svg: str


def arm_colour(index: int | None) -> str:
    """Give the placeholder of an arm's colour; None = the baseline, which is grey."""
    return f"#f001{NUM_COLOURS if index is None else index % NUM_COLOURS:02x}"


def variable_of(colour: str) -> str:
    """Give the CSS variable that stands for a placeholder."""
    return VARIABLES[colour]


@contextmanager
def drawing(height: float) -> Iterator[tuple[Figure, Axes]]:
    """Lend a figure of one plot, so many pixels high; it and all in it must be drawn inside."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively", category=UserWarning)
        figure = Figure(figsize=(WIDTH / POINTS_AN_INCH, height / POINTS_AN_INCH), dpi=POINTS_AN_INCH, layout="constrained")
        yield figure, figure.subplots()


def finish(figure: Figure, key: str, title: str, words: Sequence[str]) -> Chart:
    """Write a figure as SVG.

    Args:
        figure: What was drawn.
        key: What begins each of its ids.
        title: Of the chart.
        words: What it shows, for those who cannot see it.
    """
    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    body = visible(written.getvalue())
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub(r"\bid=\"", f'id="{key}-', body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{key}-", body)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    width, height = figure.get_size_inches() * POINTS_AN_INCH
    label = escape(visible(f"{title}. {'; '.join(words)}"))
    opening = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{label}">'
    return Chart(title, opening + body[: body.rindex("</svg>")] + "</svg>")

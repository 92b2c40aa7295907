"""Style shared by all figures, and how a figure becomes SVG for the page or a file.

Series have Okabe and Ito's colours, told apart by colour-blind readers, and different markers and dashes for grey
print. Ink and paper are placeholders: on the page they become the page's own colours, in a file black and white.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from diagnostics.figures.svg import FAINT, INK, PAPER, element

if TYPE_CHECKING:
    from diagnostics.report import MergeReport, Report

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
TERM_STYLES: Mapping[str, tuple[str, str]] = {
    "experts' own risk": (BLUE, ""),
    "kernel-weighted noise": (SKY, "///"),
    "complexity": (ORANGE, ""),
    "Poincaré flatness": (YELLOW, "..."),
    "heterogeneity": (VERMILION, "\\\\\\"),
    "consensus gap": (PURPLE, "xxx"),
    "Bregman gain": (GREEN, "---"),
    "transfer error": ("#9a9a9a", "|||"),
}
"""Colour and hatching of the terms of (5) and (7)."""
READING_STYLES: Mapping[str, tuple[str, str, str]] = {
    "assumed-linear": (ORANGE, "s", "--"),
    "linearised": (BLUE, "^", "-."),
    "corrected": (VERMILION, "o", "-"),
}
"""Colour, marker and dashes of the readings."""
WIDTH = 6.2
"""Width of every figure in inches: two fit a page of print, one a phone."""
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mergebound",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
Drawing = Callable[["Report", "MergeReport"], Figure]


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of the report's width."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_below(figure: Figure, axes: Any, columns: int = 3) -> None:
    """Put the legend of ``axes`` under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def draw_figure(name: str, label: str, report: Report, merge: MergeReport) -> tuple[str, str]:
    """Draw one figure of the report; return (SVG with placeholder colours, PNG in base 64).

    Raises:
        KeyError: no figure of that name.
    """
    from diagnostics.figures.curves import certified, controls, ladder, sweep
    from diagnostics.figures.tables import cross_risk, flatness, kernel, terms

    drawings: Mapping[str, Drawing] = {
        "terms": terms,
        "cross_risk": cross_risk,
        "flatness": flatness,
        "kernel": kernel,
        "ladder": ladder,
        "certificates": certified,
        "sweep": sweep,
        "controls": controls,
    }
    return as_images(partial(drawings[name], report, merge), label)


def as_images(draw: Callable[[], Figure], name: str) -> tuple[str, str]:
    """Draw in the report's style; return an SVG element with placeholder colours, and a PNG on white in base 64."""
    vector, pixels = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure = draw()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.set_layout_engine("none")  # the layout is there already
        figure.savefig(pixels, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return element(vector.getvalue(), name), base64.b64encode(pixels.getvalue()).decode()


__all__ = [
    "FAINT",
    "INK",
    "PAPER",
    "READING_STYLES",
    "TERM_STYLES",
    "as_images",
    "draw_figure",
    "legend_below",
    "new_figure",
]

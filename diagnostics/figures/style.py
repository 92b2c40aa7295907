"""Style shared by all figures, and how a figure becomes SVG for the page or a file.

Series have Okabe and Ito's hues, told apart by colour-blind readers, dark enough for a mark on white and light enough
for one on a dark page (contrast 3 against both), and different markers and dashes for grey print. Ink and paper are
placeholders: on the page they become the page's own colours, in a file black and white.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from bounds.theorems import KINDS
from diagnostics.figures.notation import in_unicode
from diagnostics.figures.svg import FAINT, INK, Drawing, element

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#B87A00",
    "#009E73",
    "#C43E00",
    "#BF62A0",
    "#3A93CB",
    "#8F8200",
)
PALETTE: Mapping[str, str] = {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "vermilion": VERMILION,
    "purple": PURPLE,
    "sky": SKY,
    "yellow": YELLOW,
}
"""The names by which ``bounds.theorems.terms`` speaks of colours."""
TERM_STYLES: Mapping[str, tuple[str, str]] = {
    kind.name: (PALETTE.get(kind.colour, kind.colour), kind.hatch) for kind in KINDS
}
"""Colour and hatching of every term, by its name."""
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


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of the report's width."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_below(figure: Figure, axes: Any, columns: int = 3) -> None:
    """Put the legend of ``axes`` under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def task_axis(axes: Any, tasks: Sequence[str], *, shown: bool) -> None:
    """Put the tasks under the axis, named or not."""
    axes.set_xticks(range(len(tasks)), [named(task) for task in tasks] if shown else [], rotation=30, ha="right")


def short(block: str) -> str:
    """Return a block's name as figures show it."""
    return named(block.replace("transformer.resblocks.", "layer "), 40)


def named(name: str, most: int = 28) -> str:
    """Return a name as a label of a figure: printable, one line, no mathematics, at most ``most`` characters."""
    shown = "".join(c if c.isprintable() else " " for c in name)
    return (shown if len(shown) <= most else f"{shown[: most - 1]}…").replace("$", r"\$")


def readable_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast on a colour (r, g, b in 0..1; WCAG's luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if (luminance + 0.05) ** 2 < 0.05 * 1.05 else "#000000"


def as_images(draw: Callable[[], Figure], name: str) -> Drawing:
    """Draw in the report's style: an SVG element with placeholder colours, and a PNG on white in base 64."""
    vector, pixels = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the SVG has the text itself
        figure = draw()
        for text in figure.findobj(Text):
            text.set_text(in_unicode(text.get_text()))  # names are labels of ticks, which are made anew and stay
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.set_layout_engine("none")  # the layout is there already
        figure.savefig(pixels, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Drawing(element(vector.getvalue(), name), base64.b64encode(pixels.getvalue()).decode())

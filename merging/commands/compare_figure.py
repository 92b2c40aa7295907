"""Figure of a comparison: what every row is ranked by, with its standard error, best first."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from merging.commands.compare_columns import OF_EXAMPLES, Columns
from merging.commands.compare_rows import Row
from merging.methods import METHODS, needs_of

KINDS: Mapping[str, tuple[str, str]] = {
    "no data": ("#0072B2", "o"),
    "data, no gradient": ("#E69F00", "s"),
    "gradients": ("#009E73", "^"),
    "reference": ("#555555", "D"),
}
"""What a row uses -> colour (told apart by colour-blind readers too) and marker."""
BEST = "filled: the best merge, and those not told\napart from it (less than 2 standard errors)"
_STYLE: dict[Any, Any] = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mergebound"}
_WIDTH = 5.0
"""In inches: a phone shows it without making the text too small to read."""
_LABEL = 28
"""Longest line of a label, in characters."""


def draw(rows: Sequence[Row], suite: str, columns: Columns = OF_EXAMPLES) -> dict[str, bytes]:
    """Return the figure of rows, best first, as ``svg`` and ``png``."""
    images = {}
    with matplotlib.rc_context(_STYLE):
        figure = _figure(rows, suite, columns)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            images[suffix] = buffer.getvalue()
    return images


def kind_of(row: Row) -> str:
    """Return what a row uses, a key of KINDS."""
    if row.method not in METHODS:
        return "reference"
    if row.passes:
        return "gradients"
    return "data, no gradient" if needs_of(row.method, row.settings, row.then) else "no data"


def _figure(rows: Sequence[Row], suite: str, columns: Columns = OF_EXAMPLES) -> Figure:
    labels = [textwrap.wrap(row.label.replace(",", ", ").replace("$", r"\$"), _LABEL) for row in rows]
    ends = list(itertools.accumulate(map(len, labels)))  # in lines of text from the top
    places = [end - len(label) / 2 for end, label in zip(ends, labels, strict=True)]
    figure = Figure(figsize=(_WIDTH, 0.18 * ends[-1] + 1.8), layout="constrained")
    axes = figure.add_subplot()
    for name in KINDS:
        chosen = [(place, row) for place, row in zip(places, rows, strict=True) if kind_of(row) == name]
        _points(axes, chosen, KINDS[name], name, columns.factor)
    for row in rows:
        if row.method not in METHODS:
            axes.axvline(columns.factor * _mean(row), color="#aaaaaa", linestyle=":", linewidth=0.8, zorder=0)
    axes.set_yticks(places, ["\n".join(label) for label in labels], fontsize=8)
    axes.set_ylim(ends[-1] + 0.3, -0.3)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, [_written(row, columns) for row in rows], fontsize=8)
    beside.tick_params(length=0)
    axes.grid(axis="y", alpha=0.25, linewidth=0.5)
    axes.set_xlabel(f"{columns.axis}\n± standard error (test examples and seeds)")
    axes.set_title(f"merges of {suite}".replace("$", r"\$"), fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, title=BEST, title_fontsize=8)
    return figure


def _points(axes: Any, rows: Sequence[tuple[float, Row]], look: tuple[str, str], name: str, factor: float) -> None:
    """Draw rows of a kind, filled or hollow, with one entry in the legend."""
    colour, marker = look
    for i, (place, row) in enumerate(rows):
        filled = row.is_best or row.is_near_best
        error = 0.0 if row.sampled is None else row.sampled.stderr
        axes.errorbar(
            factor * _mean(row),
            place,
            xerr=abs(factor) * error if error < 1 else None,
            color=colour,
            marker=marker,
            markerfacecolor=colour if filled else "white",
            markersize=4.5,
            linestyle="none",
            elinewidth=1.2,
            label=name if i == 0 else None,
        )


def _written(row: Row, columns: Columns) -> str:
    """Return the figure that a row is ranked by, as beside its point."""
    factor = columns.factor
    return f"{factor * _mean(row):.{1 if factor == 100 else 3}f}"


def _mean(row: Row) -> float:
    assert row.mean is not None
    return row.mean.value

"""Figure of a comparison: mean accuracy against the wall time of the merge."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from merging.commands.evaluation import mean
from merging.commands.measure import Measurement
from merging.methods import METHODS

KINDS: Mapping[str, tuple[str, str]] = {
    "no data": ("#0072B2", "o"),
    "data, no gradient": ("#E69F00", "s"),
    "gradients": ("#009E73", "^"),
}
"""What a method uses -> colour (told apart by colour-blind readers too) and marker."""
_STYLE: dict[Any, Any] = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mergebound"}


def draw(rows: Sequence[Measurement], suite: str) -> dict[str, bytes]:
    """Return the figure as ``svg`` and ``png``."""
    images = {}
    with matplotlib.rc_context(_STYLE):
        figure = _figure(rows, suite)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            images[suffix] = buffer.getvalue()
    return images


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart until neighbours are ``gap`` away, keeping each group centred on where it was."""
    groups: list[tuple[float, int]] = []  # centre and size of runs of labels that touch
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (right, m), (left, n) = groups.pop(), groups.pop()
            groups.append(((right * m + left * n) / (m + n), m + n))
    return [centre + gap * (i - (size - 1) / 2) for centre, size in groups for i in range(size)]


def _kind(row: Measurement) -> str:
    if row.passes:
        return "gradients"
    method = METHODS[row.method]
    return "data, no gradient" if method.needs_of(method.settings(**row.settings)) else "no data"


def _figure(rows: Sequence[Measurement], suite: str) -> Figure:
    merges = sorted((row for row in rows if row.method in METHODS), key=lambda row: mean(row.accuracy))
    heights = [100 * mean(row.accuracy) for row in merges]
    times = [max(row.seconds or 0.0, 1e-3) for row in merges]
    figure = Figure(figsize=(7.5, max(4.0, 0.2 * len(merges) + 1.6)), layout="constrained")
    axes = figure.add_subplot()
    for kind, (colour, marker) in KINDS.items():
        index = [i for i, row in enumerate(merges) if _kind(row) == kind]
        if index:
            axes.scatter([times[i] for i in index], [heights[i] for i in index], c=colour, marker=marker, label=kind)
    for row in rows:
        if row.method not in METHODS:
            height = 100 * mean(row.accuracy)
            line, side = (":", "top") if row.method == "pretrained" else ("--", "bottom")
            axes.axhline(height, color="#555555", linestyle=line, linewidth=1)
            axes.annotate(row.label, (0.01, height), xycoords=("axes fraction", "data"), va=side, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("wall time of the merge (s)")
    axes.set_ylabel("mean test accuracy (%)")
    axes.set_title(f"merges of {suite}".replace("$", r"\$"), fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.5)
    low, high = axes.get_ylim()
    places = spread([(height - low) / (high - low) for height in heights], 1 / (4.2 * figure.get_figheight()))
    for row, time, height, place in zip(merges, times, heights, places, strict=True):
        axes.annotate(
            row.label,
            (time, height),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1},
        )
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure

"""Many series in one figure: told apart by colour, marker and dashes, and named at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from diagnostics.figures.svg import FAINT

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
_MARKERS = "os^Dvx*P"
_DASHES = ("-", "--", "-.", ":")


def series(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of one of many series; no two of the first 24 are alike in all three."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]], size: float = 7.5) -> None:
    """Write a series' name beside its last point; names that would overlap are moved apart.

    Call it when the limits and scales of the axes are final.

    Args:
        axes: where the series are.
        ends: x and y of each last point, the name, its colour.
        size: of the letters, in points.
    """
    axes.get_xlim()  # limits are fitted to the data when they are asked for
    axes.get_ylim()
    figure = axes.figure
    height = axes.get_position().height * figure.get_size_inches()[1] * 72
    step = 1.15 * size / height
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(((float(to_axes.transform((x, y))[1]), x, y, name, colour) for x, y, name, colour in ends))
    heights = spaced([min(max(p[0], 0.0), 1.0) for p in placed], step)
    right = max(x for x, *_ in ends)
    edge = float(to_axes.transform((right, placed[0][2]))[0])
    for at, (own, x, y, name, colour) in zip(heights, placed, strict=True):
        start = float(to_axes.transform((x, y))[0])
        axes.plot([start, edge + 0.03], [own, at], transform=axes.transAxes, color=FAINT, linewidth=0.5, clip_on=False)
        axes.text(edge + 0.035, at, name, transform=axes.transAxes, color=colour, fontsize=size, va="center")


def spaced(values: Sequence[float], step: float) -> list[float]:
    """Return increasing values moved apart to at least ``step``, as little as a pass up and a pass down can do."""
    found = list(values)
    for k in range(1, len(found)):
        found[k] = max(found[k], found[k - 1] + step)
    excess = max(0.0, found[-1] - max(1.0, values[-1])) if found else 0.0
    if excess:
        found[-1] -= excess
        for k in range(len(found) - 2, -1, -1):
            found[k] = min(found[k], found[k + 1] - step)
    return found

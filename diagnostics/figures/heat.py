"""Heat maps: cells with their numbers, coloured within each row or over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diagnostics.figures import style

NUMBERED = 12
"""Most rows for which numbers are written into the cells: more have no room."""


def heat(
    axes: Any,
    values: Sequence[Sequence[float]],
    cmap: str,
    texts: Sequence[Sequence[str]] | None,
    *,
    scale: str,
    size: float = 7,
) -> None:
    """Draw cells.

    Args:
        axes: matplotlib's.
        values: [rows, columns].
        cmap: name of a colour map.
        texts: what is written into the cells; None: nothing.
        scale: what the colours of a cell compare it with. "signed rows": each row from minus to plus its largest
            magnitude; "rows": each row from its least to its largest value; "signed": -1 to 1; "share": 0 to 1.
        size: of the texts, in points.
    """
    import numpy as np

    array = np.array(values, dtype=float)
    if scale == "signed rows":
        array = array / np.maximum(np.abs(array).max(axis=1, keepdims=True), 1e-12)
    elif scale == "rows":
        low = array.min(axis=1, keepdims=True)
        array = (array - low) / np.maximum(array.max(axis=1, keepdims=True) - low, 1e-12)
    image = axes.pcolormesh(
        np.arange(array.shape[1]),
        np.arange(array.shape[0]),
        array,
        cmap=cmap,
        shading="nearest",
        vmin=-1.0 if scale.startswith("signed") else 0.0,
        vmax=1.0,
    )
    for i, row in enumerate(texts or ()):
        for j, text in enumerate(row):
            colour = style.readable_on(image.cmap(image.norm(array[i, j])))
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour, linespacing=0.95)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def name_axes(
    axes: Any, rows: Sequence[str], columns: Sequence[str], at: Sequence[int] | None = None, size: float = 8
) -> None:
    """Name every row, and the columns at these places (all, without them)."""
    axes.set_yticks(range(len(rows)), map(style.named, rows), fontsize=size)
    places = range(len(columns)) if at is None else at
    axes.set_xticks(places, map(style.named, columns), rotation=40, ha="right", fontsize=size - (at is not None))

"""Figures of the diagnosis: heat maps of what leaving an expert out changes, of λ, and of the task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from diagnostics.diagnosis import CoefficientMap, Diagnosis
from diagnostics.figures.numbers import fixed, points
from diagnostics.sections.base import View
from merging.task_vectors import Geometry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELLED = 16
"""Most columns that are named one by one."""


class Weighed(Protocol):
    """A section that has the coefficients of a merge and the geometry of the task vectors."""

    @property
    def coefficients(self) -> CoefficientMap | None:
        """λ, where the merge has some."""
        ...

    @property
    def vectors(self) -> Geometry:
        """Norms, cosines, signs."""
        ...


def without(view: View, part: Diagnosis) -> Figure:
    """Heat map: row the task, column the expert left out, by how many points the task's accuracy changes."""
    from diagnostics.figures import heat, style

    count = len(view.tasks)
    figure = style.new_figure(1.9 + 0.46 * count)
    axes = figure.subplots()
    cells = [[change.tasks[task] for change in part.without] for task in range(count)]
    texts = [[points(cell).replace(" ", "\n", 1).replace("± ", "±") for cell in row] for row in cells]
    shown = texts if count <= heat.NUMBERED else None
    heat.heat(axes, [[cell.value for cell in row] for row in cells], "RdBu_r", shown, scale="signed rows")
    heat.name_axes(axes, view.tasks, view.tasks)
    axes.set_xlabel("expert left out")
    n = f"{min(part.examples)} to {max(part.examples)}" if len(set(part.examples)) > 1 else f"{part.examples[0]}"
    axes.set_title(
        f"change of accuracy (points), n = {n} {part.split} examples per task\n"
        "red: the expert hurts the task; blue: it helps; each row has its own scale",
        loc="left",
        fontsize=8,
    )
    return figure


def is_map(part: Weighed) -> bool:
    """Whether λ has more than one block: one number per task is said in words."""
    return part.coefficients is not None and len(part.coefficients.blocks) > 1


def coefficients(view: View, part: Weighed) -> Figure:
    """Heat map of λ (row the task, column the block in order of depth); below, the loss while it was learned."""
    from diagnostics.figures import heat, style

    found, count = part.coefficients, len(view.tasks)
    assert found is not None
    history = len(found.loss) > 1
    figure = style.new_figure(1.5 + 0.3 * count + (1.3 if history else 0))
    axes, *below = figure.subplots(
        1 + history, 1, squeeze=False, gridspec_kw={"height_ratios": [0.5 + 0.3 * count, 1.1][: 1 + history]}
    )[:, 0]
    few = len(found.blocks) <= LABELLED
    texts = [[fixed(value, 2) for value in row] for row in found.values] if few else None
    heat.heat(axes, found.values, "PuOr_r", texts, scale="signed rows")
    ticks = range(0, len(found.blocks), 1 if few else len(found.blocks) // 8)
    heat.name_axes(
        axes, view.tasks, [found.blocks[i].replace("transformer.resblocks.", "layer ") for i in ticks], ticks
    )
    ranges = axes.twinx()
    ranges.set_ylim(axes.get_ylim())
    spans = [f"{fixed(min(values), 2)} to {fixed(max(values), 2)}" for values in found.values]
    ranges.set_yticks(range(count), spans, fontsize=7)
    ranges.tick_params(length=0)
    ranges.spines[:].set_visible(False)
    axes.set_title("λ, blocks in order of depth; each row has its own scale (its range: right)", loc="left", fontsize=8)
    for panel in below:
        panel.plot(found.steps, found.loss, color=style.BLUE)
        panel.set_xlabel("step of learning")
        panel.set_ylabel("loss")
    return figure


def task_vectors(view: View, part: Weighed) -> Figure:
    """Heat maps of the cosines of task vectors and of the share of entries on which two of them have opposite signs."""
    from diagnostics.figures import heat, style

    count, vectors = len(view.tasks), part.vectors
    figure = style.new_figure(2.4 + 0.24 * count)
    left, right = figure.subplots(1, 2)
    off = [value for i, row in enumerate(vectors.cosines) for j, value in enumerate(row) if i != j]
    top = max((abs(value) for value in off), default=1.0) or 1.0
    shown = [[0.0 if i == j else value / top for j, value in enumerate(row)] for i, row in enumerate(vectors.cosines)]
    for axes, values, cmap, cells, title, scale in (
        (left, shown, "RdBu", vectors.cosines, "cosine", "signed"),
        (right, vectors.conflicts, "Oranges", vectors.conflicts, "share of opposite signs", "share"),
    ):
        texts = [
            ["" if i == j else f"{v:.2f}".replace("0.", ".") for j, v in enumerate(row)] for i, row in enumerate(cells)
        ]
        heat.heat(axes, values, cmap, texts if count <= heat.NUMBERED else None, scale=scale, size=6.5)
        heat.name_axes(axes, view.tasks, view.tasks, size=7)
        axes.set_title(title, loc="left")
    right.set_yticks([])
    return figure

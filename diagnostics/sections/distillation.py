"""The ladder (8): what imitating the teachers leaves, per task and in total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bounds.distillation import Rung, ladder_of
from bounds.types import Estimate
from diagnostics.figures.numbers import shown
from diagnostics.figures.svg import INK
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.subject import Subject
from diagnostics.workspace import Scored, Workspace
from merging.commands import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RungRow:
    """One rung: a value per task and in total, in units of the 0-1 cost (KL: nats)."""

    name: str
    per_task: tuple[Estimate, ...]
    total: Estimate


@dataclass(frozen=True, kw_only=True)
class DistillationSection:
    """Upper bounds on what the merge adds to its teachers' 0-1 risk, tightest first, then KL and disagreement.

    Where every position has scores (``scored``), values are means over examples of each example's mean over the
    positions that count, after prefixes from the data: (23).
    """

    scored: Scored
    cost_bound: float
    surrogate_temperature: float
    rungs: tuple[RungRow, ...]
    divergence: RungRow
    disagreement: RungRow
    surrogate: RungRow


def compute(workspace: Workspace, subject: Subject) -> DistillationSection:
    """Compare merge and experts on the whole test split; no labels enter."""
    temperature = subject.artifact.settings.get("temperature", 1.0)
    result = ladder_of(workspace.imitation(subject), workspace.alpha, surrogate_temperature=temperature)
    return DistillationSection(
        scored=workspace.scored,
        cost_bound=result.cost_bound,
        surrogate_temperature=result.surrogate_temperature,
        rungs=tuple(_row(r) for r in result.rungs),
        divergence=_row(result.divergence),
        disagreement=_row(result.disagreement),
        surrogate=_row(result.surrogate),
    )


def _row(rung: Rung) -> RungRow:
    return RungRow(rung.name, rung.per_task, rung.total)


def table(view: View, part: DistillationSection) -> Table:
    """Return the rungs, a row per task and one for all."""
    table = Table(
        title=plain(f"{view.label}: ladder (8), what the merge adds to its teachers' 0-1 risk, at most", "table.title")
    )
    other = (part.divergence, part.disagreement) if part.scored == "position" else ()  # else: `label_free` has them
    rungs = (*part.rungs, *other)
    table.add_column("task")
    for rung in rungs:
        table.add_column(rung.name, justify="right")
    for index, name in enumerate(view.tasks):
        table.add_row(plain(name), *(shown(rung.per_task[index]) for rung in rungs))
    table.add_section()
    table.add_row("all tasks", *(shown(rung.total) for rung in rungs))
    return table


def figure(view: View, part: DistillationSection) -> Figure:
    """Rungs of (8) per task: what each inequality costs."""
    from diagnostics.figures import style

    figure = style.new_figure(3.5)
    axes = figure.subplots()
    rungs: dict[str, Any] = {r.name: r for r in (*part.rungs, part.disagreement)}
    styles = {
        "disagreement": (INK, "x"),
        "total variation": (style.BLUE, "o"),
        "Pinsker": (style.ORANGE, "s"),
        "Bretagnolle-Huber": (style.GREEN, "^"),
    }
    names = [*map(style.named, view.tasks), "all tasks"]
    for shift, (name, (colour, marker)) in enumerate(styles.items()):
        values = [*rungs[name].per_task, rungs[name].total]
        at = [k + 0.13 * (shift - 1.5) for k in range(len(values))]
        axes.errorbar(
            at, [v.value for v in values], yerr=[2 * v.stderr for v in values], color=colour, marker=marker,
            markersize=4.5, linestyle="", capsize=2, label=name,
        )  # fmt: skip
    sizes = sorted({e.n for e in part.disagreement.per_task})
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylim(0, None)
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    axes.set_ylabel(f"added 0-1 risk, at most (± 2 s.e.)\nn = {n} test examples")
    style.legend_below(figure, axes, 4)
    return figure


SECTION = Section(
    kind=DistillationSection,
    compute=compute,
    title="Distillation ladder",
    link="ladder",
    how=("8",),
    table=table,
    figures={"ladder": Drawn(figure)},
)

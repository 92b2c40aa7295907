"""The cross-risk R_ij = L_i(Q_j) and H_Q of (1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from bounds.heterogeneity import heterogeneity
from bounds.types import Estimate
from diagnostics.figures.numbers import shown
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CrossRiskTable:
    """R_ij in nats: row i the task, column j the expert's posterior; standard errors; examples m_i; H_Q(α, β)."""

    risk: tuple[tuple[float, ...], ...]
    stderr: tuple[tuple[float, ...], ...]
    examples: tuple[int, ...]
    heterogeneity: Estimate


@dataclass(frozen=True)
class HeterogeneitySection:
    """One table per reading: ``linearised`` posteriors in f^lin, ``assumed-linear`` the same sampled in the network."""

    readings: Mapping[str, CrossRiskTable]


def compute(workspace: Workspace, subject: Subject) -> HeterogeneitySection:
    """Collect the tables; they do not depend on the merge."""
    side = workspace.experts.on_reported()
    tables = {}
    for reading, anchors in (("linearised", side.linear), ("assumed-linear", side.assumed)):
        cross = anchors.cross
        tables[reading] = CrossRiskTable(
            tuple(map(tuple, cross.risk.tolist())),
            tuple(map(tuple, cross.stderr.tolist())),
            cross.sizes,
            heterogeneity(cross, workspace.alpha, workspace.beta),
        )
    return HeterogeneitySection(tables)


def table(view: View, part: HeterogeneitySection) -> Table:
    """H_Q and the experts' own risk, a row per reading."""
    table = Table(title="Heterogeneity H_Q (1), nats")
    table.add_column("reading")
    table.add_column("H_Q", justify="right")
    table.add_column("own risk, mean of R_jj", justify="right")
    for reading, cross in part.readings.items():
        own = sum(row[i] for i, row in enumerate(cross.risk)) / len(cross.risk)
        table.add_row(reading, shown(cross.heterogeneity), f"{own:.3f}")
    return table


def figure(view: View, part: HeterogeneitySection) -> Figure:
    """Heat map of R_ij, the risk on task i of expert j's posterior, in f^lin; colours compare within a row."""
    from diagnostics.figures import heat, style

    table, count = part.readings["linearised"], len(view.tasks)
    figure = style.new_figure(1.7 + 0.42 * count)
    axes = figure.subplots()
    texts = [[f"{value:.2f}" for value in row] for row in table.risk] if count <= heat.NUMBERED else None
    heat.heat(axes, table.risk, "cividis", texts, scale="rows", size=8)
    heat.name_axes(axes, view.tasks, view.tasks)
    axes.set_xlabel("posterior of expert j")
    axes.set_ylabel("task i")
    axes.set_title(
        f"R_ij (nats), n = {min(table.examples)} per task\ndark: the row's least risk; light: its largest",
        loc="left",
        fontsize=8,
    )
    return figure


SECTION = Section(
    kind=HeterogeneitySection,
    compute=compute,
    title="Cross-risk and heterogeneity",
    link="cross-risk",
    how=("1",),
    table=table,
    figures={"cross_risk": Drawn(figure, once=True)},  # the cross-risk is the experts': one for all merges
    scored={"example"},
    rests_on="H_Q is measured on posteriors whose scores are drawn as for (5)",
)

"""The coefficients of a merge and how the task vectors lie to one another, where there is no diagnosis to say it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from diagnostics.diagnosis import CoefficientMap, coefficient_map
from diagnostics.figures.numbers import fixed, number, percent
from diagnostics.sections import diagnosis_figures
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm
from merging.task_vectors import Geometry


@dataclass(frozen=True)
class GeometrySection:
    """λ (None where the merge is not made of coefficients), the task vectors' geometry, ‖θ_m - θ_0‖. Exact."""

    coefficients: CoefficientMap | None
    vectors: Geometry
    distance: float


def compute(workspace: Workspace, subject: Subject) -> GeometrySection:
    """Measure weights alone; no example is looked at."""
    return GeometrySection(
        coefficients=coefficient_map(subject.artifact, list(workspace.vectors.base)),
        vectors=Geometry.of(workspace.vectors),
        distance=norm(workspace.displacement(subject)),
    )


def table(view: View, part: GeometrySection) -> Table:
    """Return a row per expert."""
    title = f"{view.label}: coefficients and task vectors, ‖θ_m − θ_0‖ = {number(part.distance)}"
    table = Table(title=plain(title, "table.title"))
    table.add_column("expert")
    for column in ("‖τ‖", "λ, mean", "λ, least to largest", "largest cosine to another"):
        table.add_column(column, justify="right")
    for index, name in enumerate(view.tasks):
        others = [value for j, value in enumerate(part.vectors.cosines[index]) if j != index]
        values = part.coefficients.values[index] if part.coefficients else ()
        mean = fixed(sum(values) / len(values)) if values else "–"
        span = f"{fixed(min(values))} to {fixed(max(values))}" if values else "–"
        cosine = fixed(max(others)) if others else "–"
        table.add_row(plain(name), number(part.vectors.norms[index]), mean, span, cosine)
    table.caption = f"opposite signs of two task vectors at {percent(part.vectors.any_conflict)} % of all entries"
    return table


SECTION = Section(
    kind=GeometrySection,
    compute=compute,
    title="Coefficients and task vectors",
    link="coefficients",
    table=table,
    figures={
        "lambda": Drawn(diagnosis_figures.coefficients, there=diagnosis_figures.is_map),
        "geometry": Drawn(diagnosis_figures.task_vectors, once=True),
    },
    scored={"position"},
)

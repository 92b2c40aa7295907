"""The bound (5) on the risk of the merge in its three readings, with the experts' side it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from bounds.theorems import READINGS, AnchorStatistics, Experts, vertices
from bounds.types import Bound, Estimate, Status
from diagnostics.figures.numbers import shown
from diagnostics.figures.svg import FAINT, INK, PAPER
from diagnostics.sections.accuracy import Accuracy
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class TermRow:
    """One summand of a bound; ``share`` is its value over the sum of all absolute values."""

    symbol: str
    name: str
    equation: str
    estimate: Estimate
    per_task: tuple[Estimate, ...]
    note: str
    share: float


@dataclass(frozen=True, kw_only=True)
class ReadingRow:
    """One reading of the bound: its value (nats), the status of its worst term, its terms."""

    name: str
    reading: str
    value: float
    stderr: float
    status: Status
    vacuous: bool
    delta: float
    assumptions: tuple[str, ...]
    terms: tuple[TermRow, ...]


@dataclass(frozen=True, kw_only=True)
class ExpertRow:
    """One expert in one reading: posterior (η, σ per block, KL in nats), own risk, κ̂ per block, C, E‖∇_b ℓ‖²."""

    own_risk: Estimate
    n: int
    distance: float
    displacement_sq: tuple[float, ...]
    kernel: tuple[Estimate, ...]
    gradient: tuple[Estimate, ...]
    sigma: tuple[float, ...]
    eta: float
    qsb: Estimate
    kl: float


@dataclass(frozen=True, kw_only=True)
class BoundSection:
    """Bound (5), and (5) + (7), at θ_m. ``vertices`` are the c_j of section 5 (linearised, without the gain)."""

    readings: tuple[ReadingRow, ...]
    trivial_risk: float
    distance: float
    blocks: tuple[str, ...]
    experts: Mapping[str, tuple[ExpertRow, ...]]
    log_price: float
    vertices: tuple[Estimate, ...]


def compute(workspace: Workspace, subject: Subject) -> BoundSection:
    """Evaluate the readings at θ_m."""
    displacement = workspace.displacement(subject)
    bounds, _ = workspace.at_merge(subject)
    side, vectors = workspace.experts, workspace.vectors
    distances = [norm(delta) for delta in vectors.deltas]
    return BoundSection(
        readings=tuple(map(reading_row, bounds)),
        trivial_risk=workspace.trivial_risk,
        distance=norm(displacement),
        blocks=tuple(workspace.blocks),
        experts={
            "assumed-linear": _experts(side.assumed, distances),
            "linearised": _experts(side.linear, distances),
        },
        log_price=side.linear.prices(side.delta)[0],
        vertices=vertices(bounds[READINGS.index("linearised")]),
    )


def reading_row(bound: Bound) -> ReadingRow:
    """Return a bound as the report keeps it."""
    terms = tuple(
        TermRow(
            symbol=t.symbol,
            name=t.name,
            equation=t.equation,
            estimate=t.estimate,
            per_task=t.per_task,
            note=t.note,
            share=bound.shares[t.symbol],
        )
        for t in bound.terms
    )
    return ReadingRow(
        name=bound.name,
        reading=bound.reading,
        value=bound.value,
        stderr=bound.stderr,
        status=bound.status,
        vacuous=bound.vacuous,
        delta=bound.delta,
        assumptions=bound.assumptions,
        terms=terms,
    )


def _experts(side: Experts[AnchorStatistics], distances: list[float]) -> tuple[ExpertRow, ...]:
    return tuple(
        ExpertRow(
            own_risk=s.own_risk,
            n=s.n,
            distance=distance,
            displacement_sq=s.displacement_sq,
            kernel=s.kernel,
            gradient=s.gradient,
            sigma=s.sigma,
            eta=s.eta,
            qsb=s.qsb,
            kl=s.kl,
        )
        for s, distance in zip(side.statistics, distances, strict=True)
    )


def table(view: View, part: BoundSection) -> Table:
    """Return the terms of every reading, with the measured risk and that of knowing nothing."""
    readings, accuracy = part.readings, view.part(Accuracy)
    title = f"{view.label}: bound (5) on the risk, δ = {view.settings.delta} (nats; ± standard error)"
    table = Table("term", "equation", title=plain(title, "table.title"))
    for reading in readings:
        table.add_column(reading.reading, justify="right")
    for row in readings[-1].terms:
        cells = []
        for reading in readings:
            term = next((t for t in reading.terms if t.name == row.name), None)
            cells.append("" if term is None else f"{shown(term.estimate)} {term.estimate.status}")
        table.add_row(row.name, row.equation, *cells)
    table.add_section()
    table.add_row("total", "", *(f"{r.value:.3f} {r.status}{', vacuous' if r.vacuous else ''}" for r in readings))
    if accuracy:
        table.add_row("measured risk", "", *[f"{accuracy.risk.value:.3f}"] * len(readings))
    table.add_row("knowing nothing", "", *[f"{part.trivial_risk:.3f}"] * len(readings))
    return table


def figure(view: View, part: BoundSection) -> Figure:
    """Stacked terms of the three readings, with the measured risk and that of knowing nothing as lines."""
    from diagnostics.figures import style

    figure = style.new_figure(3.6)
    axes = figure.subplots()
    readings = list(reversed(part.readings))
    labelled: set[str] = set()
    for row, reading in enumerate(readings):
        ends = {1: 0.0, -1: 0.0}
        for term in reading.terms:
            value = term.estimate.value
            sign = 1 if value >= 0 else -1
            colour, hatch = style.TERM_STYLES[term.name]
            axes.barh(
                row, value, left=ends[sign], height=0.55, color=colour, hatch=hatch, edgecolor=PAPER,
                linewidth=0.5, label=None if term.name in labelled else term.name,
            )  # fmt: skip
            labelled.add(term.name)
            ends[sign] += value
        axes.plot([reading.value] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
        state = "vacuous" if reading.vacuous else "not vacuous"
        axes.text(ends[1], row, f"  {reading.value:.2f}\n  {state}", va="center", fontsize=8)
    if accuracy := view.part(Accuracy):
        risk = accuracy.risk.value
        axes.axvline(risk, color=INK, linestyle=":", linewidth=1.3, label=f"measured risk {risk:.2f}")
    trivial = part.trivial_risk
    axes.axvline(trivial, color=FAINT, linestyle="--", linewidth=1.3, label=f"knowing nothing {trivial:.2f}")
    axes.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(readings)), [r.reading for r in readings])
    axes.set_ylim(-0.5, len(readings) - 0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right + 0.17 * (right - left))
    n = view.settings.held_out
    axes.set_xlabel(f"cross-entropy (nats), mean over {len(view.tasks)} tasks, n = {n} held-out examples each")
    style.legend_below(figure, axes, 3)
    return figure


def sentence(view: View, part: BoundSection) -> str:
    """Say what the theory says."""
    corrected = part.readings[READINGS.index("corrected")]
    largest = max(corrected.terms, key=lambda term: term.estimate.value)
    positive = sum(max(t.estimate.value, 0.0) for t in corrected.terms)
    state = "vacuous" if corrected.vacuous else "not vacuous"
    relation = "at or above" if corrected.vacuous else "below"
    accuracy = view.part(Accuracy)
    measured = "" if accuracy is None else f", the measured risk is {accuracy.risk.value:.2f}"
    return (
        f"The bound that holds for the network (corrected) is {corrected.value:.2f} nats and {state}: it lies "
        f"{relation} the {part.trivial_risk:.2f} nats of knowing nothing{measured}; "
        f"{largest.name} dominates with {largest.estimate.value:.2f} nats, "
        f"{100 * largest.estimate.value / positive:.0f} % of the positive terms."
    )


def assumptions(parts: Sequence[tuple[View, BoundSection]]) -> list[Assumption]:
    """QSB of both readings, the price of the grids, what is estimated: the experts' side, alike for all merges."""
    view, part = parts[0]
    lines = []
    for reading, rows in part.experts.items():
        constants = [e.qsb.value for e in rows]
        lines.append(
            Assumption(
                f"QSB: E_z(E_Q ℓ)² <= C·E_z E_Q ℓ ({reading})",
                f"C = {min(constants):.2f} to {max(constants):.2f}, ηC < 2",
                f"estimated as the ratio itself on {rows[0].qsb.n} held-out examples of each task",
            )
        )
    return [
        *lines,
        Assumption(
            "price of the grids", f"ln(T G/δ) = {part.log_price:.1f} nats", "exact; one σ per block, 0 included"
        ),
        Assumption(
            "Poincaré term, H_Q, gap, gain, ε⁺",
            f"{view.settings.held_out} held-out examples per task",
            "estimated on test examples unused in training and choices; shown with standard errors",
        ),
        Assumption(
            "network linear in θ (assumed-linear reading only)",
            "f in place of f^lin",
            "assumed; the corrected reading pays ε⁺ instead",
        ),
    ]


SECTION = Section(
    kind=BoundSection,
    compute=compute,
    title="The bound and what it is made of",
    link="bound",
    how=("5", "5a", "1", "7"),
    table=table,
    figures={"terms": Drawn(figure)},
    sentence=sentence,
    assumptions=assumptions,
)

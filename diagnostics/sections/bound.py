"""The bound (5) on the risk of the merge in its three readings, with the experts' side it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.table import Table

from bounds.linearize import transfer_error
from bounds.theorems import READINGS, AnchorStatistics, Experts, vertices
from bounds.types import Estimate
from diagnostics.figures.numbers import shown
from diagnostics.sections import anchors, forms, readings, repeats
from diagnostics.sections.accuracy import Accuracy
from diagnostics.sections.anchors import Slack
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.forms import Comparator
from diagnostics.sections.readings import ReadingRow, reading_row
from diagnostics.sections.repeats import Repeats
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.terms.linear import losses
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.params import norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
class Parts:
    """What the corrected reading adds up to, by identity (5a): risk of f^lin at θ_m + slack Σβ_j s_j + ε⁺.

    The slack's error is that of repetition (``Repeats``): it covers the choice of η, C and the examples.
    """

    linear_risk: Estimate
    slack: Estimate
    transfer: Estimate


@dataclass(frozen=True, kw_only=True)
class BoundSection:
    """Bound (5), and (5) + (7), at θ_m. ``vertices`` are the c_j of section 5 (linearised, without the gain).

    ``parts`` are the same in three parts, ``slack`` their second at other anchors, ``repeats`` what they owe to chance,
    ``comparators`` other bounds on the linearised risk, ``missing`` why one of them could not be stated.
    """

    parts: Parts
    slack: Slack
    repeats: tuple[Repeats, ...]
    comparators: tuple[Comparator, ...]
    readings: tuple[ReadingRow, ...]
    trivial_risk: float
    distance: float
    blocks: tuple[str, ...]
    experts: Mapping[str, tuple[ExpertRow, ...]]
    log_price: float
    vertices: tuple[Estimate, ...]
    missing: Mapping[str, str]


def compute(workspace: Workspace, subject: Subject) -> BoundSection:
    """Evaluate the readings at θ_m."""
    displacement, settings = workspace.displacement(subject), workspace.settings
    along, network = workspace.merge_point(subject)
    bounds, at = workspace.at_merge(subject)
    side, vectors, missing = workspace.experts, workspace.vectors, dict[str, str]()
    distances = [norm(delta) for delta in vectors.deltas]
    linear = [world.scores0 + tangents for world, tangents in zip(side.worlds, along, strict=True)]
    repeated = repeats.compute(
        workspace.anchors([1.0])[0],
        [losses(scores, world.labels) for scores, world in zip(linear, side.worlds, strict=True)],
        [transfer_error(f, scores).positive for f, scores in zip(network.scores, linear, strict=True)],
        workspace.alpha,
        workspace.beta,
        splits=settings.splits,
        seed=settings.seed,
    )
    slack = anchors.compute(workspace, at.linear.risk.value, at.transfer.positive.value)
    own = replace(slack.rows[-1].slack, stderr=repeated[-1].slack.stderr)
    return BoundSection(
        parts=Parts(linear_risk=at.linear.risk, slack=own, transfer=at.transfer.positive),
        slack=slack,
        repeats=repeated,
        comparators=tuple(forms.compute(workspace, subject, along, at.linear.merge, missing)),
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
        missing=missing,
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
    """Return the three parts, then the terms of every reading, with the measured risk and that of knowing nothing."""
    shown_readings, accuracy = part.readings, view.part(Accuracy)
    title = f"{view.label}: bound (5) on the risk, δ = {view.settings.delta} (nats; ± standard error)"
    table = Table("part or term", "equation", title=plain(title, "table.title"))
    for reading in shown_readings:
        table.add_column(reading.reading, justify="right")
    for name, equation, estimate, of in parts_of(part):
        cells = [f"{shown(estimate)} {estimate.status}" if r.reading in of else "" for r in shown_readings]
        table.add_row(name, equation, *cells)
    table.add_section()
    for row in shown_readings[-1].terms:
        cells = []
        for reading in shown_readings:
            term = next((t for t in reading.terms if t.name == row.name), None)
            cells.append("" if term is None else f"{shown(term.estimate)} {term.estimate.status}")
        table.add_row(row.name, row.equation, *cells)
    table.add_section()
    table.add_row("total", "", *(f"{r.value:.3f} {r.status}{', vacuous' if r.vacuous else ''}" for r in shown_readings))
    if accuracy:
        table.add_row("measured risk", "", *[f"{accuracy.risk.value:.3f}"] * len(shown_readings))
    table.add_row("knowing nothing", "", *[f"{part.trivial_risk:.3f}"] * len(shown_readings))
    at_base, others = part.slack.rows[0], (f"{c.name} {c.value:.2f}" for c in part.comparators)
    caption = (
        f"The parts add up to the total by (5a), and so do the terms. With anchors at c = {at_base.c:g} the slack is "
        f"{at_base.slack.value:.2f}. Other bounds on the risk of f^lin: {', '.join(others)}."
    )
    table.caption = plain(caption, "table.caption")
    return table


Shown = tuple[str, str, Estimate, tuple[str, ...]]
"""Name, equation, value, readings."""


def parts_of(part: BoundSection) -> tuple[Shown, ...]:
    """Return the three parts: name, equation, value, the readings that they belong to."""
    both, parts = ("linearised", "corrected"), part.parts
    return (
        ("risk of f^lin", "(5a)", parts.linear_risk, both),
        ("slack of the experts' own bounds", "(5a)", parts.slack, both),
        ("transfer error", "(7)", parts.transfer, ("corrected",)),
    )


def totals(view: View, part: BoundSection) -> Figure:
    """Draw the three parts at every choice of anchors."""
    risk, transfer = part.parts.linear_risk.value, part.parts.transfer.value
    return anchors.draw_totals(part.slack, risk, transfer, _risks(view, part))


def _risks(view: View, part: BoundSection) -> dict[str, float]:
    """Return what a bound is compared with."""
    accuracy = view.part(Accuracy)
    return {**({"measured risk": accuracy.risk.value} if accuracy else {}), "knowing nothing": part.trivial_risk}


def slack_figure(view: View, part: BoundSection) -> Figure:
    """Draw the slack of every expert against its anchor."""
    return anchors.draw(part.slack, view.tasks)


def terms(view: View, part: BoundSection) -> Figure:
    """Draw the terms of the three readings."""
    examples = f"n = {view.settings.held_out} held-out examples each"
    xlabel = f"cross-entropy (nats), mean over {len(view.tasks)} tasks, {examples}"
    return readings.draw(part.readings, _risks(view, part), xlabel)


def sentence(view: View, part: BoundSection) -> str:
    """Say what the theory says."""
    corrected, parts, rows = part.readings[READINGS.index("corrected")], part.parts, part.slack.rows
    state = "vacuous" if corrected.vacuous else "not vacuous"
    relation = "at or above" if corrected.vacuous else "below"
    accuracy = view.part(Accuracy)
    measured = "" if accuracy is None else f", the measured risk is {accuracy.risk.value:.2f}"
    largest = max(corrected.terms, key=lambda term: term.estimate.value)
    return (
        f"Bound (5), which holds for the network (corrected), is {corrected.value:.2f} nats with the experts as "
        f"anchors and {state}: {relation} the {part.trivial_risk:.2f} nats of knowing nothing{measured}. By (5a) it is "
        f"the risk of f^lin, {parts.linear_risk.value:.2f}, + slack of the experts' own bounds, "
        f"{parts.slack.value:.2f} ± {parts.slack.stderr:.2f}, + ε⁺, {parts.transfer.value:.2f}; {largest.name} "
        f"dominates. The slack belongs to the anchors, not to the merge: with anchors at θ_0 it is "
        f"{rows[0].slack.value:.2f}."
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
        Assumption("weights β of the experts", *_weights(view, part)),
        Assumption(
            "Poincaré term, H_Q, gap, gain, ε⁺",
            f"{view.settings.held_out} held-out examples per task",
            "estimated on test examples unused in training and choices; the terms' standard errors are for the η, σ "
            "and C that were chosen",
        ),
        Assumption(
            "choice of η, C and examples",
            f"{part.repeats[-1].slack.n} times drawn again",
            "the slack's standard error: choosing and reporting halves and training examples are drawn again with "
            "replacement, η is chosen on the one half, all else measured on the other; σ is held",
        ),
        Assumption(
            "network linear in θ (assumed-linear reading only)",
            "f in place of f^lin",
            "assumed; the corrected reading pays ε⁺ instead",
        ),
    ]


def _weights(view: View, part: BoundSection) -> tuple[str, str]:
    """Return the value of β and where it comes from."""
    said = " ".join(view.settings.beta)
    if view.settings.beta != ("best",):
        return said, "chosen; (5) holds for all β at once"
    expert = view.tasks[part.slack.best_expert.expert]
    return (
        f"1 for {expert}",
        "the expert of least slack by one half of the held-out examples; everything is reported on the other half",
    )


SECTION = Section(
    kind=BoundSection,
    compute=compute,
    title="The bound and what it is made of",
    link="bound",
    how=("5", "5a", "17", "1", "7"),
    table=table,
    figures={"totals": Drawn(totals), "slack": Drawn(slack_figure), "terms": Drawn(terms)},
    sentence=sentence,
    assumptions=assumptions,
    missing=lambda part: part.missing,
    scored={"example"},
    rests_on="(5) draws the scores of an example from their covariance, which has (L·V)² numbers at L positions",
)

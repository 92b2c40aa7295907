"""The report on a terminal: what the numbers say in sentences, then tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bounds.types import Bound, Estimate
from diagnostics.path import RESIDUAL_TOLERANCE
from diagnostics.report import READINGS, Report
from merging.evaluation import MODELS, accuracy_table, mean


def print_report(report: Report, console: Console) -> None:
    """Print verdict, accuracy, terms, experts, ladder and sweep."""
    console.print()
    for sentence in verdict(report):
        console.print(f"• {sentence}", highlight=False)
    for table in (
        accuracy_table(report.tasks, "Merge"),
        _terms(report),
        _experts(report),
        _ladder(report),
        _sweep(report),
    ):
        console.print()
        console.print(table)


def verdict(report: Report) -> list[str]:
    """Three sentences made from the numbers: how good the merge is, what the bound says and why, where it is."""
    accuracy = {m: 100 * mean(row.accuracy[m] for row in report.tasks) for m in MODELS}
    corrected = report.bounds[READINGS.index("corrected")]
    largest = max(corrected.terms, key=lambda term: term.estimate.value)
    state = "vacuous" if corrected.vacuous else "not vacuous"
    if report.ntk_radius is None:
        place = f"the residual of the linearisation never crosses {RESIDUAL_TOLERANCE} on the path"
    else:
        side = "inside" if report.distance <= report.ntk_radius else "outside"
        place = f"the merge is {side} the NTK radius {report.ntk_radius:.2f} (residual {RESIDUAL_TOLERANCE})"
    return [
        f"Mean test accuracy {accuracy['merged']:.1f} %: the pretrained model has {accuracy['pretrained']:.1f} %, "
        f"the experts {accuracy['expert']:.1f} %.",
        f"Measured risk {report.measured_risk:.2f} nats; bound (5), corrected, {corrected.value:.2f} ({state}: knowing "
        f"nothing costs {report.trivial_risk:.2f}); its largest term is {largest.name} ({largest.estimate.value:.2f}).",
        f"At distance {report.distance:.2f} from θ_0, {place}.",
    ]


def _terms(report: Report) -> Table:
    table = Table(title=f"Bound (5) on the risk of the merge, δ = {report.settings.delta} (nats; ± standard error)")
    table.add_column("term")
    table.add_column("equation")
    for bound in report.bounds:
        table.add_column(bound.reading, justify="right")
    names = [term.name for term in report.bounds[-1].terms]
    for name in names:
        cells, equation = [], ""
        for bound in report.bounds:
            term = next((t for t in bound.terms if t.name == name), None)
            cells.append("" if term is None else f"{_value(term.estimate)} {term.estimate.status}")
            equation = term.equation if term else equation
        table.add_row(name, equation, *cells)
    table.add_section()
    table.add_row("total", "", *(_total(bound) for bound in report.bounds))
    table.add_row("measured risk", "", *[f"{report.measured_risk:.3f}"] * len(report.bounds))
    table.add_row("knowing nothing", "", *[f"{report.trivial_risk:.3f}"] * len(report.bounds))
    return table


def _value(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.stderr:.3f}" if estimate.stderr else f"{estimate.value:.3f}"


def _total(bound: Bound) -> str:
    return f"{bound.value:.3f} {bound.status}{', vacuous' if bound.vacuous else ''}"


def _experts(report: Report) -> Table:
    side = report.anchors["linearised"]
    table = Table(title="Experts (linearised): c_j is the bound with all weight on expert j, without the Bregman gain")
    for column in ("expert", "n", "‖τ‖", "η", "σ", "KL (nats)", "tr K", "C", "own risk", "c_j"):
        table.add_column(column, justify="left" if column == "expert" else "right")
    for row, s, distance, vertex in zip(
        report.tasks, side.statistics, report.expert_distances, report.vertices, strict=True
    ):
        table.add_row(
            row.name,
            str(s.n),
            f"{distance:.2f}",
            f"{s.eta:.4g}",
            f"{min(s.sigma):.1e}–{max(s.sigma):.1e}",
            f"{s.kl:.0f}",
            f"{sum(k.value for k in s.kernel):.3g}",
            f"{s.qsb.value:.2f}",
            f"{s.own_risk.value:.3f}",
            f"{vertex.value:.2f}",
        )
    return table


def _ladder(report: Report) -> Table:
    ladder = report.ladder
    table = Table(title="Ladder (8): what the merge adds to its teachers' 0-1 risk, at most")
    rungs = (*ladder.rungs, ladder.divergence, ladder.disagreement)
    table.add_column("task")
    for rung in rungs:
        table.add_column(rung.name if rung is not ladder.divergence else "KL (nats)", justify="right")
    for index, row in enumerate(report.tasks):
        table.add_row(row.name, *(_value(rung.per_task[index]) for rung in rungs))
    table.add_section()
    table.add_row("all tasks", *(_value(rung.total) for rung in rungs))
    return table


def _sweep(report: Report) -> Table:
    table = Table(title=f"Along θ(s) = θ_0 + s(θ_m − θ_0), {report.settings.held_out} held-out examples per task")
    for column in (
        "s",
        "distance",
        "risk",
        "error %",
        "assumed-linear",
        "linearised",
        "corrected",
        "ε⁺",
        "residual",
    ):
        table.add_column(column, justify="right")
    for p in report.sweep:
        bounds = [f"{p.bounds[reading]:.2f}" for reading in READINGS]
        table.add_row(
            f"{p.s:.2f}",
            f"{p.distance:.2f}",
            f"{p.risk.value:.3f}",
            f"{100 * p.error:.1f}",
            *bounds,
            f"{p.transfer.value:.3f}",
            f"{p.residual:.3f}",
        )
    return table

"""The report on a terminal: what the numbers say in sentences, then one small table per section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table

from bounds.types import Estimate
from diagnostics.report import MergeReport, Report
from diagnostics.sections.sweep import SweepPath
from diagnostics.terms.path import SweepPoint
from merging.commands.evaluation import accuracy_table


def print_report(report: Report, console: Console) -> None:
    """Print the verdict and the tables of the sections that are there."""
    console.print()
    for sentence in report.verdict:
        console.print(f"• {sentence}", highlight=False)
    tables: Sequence[tuple[str, Callable[[Report, MergeReport], RenderableType]]] = (
        ("accuracy", _accuracy),
        ("bound", _terms),
        ("heterogeneity", _heterogeneity),
        ("flatness", _tasks),
        ("distillation", _ladder),
        ("certificates", _certificates),
        ("sweep", _sweep),
    )
    for section, table in tables:
        for merge in report.merges:
            if getattr(merge, section) is not None:
                console.print()
                console.print(table(report, merge))
    if report.comparison:
        console.print()
        console.print(_comparison(report))
    for label, reason in report.provenance.missing.items():
        console.print(f"not computed: {label}: {reason}", highlight=False)


def _accuracy(report: Report, merge: MergeReport) -> Table:
    assert merge.accuracy
    return accuracy_table(merge.accuracy.tasks, merge.label)


def _terms(report: Report, merge: MergeReport) -> Table:
    assert merge.bound
    readings = merge.bound.readings
    table = Table(title=f"{merge.label}: bound (5) on the risk, δ = {report.settings.delta} (nats; ± standard error)")
    table.add_column("term")
    table.add_column("equation")
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
    if merge.accuracy:
        table.add_row("measured risk", "", *[f"{merge.accuracy.risk.value:.3f}"] * len(readings))
    table.add_row("knowing nothing", "", *[f"{merge.bound.trivial_risk:.3f}"] * len(readings))
    return table


def _heterogeneity(report: Report, merge: MergeReport) -> Table:
    assert merge.heterogeneity
    table = Table(title="Heterogeneity H_Q (1), nats")
    table.add_column("reading")
    table.add_column("H_Q", justify="right")
    table.add_column("own risk, mean of R_jj", justify="right")
    for reading, cross in merge.heterogeneity.readings.items():
        own = sum(row[i] for i, row in enumerate(cross.risk)) / len(cross.risk)
        table.add_row(reading, shown(cross.heterogeneity), f"{own:.3f}")
    return table


def _tasks(report: Report, merge: MergeReport) -> Table:
    assert merge.flatness
    part, kernel = merge.flatness, merge.entk
    table = Table(
        title=f"{merge.label}: flatness (‖∇L̂‖ = {part.gradient_norm:.3g}, n = {part.examples} per task) and kernel"
    )
    columns = ["task", "sharpness, weights", "sharpness, coefficients", "λ_max Hessian"]
    for column in [*columns, *(["effective rank", "rotation", "‖ΔK‖/‖K_0‖"] if kernel else [])]:
        table.add_column(column, justify="left" if column == "task" else "right")
    for i, name in enumerate(report.tasks):
        cells = [
            f"{part.sharpness_weights[i]:.4f}",
            f"{part.sharpness_coefficients[i]:.4f}",
            f"{part.top_eigenvalues[i]:.3g}",
        ]
        if kernel:
            at = kernel.tasks[i]
            cells += [f"{at.effective_rank:.1f}", f"{at.rotation:.3f}", f"{at.relative_change:.2f}"]
        table.add_row(name, *cells)
    return table


def _ladder(report: Report, merge: MergeReport) -> Table:
    assert merge.distillation
    part = merge.distillation
    table = Table(title=f"{merge.label}: ladder (8), what the merge adds to its teachers' 0-1 risk, at most")
    rungs = (*part.rungs, part.divergence, part.disagreement)
    table.add_column("task")
    for rung in rungs:
        table.add_column(rung.name if rung is not part.divergence else "KL (nats)", justify="right")
    for index, name in enumerate(report.tasks):
        table.add_row(name, *(shown(rung.per_task[index]) for rung in rungs))
    table.add_section()
    table.add_row("all tasks", *(shown(rung.total) for rung in rungs))
    return table


def _certificates(report: Report, merge: MergeReport) -> Table:
    assert merge.certificates
    part = merge.certificates
    table = Table(title=f"{merge.label}: certified 0-1 error (%), n = {part.n} validation labels")
    for column in ("equation", "statement", "about", "observed", "certified", "test", "δ"):
        table.add_column(column, justify="right" if column in ("observed", "certified", "test", "δ") else "left")
    for row in part.rows:
        figures = [f"{100 * v:.1f}" for v in (row.observed, row.value, row.test_error)]
        table.add_row(row.equation, row.name, row.about, *figures, f"{row.delta:.3g}")
    table.caption = part.use
    return table


def _sweep(report: Report, merge: MergeReport) -> Table:
    assert merge.sweep
    return sweep_table(merge.sweep.paths[0], merge.sweep.examples)


def sweep_table(path: SweepPath, examples: int) -> Table:
    """One path of a sweep, a row per point."""
    radius = "nowhere" if path.ntk_radius is None else f"at {path.ntk_radius:.2f}"
    table = Table(
        title=f"{path.name}: along θ_0 + s·d, n = {examples} per task; residual {path.tolerance:g} crossed {radius}"
    )
    extra: Mapping[str, Callable[[SweepPoint], float | None]] = {
        "rotation S": lambda p: p.rotation,
        "‖ΔK‖/‖K_0‖": lambda p: p.relative_change,
        "sharpness": lambda p: p.sharpness,
    }
    measured = {name: of for name, of in extra.items() if of(path.points[0]) is not None}
    columns = ("s", "distance", "risk", "error %", "assumed-linear", "linearised", "corrected", "ε⁺", "residual")
    for column in (*columns, *measured):
        table.add_column(column, justify="right")
    for p in path.points:
        bounds = [f"{value:.2f}" for value in p.bounds.values()]
        table.add_row(
            f"{p.s:.2f}", f"{p.distance:.2f}", f"{p.risk.value:.3f}", f"{100 * p.error:.1f}", *bounds,
            f"{p.transfer.value:.3f}", f"{p.residual:.3f}", *(f"{of(p):.3f}" for of in measured.values()),
        )  # fmt: skip
    return table


def _comparison(report: Report) -> Table:
    assert report.comparison
    part = report.comparison
    table = Table(title=f"Differences to {part.reference} (± bootstrap standard error, {part.resamples} resamples)")
    others = list(dict.fromkeys(d.merge for d in part.differences))
    table.add_column("quantity")
    for other in others:
        table.add_column(other, justify="right")
    for quantity in dict.fromkeys(d.quantity for d in part.differences):
        cells = [d.difference for d in part.differences if d.quantity == quantity]
        table.add_row(quantity, *(f"{d.value:+.3f} ± {d.stderr:.3f}" for d in cells))
    table.caption = "; ".join(
        f"{r.by}: {' < '.join(r.order)} (Kendall τ with the test {tau(r.kendall_tau)})" for r in part.rankings
    )
    return table


def tau(value: float | None) -> str:
    """Kendall's τ, or that it is not defined."""
    return "not defined" if value is None else f"{value:+.2f}"


def shown(estimate: Estimate) -> str:
    """Return a value with its standard error, if it has one."""
    return f"{estimate.value:.3f} ± {estimate.stderr:.3f}" if estimate.stderr else f"{estimate.value:.3f}"

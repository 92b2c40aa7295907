"""What is certified: (10), (11) and (13) to (16) on the validation split, next to the test split.

Validation labels are the certificates' data, so what the merge did with them decides which statement holds: a method
that never saw them is a fixed model; one that chose among K fixed candidates on them pays δ/K; coefficients may be
learned on them under (10), whose prior must then be data-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from bounds.certificates import Count, choose_constants, held_out, pooled, weighted_mean
from bounds.types import Bound
from diagnostics.figures.notation import in_unicode
from diagnostics.figures.svg import FAINT
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.certified import (
    DIFFERENCE,
    ERRORS,
    IN_NATS,
    Certificate,
    drawn,
    in_unit,
    unused_labels,
    validation_use,
)
from diagnostics.sections.evidence import (
    AGAINST_PRETRAINED,
    AGAINST_TEACHER,
    ERROR,
    IMITATION,
    NATS,
    Evidence,
    Quantity,
    gathered,
)
from diagnostics.sections.gibbs import GibbsRow, certify, obstacle, randomised
from diagnostics.settings import COEFFICIENT_SCALES, FLOOR, OWN_SCALE, UNIFORM_PRIORS
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.commands.paired import holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNIFICANT = 0.05
"""Adjusted p-value below which validation and test examples of a task are said to differ."""


@dataclass(frozen=True, kw_only=True)
class TaskCertificate:
    """One task's error, certified at δ/T by (13), so that all tasks hold together; ``beyond``: that on test is larger.

    ``differs`` is the p-value of Fisher's exact test of the pretrained model's errors on validation against test,
    adjusted for T tasks (Holm): small where the two splits are not exchangeable.
    """

    task: str
    observed: float
    value: float
    n: int
    test_error: float
    test_examples: int
    beyond: bool
    differs: float


@dataclass(frozen=True, kw_only=True)
class CertificateSection:
    """All certificates of one merge; ``use`` says what the merge did with the validation labels.

    The first row is the one that the verdict quotes. ``models_looked_at`` is what δ was divided by (0: unknown, no
    held-out certificate). ``gap_to_test`` is the pooled (10) minus the pooled test error; ``gibbs`` lists the
    coefficient-space statements; ``missing`` names the statements that could not be made, with the reason.
    """

    use: str
    models_looked_at: int
    n: int
    test_error: float
    rows: tuple[Certificate, ...]
    tasks: tuple[TaskCertificate, ...]
    gibbs: tuple[GibbsRow, ...]
    gap_to_test: float | None
    missing: Mapping[str, str] = field(default_factory=dict)


def compute(workspace: Workspace, subject: Subject) -> CertificateSection:
    """Certify. Status: certified; the comparison with the test split is exact for it."""
    workspace.check_labels("validation", "certificates")
    workspace.check_labels("test", "certificates, which are shown beside the test error")
    evidence = gathered(workspace, subject)
    looks, use = validation_use(subject)
    models = (looks or 0) * workspace.models_looked_at
    sizes, test = [len(y) for y in evidence.labels], evidence.on_test(ERROR)
    n = sum(sizes)
    pooled_test = sum(m * e for m, e in zip(sizes, test, strict=True)) / n
    rows: list[Certificate] = []
    tasks: tuple[TaskCertificate, ...] = ()
    if models:
        rows, tasks = _means(workspace, evidence, models), _tasks(workspace, evidence, models)
        wrong, name = _wrong(evidence), "error, pooled (weights n_t/n)"
        rate, bound = sum(c.errors for c in wrong) / n, pooled(wrong, workspace.settings.delta, models)
        rows.append(_row("(12), (13)", name, "θ_m", ERRORS, rate, bound, n, pooled_test))
    if looks == 1 and (drawn := randomised(workspace, subject, models)) is not None:
        count, bound = drawn
        about, name = f"N(λ̂, {OWN_SCALE:g}² I)", "error, pooled, one draw of λ per example"
        rows.append(_row("(13), (16)", name, about, ERRORS, count.errors / n, bound, n, pooled_test))
    gibbs = certify(workspace, subject)
    rows += [_gibbs(g, n, pooled_test) for g in gibbs]
    return CertificateSection(
        use=use,
        models_looked_at=models,
        n=n,
        test_error=pooled_test,
        rows=tuple(rows),
        tasks=tasks,
        gibbs=gibbs,
        gap_to_test=min(g.value for g in gibbs) - pooled_test if gibbs else None,
        missing=_missing(obstacle(workspace, subject), looks, use, evidence.why_not),
    )


_QUANTITIES: Sequence[tuple[str, str, str, Quantity]] = (
    ("error, α-weighted", "θ_m", ERRORS, ERROR),
    (f"cross-entropy, α-weighted, floor ε = {FLOOR:g}", "θ_m", IN_NATS, NATS),
    ("teachers' error + disagreement (11), α-weighted", "θ_m", ERRORS, IMITATION),
    ("error above the teachers', α-weighted", "θ_m − teachers", DIFFERENCE, AGAINST_TEACHER),
    ("error above the pretrained model's, α-weighted", "θ_m − θ_0", DIFFERENCE, AGAINST_PRETRAINED),
)
"""Name, about, unit and quantity of every weighted mean; the first is the one that the verdict quotes."""


def _means(workspace: Workspace, evidence: Evidence, models: int) -> list[Certificate]:
    """Certify the weighted means by (14), and by (15) where there are unlabelled inputs."""
    alpha, delta, rows = workspace.alpha, workspace.settings.delta, []
    for name, about, unit, quantity in _QUANTITIES:
        test = sum(a * m for a, m in zip(alpha, evidence.on_test(quantity), strict=True))
        pilots = evidence.pilots(quantity)
        for inputs in (False, True) if evidence.unlabelled else (False,):
            samples = evidence.samples(quantity, inputs=inputs)
            constants = None if pilots is None else choose_constants(pilots, samples, alpha, delta / models)
            if inputs and (constants is None or not constants.slope):
                continue  # the pilot says that they would not help
            bound = weighted_mean(samples, alpha, delta, constants, models_looked_at=models)
            others = sum(len(s.unlabelled) for s in samples if s.unlabelled is not None)
            said = f"{name}, with {others} unlabelled inputs" if inputs else name
            n = sum(len(s.values) for s in samples)
            observed, equation = bound.value - bound.terms[-1].estimate.value, bound.terms[0].equation
            rows.append(_row(equation, said, about, unit, observed, bound, n, test, others))
    return rows


def _wrong(evidence: Evidence) -> list[Count]:
    return [Count(float(s.values.sum()), len(s.values)) for s in evidence.samples(ERROR, inputs=False)]


def _tasks(workspace: Workspace, evidence: Evidence, models: int) -> tuple[TaskCertificate, ...]:
    """Certify every task at δ/T, and ask whether its validation and test examples are alike."""
    share, test = workspace.settings.delta / len(workspace.names), evidence.on_test(ERROR)
    rows = []
    for name, count, error, labels, p in zip(
        workspace.names, _wrong(evidence), test, evidence.test_labels, _differ(evidence), strict=True
    ):
        value = held_out(count.errors, count.n, share, models_looked_at=models).value
        rows.append(
            TaskCertificate(
                task=name,
                observed=count.errors / count.n,
                value=value,
                n=count.n,
                test_error=error,
                test_examples=len(labels),
                beyond=error > value,
                differs=p,
            )
        )
    return tuple(rows)


def _differ(evidence: Evidence) -> list[float]:
    """Holm-adjusted p-values of Fisher's exact test: θ_0's errors on validation against test, per task."""
    from scipy.stats import fisher_exact  # takes seconds to import

    values = []
    for s, y, t, z in zip(evidence.labelled, evidence.labels, evidence.test, evidence.test_labels, strict=True):
        wrong, beyond = (int((x["pretrained"].argmax(1) != labels).sum()) for x, labels in ((s, y), (t, z)))
        result = fisher_exact([[wrong, len(y) - wrong], [beyond, len(z) - beyond]])
        values.append(float(result.pvalue))  # pyright: ignore
    return holm(values)


def _gibbs(row: GibbsRow, n: int, test: float) -> Certificate:
    """Return a coefficient-space statement as a row of the table, which counts for N(λ̂, s² I)."""
    return Certificate(
        equation="(10), (12)",
        name=f"error, pooled, prior at {row.prior}",
        about=f"N(λ̂, {row.scale:g}² I)",
        unit=ERRORS,
        observed=row.observed,
        value=row.value,
        n=n,
        unlabelled=0,
        delta=row.delta,
        test_error=test,
        assumptions=row.assumptions,
    )


def _missing(obstacle: str, looks: int | None, use: str, why_not: str) -> dict[str, str]:
    """Say which statements could not be made, and why."""
    missing = {}
    if looks is None:
        missing |= {"(11), (13), (14) held-out": use}
    elif why_not:
        missing["(15) with unlabelled inputs"] = why_not
    if obstacle:
        missing["(10), (16) coefficients"] = obstacle
    elif looks != 1:
        missing["(16) a draw of λ per example"] = "λ̂ was chosen on the labels, or that is not known"
    return missing


def _row(
    equation: str,
    name: str,
    about: str,
    unit: str,
    observed: float,
    bound: Bound,
    n: int,
    test: float,
    unlabelled: int = 0,
) -> Certificate:
    return Certificate(
        equation=equation,
        name=name,
        about=about,
        unit=unit,
        observed=observed,
        value=min(1.0, bound.value) if unit == ERRORS else bound.value,
        n=n,
        unlabelled=unlabelled,
        delta=bound.delta,
        test_error=test,
        assumptions=bound.assumptions,
    )


def table(view: View, part: CertificateSection) -> Table:
    """Return the statements, a row each."""
    title = f"{view.label}: certified at most (% or nats), n = {part.n} validation labels, each row on its own"
    table = Table(title=plain(title, "table.title"))
    for column in ("equation", "statement", "about", "observed", "certified", "test", "δ"):
        table.add_column(column, justify="right" if column in ("observed", "certified", "test", "δ") else "left")
    for row in part.rows:
        figures = [in_unit(v, row.unit) for v in (row.observed, row.value, row.test_error)]
        table.add_row(row.equation, row.name, row.about, *figures, f"{row.delta:.3g}")
    table.caption = plain(f"{part.use}{differing(part)}", "table.caption")
    return table


def differing(part: CertificateSection) -> str:
    """Return what the check of exchangeability adds to a sentence about certificates ("" for nothing)."""
    names = [f"{t.task} (p = {t.differs:.2g})" for t in part.tasks if t.differs < SIGNIFICANT]
    if not names:
        return ""
    return f"; validation and test examples differ in {', '.join(names)}: there the test error may exceed the certified"


def figure(view: View, part: CertificateSection) -> Figure:
    """Draw certified 0-1 errors next to those on validation and test: statements about all tasks above, tasks below."""
    from diagnostics.figures import style

    shown = [r for r in part.rows if r.unit == ERRORS]
    entries = [
        (in_unicode(f"{r.name.removeprefix('error, ')} {r.equation}"), r.observed, r.value, r.test_error) for r in shown
    ]
    entries += [(style.named(t.task), t.observed, t.value, t.test_error) for t in part.tasks]
    observed = "observed on validation (teachers + disagreement for (11))"
    label = f"0-1 error (%), n = {part.n} validation labels in all"
    figure, axes = drawn(entries, label, observed=observed, test="test error", columns=1, scale=100.0)
    if part.tasks:
        axes.axhline(len(shown) - 0.5, color=FAINT, linewidth=0.6)
    return figure


def assumptions(parts: Sequence[tuple[View, CertificateSection]]) -> list[Assumption]:
    """Say what every merge did with the labels, where constants come from, and the list of priors."""
    lines = [unused_labels(view.label, f"{part.n} validation labels", part) for view, part in parts]
    how = "calibration inputs with labels drawn from the experts: wrong ones cost width, not validity"
    lines.append(Assumption("constants of (14), (15)", "ν, offsets, slope, centres", how))
    if any(part.gibbs for _, part in parts):
        priors = f"λ_prior in {{{', '.join(UNIFORM_PRIORS)}}} with s in {COEFFICIENT_SCALES}"
        lines.append(Assumption("list of priors in (10)", priors, "fixed in the code; it pays its ln G"))
    return lines


SECTION = Section(
    kind=CertificateSection,
    compute=compute,
    title="What is certified",
    link="certificates",
    how=("14", "15", "13", "12", "11", "10", "16", "19"),
    table=table,
    figures={"certificates": Drawn(figure)},
    assumptions=assumptions,
    missing=lambda part: part.missing,
    scored={"example"},
)

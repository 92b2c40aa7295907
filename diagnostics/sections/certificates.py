"""What is certified: (9)-(12) on the validation split, next to the test error.

Validation labels are the certificates' data, so what the merge did with them decides which statement holds: a method
that never saw them is a fixed model (9); one that chose among K fixed candidates on them pays δ/K; coefficients may be
learned on them under (10), whose prior must then be data-free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from bounds.certificates import Count, disagreement, mixture, pooled
from bounds.types import Bound, Term
from diagnostics.figures.svg import FAINT, INK
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.gibbs import OWN_PRIOR, GibbsRow, certify, obstacle
from diagnostics.settings import COEFFICIENT_SCALES, OWN_SCALE, UNIFORM_PRIORS
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One statement: with probability 1 - ``delta`` the 0-1 error of ``about`` is at most ``value``.

    ``observed`` is the error on the ``n`` validation labels; ``test_error`` that on the test split, for comparison,
    with the same task weights.
    """

    equation: str
    name: str
    about: str
    observed: float
    value: float
    n: int
    delta: float
    test_error: float
    assumptions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TaskCertificate:
    """One task's share of (12): certified at δ/T, so that all hold together; ``beyond``: the test error is larger."""

    task: str
    observed: float
    value: float
    n: int
    test_error: float
    test_examples: int
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class CertificateSection:
    """All certificates of one merge; ``use`` says what the merge did with the validation labels.

    ``models_looked_at`` is what δ was divided by (0: unknown, no held-out certificate). ``gap_to_test`` is the pooled
    (10) minus the pooled test error; ``gibbs`` lists the coefficient-space statements; ``missing`` names the statements
    that could not be made, with the reason.
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
    teachers, merged = workspace.teachers(), workspace.merged(subject)
    labels = [t["validation_labels"] for t in teachers]
    wrong = [int((m["validation"].argmax(1) != y).sum()) for m, y in zip(merged, labels, strict=True)]
    sizes = [len(y) for y in labels]
    errors = [
        float((m["test"].argmax(1) != t["test_labels"]).double().mean()) for m, t in zip(merged, teachers, strict=True)
    ]
    looks, use = validation_use(subject)
    models = (looks or 0) * workspace.models_looked_at
    n, delta = sum(sizes), workspace.settings.delta
    pooled_test = sum(m * e for m, e in zip(sizes, errors, strict=True)) / n
    rows: list[Certificate] = []
    tasks: tuple[TaskCertificate, ...] = ()
    counts = [Count(w, m) for w, m in zip(wrong, sizes, strict=True)]
    if models:
        whole = pooled(counts, delta, models)
        rows.append(_row("(9), (12)", "held-out, pooled", "θ_m", sum(wrong) / n, whole, n, pooled_test))
        mixed = mixture(counts, workspace.alpha, delta, models_looked_at=models)
        observed = sum(a * w / m for a, w, m in zip(workspace.alpha, wrong, sizes, strict=True))
        test = sum(a * e for a, e in zip(workspace.alpha, errors, strict=True))
        rows.append(_row("(9), (12)", "held-out, α-weighted, δ/T each", "θ_m", observed, mixed, n, test))
        seen = zip(workspace.names, counts, mixed.terms, errors, [len(t["test_labels"]) for t in teachers], strict=True)
        tasks = tuple(_task(*each) for each in seen)
        apart = [
            Count(int((m["validation"].argmax(1) != t["validation"].argmax(1)).sum()), size)
            for m, t, size in zip(merged, teachers, sizes, strict=True)
        ]
        taught = [
            Count(int((t["validation"].argmax(1) != y).sum()), size)
            for t, y, size in zip(teachers, labels, sizes, strict=True)
        ]
        free = disagreement(apart, taught, workspace.alpha, delta, models_looked_at=models)
        rate = sum(a * (d.errors + e.errors) / d.n for a, d, e in zip(workspace.alpha, apart, taught, strict=True))
        rows.append(_row("(11)", "teachers' error + disagreement", "θ_m", rate, free, n, test))
    gibbs = certify(workspace, subject, unseen=looks == 1)
    rows += [_gibbs(g, n, pooled_test) for g in gibbs]
    gap = min((g.value for g in gibbs), default=math.nan) - pooled_test if gibbs else None
    missing = _missing(obstacle(workspace, subject), looks, use)
    return CertificateSection(
        use=use,
        models_looked_at=models,
        n=n,
        test_error=pooled_test,
        rows=tuple(rows),
        tasks=tasks,
        gibbs=gibbs,
        gap_to_test=gap,
        missing=missing,
    )


def _task(name: str, count: Count, term: Term, test: float, test_examples: int) -> TaskCertificate:
    """Return a task's own certificate out of its term of the mixture, beside its error on the test split."""
    value = term.per_task[0].value
    return TaskCertificate(
        task=name,
        observed=count.errors / count.n,
        value=value,
        n=count.n,
        test_error=test,
        test_examples=test_examples,
        beyond=test > value,
    )


def _gibbs(row: GibbsRow, n: int, test: float) -> Certificate:
    """Return a coefficient-space statement as a row of the table, which counts for N(λ̂, s² I)."""
    return Certificate(
        equation="(10), (12)",
        name=f"coefficients, prior at {row.prior}, pooled",
        about=f"N(λ̂, {row.scale:g}² I)",
        observed=row.observed,
        value=row.value,
        n=n,
        delta=row.delta,
        test_error=test,
        assumptions=row.assumptions,
    )


def _missing(obstacle: str, looks: int | None, use: str) -> dict[str, str]:
    """Say which statements could not be made, and why."""
    missing = {}
    if looks is None:
        missing |= dict.fromkeys(("(9), (12) held-out", "(11) teachers' error + disagreement"), use)
    if obstacle:
        missing["(10), (12) coefficients"] = obstacle
    elif looks != 1:
        missing[f"(10), (12) coefficients, prior at {OWN_PRIOR}"] = "λ̂ is no prior for labels that chose it"
    return missing


def _row(equation: str, name: str, about: str, observed: float, bound: Bound, n: int, test: float) -> Certificate:
    return Certificate(
        equation=equation,
        name=name,
        about=about,
        observed=observed,
        value=min(1.0, bound.value),
        n=n,
        delta=bound.delta,
        test_error=test,
        assumptions=bound.assumptions,
    )


def validation_use(subject: Subject) -> tuple[int | None, str]:
    """How many models the merge looked at on the validation labels (None: unknown), and what it did, in words."""
    artifact = subject.artifact
    method, used = artifact.method, artifact.used
    if used is None:
        return None, f"what {method} did with the validation labels is unknown (merge again): no held-out certificate"
    row = METHODS.get(method)
    needs = row.needs_text if row else " and ".join(used) or "nothing"
    if "validation" in used:
        tried = used["validation"]
        if tried:
            return tried, f"{method} chose among {tried} fixed candidates on the validation labels: δ/{tried} each"
        return None, f"{method} needs {needs} and does not say how many models it tried: no held-out certificate"
    if row and "validation" in row.needs_of(row.settings()):
        return 1, f"{method} with a given scale: a fixed model, if the scale was not chosen on these labels"
    return 1, f"{method} needs {needs}; the validation split is unused: a fixed model"


def table(view: View, part: CertificateSection) -> Table:
    """Return the statements, a row each."""
    table = Table(title=plain(f"{view.label}: certified 0-1 error (%), n = {part.n} validation labels", "table.title"))
    for column in ("equation", "statement", "about", "observed", "certified", "test", "δ"):
        table.add_column(column, justify="right" if column in ("observed", "certified", "test", "δ") else "left")
    for row in part.rows:
        figures = [f"{100 * v:.1f}" for v in (row.observed, row.value, row.test_error)]
        table.add_row(row.equation, row.name, row.about, *figures, f"{row.delta:.3g}")
    table.caption = plain(part.use, "table.caption")
    return table


def figure(view: View, part: CertificateSection) -> Figure:
    """Certified 0-1 error next to the validation and test error: pooled statements above, tasks below."""
    from diagnostics.figures import style

    entries = [(r.name.split(", pooled")[0] + f" {r.equation}", r.observed, r.value, r.test_error) for r in part.rows]
    entries += [(style.named(t.task), t.observed, t.value, t.test_error) for t in part.tasks]
    figure = style.new_figure(1.2 + 0.27 * max(1, len(entries)))
    axes = figure.subplots()
    for row, (_, observed, value, test) in enumerate(entries):
        axes.plot([100 * observed, 100 * value], [row, row], color=FAINT, linewidth=1.2, zorder=1)
        for x, colour, marker, label in (
            (observed, style.BLUE, "o", "observed on validation (teachers + disagreement for (11))"),
            (value, style.VERMILION, "|", "certified, at most"),
            (test, INK, "x", "test error"),
        ):
            size = 11 if marker == "|" else 5
            axes.plot(
                100 * x, row, color=colour, marker=marker, markersize=size, markeredgewidth=1.6, linestyle="",
                label=None if row else label,
            )  # fmt: skip
    if part.tasks:
        axes.axhline(len(part.rows) - 0.5, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(entries)), [e[0] for e in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel(f"0-1 error (%), n = {part.n} validation labels in all")
    style.legend_below(figure, axes, 1)
    return figure


def assumptions(parts: Sequence[tuple[View, CertificateSection]]) -> list[Assumption]:
    """Say what every merge did with the labels, and the lists of priors."""
    lines = [
        Assumption(
            f"certificates of {view.label} rest on unused labels",
            f"n = {part.n} validation labels, δ/{part.models_looked_at or '?'}",
            part.use,
        )
        for view, part in parts
    ]
    if any(part.gibbs for _, part in parts):
        priors = (
            f"λ_prior in {{{', '.join(UNIFORM_PRIORS)}}} with s in {COEFFICIENT_SCALES}; "
            f"λ̂ with s = {OWN_SCALE:g} where the split is unused"
        )
        lines.append(Assumption("lists of priors in (10)", priors, "fixed in the code; each pays its ln G out of δ/2"))
    return lines


SECTION = Section(
    kind=CertificateSection,
    compute=compute,
    title="What is certified",
    link="certificates",
    table=table,
    figures={"certificates": Drawn(figure)},
    assumptions=assumptions,
    missing=lambda part: part.missing,
)

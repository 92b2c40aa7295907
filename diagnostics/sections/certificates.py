"""What is certified: (9)-(12) on the validation split, next to the test error.

Validation labels are the certificates' data, so what the merge did with them decides which statement holds: a method
that never saw them is a fixed model (9); one that chose among K fixed candidates on them pays δ/K; coefficients may be
learned on them under (10), whose prior must then be data-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bounds.certificates import Count, disagreement, mixture, pooled
from bounds.types import Bound
from diagnostics.sections.gibbs import GibbsRow, certify
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.methods import METHODS


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class TaskCertificate:
    """One task's share of (12): certified at δ/T, so that all hold together; ``beyond``: the test error is larger."""

    task: str
    observed: float
    value: float
    n: int
    test_error: float
    test_examples: int
    beyond: bool


@dataclass(frozen=True)
class CertificateSection:
    """All certificates of one merge; ``use`` says what the merge did with the validation labels.

    ``models_looked_at`` is what δ was divided by (0: unknown, no held-out certificate). ``gap_to_test`` is the pooled
    (10) minus the pooled test error; ``gibbs`` lists the coefficient-space statements.
    """

    use: str
    models_looked_at: int
    n: int
    test_error: float
    rows: tuple[Certificate, ...]
    tasks: tuple[TaskCertificate, ...]
    gibbs: tuple[GibbsRow, ...]
    gap_to_test: float | None


def compute(workspace: Workspace, subject: Subject) -> CertificateSection:
    """Certify. Status: certified; the comparison with the test split is exact for it."""
    teachers, merged = workspace.teachers(), workspace.merged(subject)
    labels = [t["validation_labels"] for t in teachers]
    wrong = [int((m["validation"].argmax(1) != y).sum()) for m, y in zip(merged, labels, strict=True)]
    sizes = [len(y) for y in labels]
    errors = [
        float((m["test"].argmax(1) != t["test_labels"]).double().mean()) for m, t in zip(merged, teachers, strict=True)
    ]
    looks, use = validation_use(subject)
    models = (looks or 0) * len(workspace.subjects)
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
        tasks = tuple(
            TaskCertificate(
                name, w / m, term.per_task[0].value, m, e, len(t["test_labels"]), e > term.per_task[0].value
            )
            for name, w, m, term, e, t in zip(workspace.names, wrong, sizes, mixed.terms, errors, teachers, strict=True)
        )
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
    for g in gibbs:
        about = f"N(λ̂, {g.scale:g}² I)"
        name = f"coefficients, prior at {g.prior}, pooled"
        rows.append(Certificate("(10), (12)", name, about, g.observed, g.value, n, g.delta, pooled_test, g.assumptions))
    gap = min((g.value for g in gibbs), default=math.nan) - pooled_test if gibbs else None
    return CertificateSection(use, models, n, pooled_test, tuple(rows), tasks, gibbs, gap)


def _row(equation: str, name: str, about: str, observed: float, bound: Bound, n: int, test: float) -> Certificate:
    return Certificate(equation, name, about, observed, min(1.0, bound.value), n, bound.delta, test, bound.assumptions)


def validation_use(subject: Subject) -> tuple[int | None, str]:
    """How many models the merge looked at on the validation labels (None: unknown), and what it did, in words."""
    artifact = subject.artifact
    looked = artifact.history.get("validation_accuracy", [])
    tried = int(artifact.history.get("candidates", [len(looked)])[0])  # a search pays for all it could have looked at
    if tried:
        return tried, f"{artifact.method} chose among {tried} fixed candidates on the validation labels: δ/{tried} each"
    if artifact.method not in METHODS:
        return None, f"what {artifact.method} did with the validation labels is unknown: no held-out certificate"
    needs = METHODS[artifact.method].needs
    if "validation" not in needs:
        return 1, f"{artifact.method} needs {needs}; the validation split is unused: a fixed model"
    if artifact.settings.get("scale") is not None:
        return 1, f"{artifact.method} with a given scale: a fixed model, if the scale was not chosen on these labels"
    return None, f"{artifact.method} needs {needs} and does not say how many models it tried: no held-out certificate"

"""Several merges side by side: differences, whole and per task, with paired errors; the order by bound and by test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from bounds.scores import zero_one_loss
from bounds.types import Estimate
from diagnostics.figures.numbers import tau
from diagnostics.subject import Subject
from diagnostics.terms.linear import losses
from diagnostics.workspace import Scored, Workspace
from merging.commands import plain
from merging.params import norm
from merging.task_vectors import Geometry, contract


@dataclass(frozen=True)
class Difference:
    """``quantity`` of ``merge`` minus that of the first merge, with the standard error of a paired bootstrap."""

    merge: str
    quantity: str
    difference: Estimate


@dataclass(frozen=True)
class Agreement:
    """Kendall's τ-b of two orders (1: the same), with what chance alone gives.

    ``chance`` is where τ lies with probability ``LEVEL`` at least if one order says nothing about the other, all being
    alike, and ``p_value`` the probability of a τ at least so large then: over all permutations, so exact, up to
    ``ENUMERATED`` merges, over ``SHUFFLES`` random ones beyond.
    """

    kendall_tau: float
    chance: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Ranking:
    """The merges ordered by a bound, best first, and how that agrees with the order by test risk.

    ``agreement`` is None for two merges, whose order is right by chance half of the time, and where all are tied.
    """

    by: str
    order: tuple[str, ...]
    agreement: Agreement | None


@dataclass(frozen=True)
class TaskDifference:
    """One task's test cross-entropy (nats) and 0-1 error under a merge minus those under the first, paired errors."""

    task: str
    merge: str
    risk: Estimate
    error: Estimate


@dataclass(frozen=True)
class CoefficientFit:
    """λ [T] for which Σ_t λ_t τ_t is closest to a merge's θ_m - θ_0, and the ``share`` of ‖θ_m - θ_0‖² it explains.

    One coefficient per task vector by least squares, of every merge alike, whatever it is made of. Exact.
    """

    merge: str
    values: tuple[float, ...]
    share: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences to the first merge (``reference``) and rankings; ``resamples`` bootstrap draws of whole examples.

    ``tasks`` has every other merge's differences per task, ``coefficients`` the fits of all merges.
    """

    reference: str
    resamples: int
    differences: tuple[Difference, ...]
    tasks: tuple[TaskDifference, ...]
    coefficients: tuple[CoefficientFit, ...]
    test_order: tuple[str, ...]
    rankings: tuple[Ranking, ...]


LEVEL = 0.95
"""Probability of the interval of τ by chance."""
ENUMERATED, SHUFFLES = 7, 5000
"""Most merges whose orders are all counted; random orders beyond."""
HOW = ("5a",)
"""Equations of the comparison that a reader of the page may want explained."""
SCORED: frozenset[Scored] = frozenset({"example"})
"""The kinds of task it serves."""
RESTS_ON = "it ranks merges by (5), which needs one row of scores for an example; sections show merges side by side"

Values = Sequence[Tensor]


def compute(workspace: Workspace) -> Comparison:
    """Compare all subjects. Tasks are independent samples; within a task all merges see the same examples.

    Bounds share the experts' side, so that their difference is that of the gap, the gain and ε⁺ alone.
    """
    workspace.check_labels("test", "the comparison")
    subjects, settings = workspace.subjects, workspace.settings
    tables = [_per_example(workspace, subject) for subject in subjects]
    differences = []
    for subject, table in zip(subjects[1:], tables[1:], strict=True):
        for quantity, parts in table.items():
            pairs = [
                [a - b for a, b in zip(mine, first, strict=True)]
                for mine, first in zip(parts, tables[0][quantity], strict=True)
            ]
            estimate = paired_bootstrap(pairs, workspace.alpha, settings.resamples, settings.seed)
            differences.append(Difference(subject.label, quantity, estimate))
    labels = [s.label for s in subjects]
    values = {q: [sum(_mean(v, workspace.alpha) for v in t[q]) for t in tables] for q in tables[0]}
    risks = values[RISK]
    rankings = tuple(
        Ranking(q, _order(labels, values[q]), rank_agreement(values[q], risks, settings.seed))
        for q in values
        if q.startswith("bound")
    )
    return Comparison(
        reference=labels[0],
        resamples=settings.resamples,
        differences=tuple(differences),
        tasks=_per_task(workspace.names, labels, tables),
        coefficients=_fits(workspace),
        test_order=_order(labels, risks),
        rankings=rankings,
    )


RISK, ERROR = "test cross-entropy (nats)", "test 0-1 error"


def _per_example(workspace: Workspace, subject: Subject) -> Mapping[str, Sequence[Values]]:
    """Per quantity the groups of per-example values (one tensor per task) whose α-weighted means add up to it."""
    teachers, merged = workspace.teachers(), workspace.merged(subject)
    labels = [t["test_labels"] for t in teachers]
    risk = [losses(m["test"], y) for m, y in zip(merged, labels, strict=True)]
    error = [zero_one_loss(m["test"], y) for m, y in zip(merged, labels, strict=True)]
    bounds, at = workspace.at_merge(subject)
    table: dict[str, Sequence[Values]] = {RISK: [risk], ERROR: [error]}
    for bound in bounds:
        terms = (at.assumed or at.linear) if bound.reading == "assumed-linear" else at.linear
        along = list(terms.gap.averaged(workspace.beta))
        if bound.reading == "corrected":
            along = [a + e for a, e in zip(along, at.transfer.values, strict=True)]
        table[f"bound, {bound.reading} (nats)"] = [along, [-g for g in terms.gain.averaged(workspace.beta)]]
    return table


def _mean(values: Values, alpha: Sequence[float]) -> float:
    return sum(a * float(v.mean()) for a, v in zip(alpha, values, strict=True))


def paired_bootstrap(groups: Sequence[Values], alpha: Sequence[float], resamples: int, seed: int) -> Estimate:
    """Σ_groups Σ_t α_t mean(values_t) with its bootstrap standard error.

    Args:
        groups: per group one tensor [N_t] per task; the groups of a task are measured on the same examples, or on the
            first of them, which are then resampled with the longest group's.
        alpha: weights [T].
        resamples: number of resamples of whole examples, within tasks.
        seed: of the resampling.

    Returns:
        Estimate; n is the number of examples of the longest groups. Source: Efron 1979. Status: estimated.
    """
    generator = torch.Generator().manual_seed(seed)
    totals, n = torch.zeros(resamples, dtype=torch.float64), 0
    for task, weight in enumerate(alpha):
        parts = [group[task].double() for group in groups]
        size = max(len(p) for p in parts)
        n += size
        chosen = torch.randint(size, (resamples, size), generator=generator)
        for part in parts:
            if len(part) == size:
                totals += weight * part[chosen].mean(dim=1)
            else:
                inside = chosen < len(part)
                picked = part[chosen.clamp_max(len(part) - 1)] * inside
                totals += weight * picked.sum(dim=1) / inside.sum(dim=1).clamp_min(1)
    value = sum(_mean(group, alpha) for group in groups)
    return Estimate(value, float(totals.std()), n, "estimated")


def rank_agreement(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Agreement | None:
    """Kendall's τ-b of two lists of values, beside what it is if every order of ``second`` is equally likely.

    Args:
        first: values.
        second: values of the same merges.
        seed: of the permutations, where there are too many to count.

    Returns:
        None for fewer than three values, and where τ is not defined (all tied). Status: exact, beyond ``ENUMERATED``
        values estimated.
    """
    n = len(first)
    if n < 3:
        return None
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    signs = (torch.sign(x[:, None] - x), torch.sign(y[:, None] - y))
    scale = math.sqrt(float(signs[0].abs().sum() * signs[1].abs().sum()))
    if not scale:
        return None
    if n <= ENUMERATED:
        orders = torch.tensor(list(itertools.permutations(range(n))))
    else:
        generator = torch.Generator().manual_seed(seed)
        orders = torch.rand(SHUFFLES, n, generator=generator).argsort(dim=1)
    taus = torch.stack([(signs[0] * signs[1][order][:, order]).sum() for order in orders]).sort().values / scale
    tau = float((signs[0] * signs[1]).sum()) / scale
    tail = int((1 - LEVEL) / 2 * len(taus))  # so many on either side are left out
    interval = float(taus[tail]), float(taus[-1 - tail])
    return Agreement(tau, interval, float((taus >= tau - 1e-12).double().mean()))


def _order(labels: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(label for _, label in sorted(zip(values, labels, strict=True)))


def _per_task(
    names: Sequence[str], labels: Sequence[str], tables: Sequence[Mapping[str, Sequence[Values]]]
) -> tuple[TaskDifference, ...]:
    """Differences of every task's mean loss and error; the same examples under both merges."""
    found = []
    for label, table in zip(labels[1:], tables[1:], strict=True):
        for index, name in enumerate(names):
            risk, error = (Estimate.of_mean(table[q][0][index] - tables[0][q][0][index]) for q in (RISK, ERROR))
            found.append(TaskDifference(name, label, risk, error))
    return tuple(found)


def _fits(workspace: Workspace) -> tuple[CoefficientFit, ...]:
    """Fit every merge's displacement with one coefficient per task vector."""
    vectors, geometry = workspace.vectors, Geometry.of(workspace.vectors)
    norms = torch.tensor(geometry.norms, dtype=torch.float64)
    products = torch.tensor(geometry.cosines, dtype=torch.float64) * norms[:, None] * norms
    inverse, blocks, fits = torch.linalg.pinv(products, hermitian=True), {"all": list(vectors.base)}, []
    for subject in workspace.subjects:
        displacement = workspace.displacement(subject)
        along = contract(vectors, displacement, blocks)[:, 0].double().cpu()
        values, size = inverse @ along, norm(displacement) ** 2
        share = min(1.0, float(values @ along) / size) if size else 1.0
        fits.append(CoefficientFit(subject.label, tuple(values.tolist()), share))
    return tuple(fits)


def worst_first(part: Comparison) -> list[str]:
    """Return the tasks by the largest risk that any other merge adds to the first's, the largest first."""
    most: dict[str, float] = {}
    for row in part.tasks:
        most[row.task] = max(row.risk.value, most.get(row.task, -math.inf))
    return sorted(most, key=most.__getitem__, reverse=True)


def warning() -> str:
    """Return what a ranking by the bound cannot say."""
    return (
        "By (5a) the linearised total is the risk of the linearised merge, measured on held-out examples, plus one "
        "constant for all merges; the corrected one adds the measured transfer error. Ranking merges by either is "
        "circular: it repeats a measurement of the test risk, no evidence that the theory tells good merges from bad."
    )


def table(part: Comparison) -> Table:
    """Return the differences, a column per merge, and the rankings."""
    title = f"Differences to {part.reference} (± bootstrap standard error, {part.resamples} resamples)"
    table = Table("quantity", title=plain(title, "table.title"))
    for other in dict.fromkeys(d.merge for d in part.differences):
        table.add_column(plain(other), justify="right")
    for quantity in dict.fromkeys(d.quantity for d in part.differences):
        cells = [d.difference for d in part.differences if d.quantity == quantity]
        table.add_row(quantity, *(f"{d.value:+.3f} ± {d.stderr:.3f}" for d in cells))
    table.add_section()
    for task in worst_first(part):
        risks = [row.risk for row in part.tasks if row.task == task]
        table.add_row(plain(f"cross-entropy of {task}"), *(f"{r.value:+.3f} ± {r.stderr:.3f}" for r in risks))
    table.caption_justify = "left"
    lines = [f"{r.by}: {' < '.join(r.order)}{_agreement(r)}" for r in part.rankings]
    table.caption = plain("\n".join([*lines, warning()]), "table.caption")
    return table


def _agreement(ranking: Ranking) -> str:
    found = ranking.agreement
    if found is None:
        return ""
    low, high = found.chance
    return f" (Kendall τ with the test {tau(found.kendall_tau)}; by chance {tau(low)} to {tau(high)})"

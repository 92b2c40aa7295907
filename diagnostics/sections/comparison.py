"""Several merges side by side: differences with paired bootstrap errors; the order by bound and by test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from bounds.scores import zero_one_loss
from bounds.types import Estimate
from diagnostics.figures.numbers import tau
from diagnostics.subject import Subject
from diagnostics.terms.linear import losses
from diagnostics.workspace import Workspace
from merging.commands import plain


@dataclass(frozen=True)
class Difference:
    """``quantity`` of ``merge`` minus that of the first merge, with the standard error of a paired bootstrap."""

    merge: str
    quantity: str
    difference: Estimate


@dataclass(frozen=True)
class Ranking:
    """The merges ordered by a bound, best first, and Kendall's τ with the order by test risk (1: the same order)."""

    by: str
    order: tuple[str, ...]
    kendall_tau: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences to the first merge (``reference``) and rankings; ``resamples`` bootstrap draws of whole examples."""

    reference: str
    resamples: int
    differences: tuple[Difference, ...]
    test_order: tuple[str, ...]
    rankings: tuple[Ranking, ...]


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
        Ranking(q, _order(labels, values[q]), rank_agreement(values[q], risks)) for q in values if q.startswith("bound")
    )
    return Comparison(
        reference=labels[0],
        resamples=settings.resamples,
        differences=tuple(differences),
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
        terms = at.assumed if bound.reading == "assumed-linear" else at.linear
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


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's τ between two lists of values; None for fewer than two or where it is not defined (all tied)."""
    if len(first) < 2:
        return None
    from scipy.stats import kendalltau  # takes most of a second to import, which a single cached report can save

    result: Any = kendalltau(first, second)
    tau = float(result.statistic)
    return None if tau != tau else tau


def _order(labels: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(label for _, label in sorted(zip(values, labels, strict=True)))


def table(part: Comparison) -> Table:
    """Return the differences, a column per merge, and the rankings."""
    title = f"Differences to {part.reference} (± bootstrap standard error, {part.resamples} resamples)"
    table = Table("quantity", title=plain(title, "table.title"))
    for other in dict.fromkeys(d.merge for d in part.differences):
        table.add_column(plain(other), justify="right")
    for quantity in dict.fromkeys(d.quantity for d in part.differences):
        cells = [d.difference for d in part.differences if d.quantity == quantity]
        table.add_row(quantity, *(f"{d.value:+.3f} ± {d.stderr:.3f}" for d in cells))
    rankings = (f"{r.by}: {' < '.join(r.order)} (Kendall τ with the test {tau(r.kendall_tau)})" for r in part.rankings)
    table.caption = plain("; ".join(rankings), "table.caption")
    return table

"""What can be certified from data: statements paid for out of delta (docs/theory.md sections 8 and 11).

Nothing here needs linearity, QSB or a population quantity; what is assumed is only how the data were drawn
and used. Results are bounds whose margin has status ``certified``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bounds.pac_bayes import kl_inverse
from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_delta, check_nonnegative, check_weights

Method = Literal["clopper-pearson", "kl"]
METHODS: tuple[Method, ...] = ("clopper-pearson", "kl")

FRESH = "the labelled examples are independent and unused in training and choosing the model"


@dataclass(frozen=True)
class Count:
    """``errors`` out of ``n`` examples; with method "kl" a sum of losses in [0, 1] will do.

    Raises:
        InputError: n < 1, or errors outside [0, n].
    """

    errors: float
    n: int

    def __post_init__(self) -> None:
        if check_nonnegative(self.errors, "errors") > check_count(self.n, "n"):
            refuse("errors", expected=f"<= n = {self.n}", got=self.errors, cure="pass a count, not a rate")


def held_out(
    errors: float, n: int, delta: float, method: Method = "clopper-pearson", models_looked_at: int = 1
) -> Bound:
    """Certify the error of a model on n fresh labelled examples: (9), (13).

    The examples are independent; they need not have one distribution (splits drawn class by class, tasks pooled): the
    statement is about the mean of their error rates. It covers a randomised model as well, if every example was
    judged by a draw of its own: (16).

    Args:
        errors: number of errors (a whole number for Clopper-Pearson; for "kl" any sum of losses in [0, 1]).
        n: number of examples, fixed in advance.
        delta: failure probability.
        method: "clopper-pearson" (0-1 loss; with the correction (13) for examples of different distributions) or
            "kl" (kl^-1(errors/n | ln(K/delta)/n)).
        models_looked_at: K, the size of a list of models fixed before these examples are seen, of which this is
            one: each pays delta/K. A model designed after a look at another's result is on no such list.

    Returns:
        Bound = error rate + margin, certified.

    Raises:
        InputError: delta outside (0, 1), n < 1, errors outside [0, n] or not whole, unknown method, K < 1.

    Source: docs/theory.md (9), (13), (16).
    """
    count = Count(errors, n)
    paid = check_delta(delta) / check_count(models_looked_at, "models looked at")
    if method not in METHODS:
        refuse("method", expected=METHODS, got=method, cure="choose one of these")
    upper = float(kl_inverse(errors / n, -math.log(paid) / n)) if method == "kl" else _clopper_pearson(count, paid)
    note = f"{method}, n = {n}, {models_looked_at} model(s) looked at, each at {paid:.3g}"
    terms = _rate_and_margin("err̂", "held-out error", "(9)", errors / n, upper, n, note)
    return Bound(
        name="held-out", reading="certificate", terms=terms, delta=delta, assumptions=(FRESH,), trivial_risk=1.0
    )


def _clopper_pearson(count: Count, delta: float) -> float:
    """U(k) of (13): Clopper-Pearson, raised where examples of different distributions would break it."""
    if int(count.errors) != count.errors:
        refuse("errors", expected="a whole number", got=count.errors, cure="use method 'kl' for losses in [0, 1]")
    k, n = int(count.errors), count.n
    if k >= n - 1:  # the worst case is known exactly: n - 1 examples that always err, and one that rarely does not
        return 1.0 if k == n else 1.0 - delta / n
    from scipy.special import betaincinv  # as in bounds.pac_bayes.divergences

    return max(float(betaincinv(k + 1, n - k, 1.0 - delta)), (k + 1) / n)


def _rate_and_margin(
    symbol: str, name: str, equation: str, rate: float, upper: float, n: int, note: str
) -> tuple[Term, Term]:
    return (
        Term(symbol=symbol, name=name, equation=equation, estimate=Estimate(rate, 0.0, n)),
        Term(
            symbol="margin",
            name="what certainty costs",
            equation=equation,
            estimate=Estimate(upper - rate, 0.0, n, "certified"),
            note=note,
        ),
    )


def mixture(
    counts: Sequence[Count | Bound],
    alpha: Sequence[float] | Tensor,
    delta: float,
    method: Method = "clopper-pearson",
    models_looked_at: int = 1,
) -> Bound:
    """Certify an alpha-weighted error from one certificate per task, each at delta/T: (12).

    Args:
        counts: per task, a count or a certificate already made at delta/T or less.
        alpha: evaluation weights [T] on the simplex.
        delta: failure probability of the whole.
        method: as ``held_out``.
        models_looked_at: as ``held_out``.

    Returns:
        Bound with one term per task, certified.

    Raises:
        InputError: as ``held_out``; weights off the simplex; a bound that is not certified or costs more.

    Source: docs/theory.md (12).
    """
    weights = check_weights(alpha, len(counts), "alpha")
    share = check_delta(delta) / len(counts)
    parts = [_certified(c, share, method, models_looked_at) for c in counts]
    terms = tuple(_part_term(t, "error", "(12)", b, w) for t, (b, w) in enumerate(zip(parts, weights, strict=True)))
    return Bound(
        name="mixture of certificates",
        reading="certificate",
        terms=terms,
        delta=delta,
        assumptions=_union_of_assumptions(parts),
        trivial_risk=1.0,
    )


def pooled(
    counts: Sequence[Count], delta: float, models_looked_at: int = 1, method: Method = "clopper-pearson"
) -> Bound:
    """Certify the error weighted by alpha_t = n_t/n with one count at n = sum n_t: (12), (13).

    The tasks' examples are independent and not identically distributed, which both methods allow.

    Args:
        counts: per task, errors (for "kl" a sum of losses in [0, 1] will do) and n_t, fixed in advance.
        delta: failure probability.
        models_looked_at: K models looked at, each at delta/K.
        method: as ``held_out``.

    Raises:
        InputError: no task; as ``held_out``.

    Source: docs/theory.md (12), (13). Status: certified.
    """
    if not counts:
        refuse("counts", expected="at least one task", got="none", cure="pass one count per task")
    errors, n = sum(c.errors for c in counts), sum(c.n for c in counts)
    bound = held_out(errors, n, delta, method, models_looked_at)
    weights = tuple(c.n / n for c in counts)
    note = f"weights are n_t/n = {', '.join(f'{w:.3g}' for w in weights)}"
    return Bound(
        name="pooled certificate",
        reading="certificate",
        terms=bound.terms,
        delta=delta,
        assumptions=(FRESH, note),
        trivial_risk=1.0,
    )


def disagreement(
    disagreements: Sequence[Count | Bound],
    teacher_errors: Sequence[Count | Bound],
    alpha: Sequence[float] | Tensor,
    delta: float,
    method: Method = "clopper-pearson",
    models_looked_at: int = 1,
) -> Bound:
    """Certify the student's error without labels of its own: (11).

    err(student) <= sum_t alpha_t (err(teacher_t) + Pr[student's label != teacher's label]); 2T certificates
    at delta/(2T) each.

    Args:
        disagreements: per task, a count on unlabelled data independent of theta_0, the task vectors and
            the teachers and unused for the student, or a certificate at delta/(2T)
            (``coefficient_pac_bayes`` of the disagreement, when the coefficients were learned on these data).
        teacher_errors: per task, a count on fresh labelled data, or a certificate at delta/(2T).
        alpha: evaluation weights [T] on the simplex.
        delta: failure probability of the whole.
        method: as ``held_out``.
        models_looked_at: K students looked at on the unlabelled data, each at delta/(2TK); teachers are
            fixed.

    Returns:
        Bound with 2T terms, certified.

    Raises:
        InputError: as ``mixture``; unequal numbers of tasks.

    Source: docs/theory.md (11).
    """
    tasks = len(disagreements)
    weights = check_weights(alpha, tasks, "alpha")
    if len(teacher_errors) != tasks:
        refuse("teacher errors", expected=f"{tasks} tasks", got=len(teacher_errors), cure="give one per task")
    share = check_delta(delta) / (2 * tasks)
    students = [_certified(c, share, method, models_looked_at) for c in disagreements]
    teachers = [_certified(c, share, method, 1) for c in teacher_errors]
    terms = [
        _part_term(t, name, "(11)", part, weights[t])
        for name, parts in (("teacher's error", teachers), ("disagreement", students))
        for t, part in enumerate(parts)
    ]
    assumptions = (
        *_union_of_assumptions([*teachers, *students]),
        "unlabelled data are independent of the teachers",
    )
    return Bound(
        name="label-free certificate",
        reading="certificate",
        terms=tuple(terms),
        delta=delta,
        assumptions=assumptions,
        trivial_risk=1.0,
    )


def _certified(part: Count | Bound, share: float, method: Method, models_looked_at: int) -> Bound:
    if isinstance(part, Count):
        return held_out(part.errors, part.n, share, method, models_looked_at)
    if part.status not in ("certified", "exact") or part.delta > share * (1.0 + 1e-9):
        got = f"{part.status} at delta {part.delta:g}"
        refuse(
            part.name,
            expected=f"certified at delta <= {share:g}",
            got=got,
            cure="make it at its share of delta",
        )
    return part


def _part_term(task: int, name: str, equation: str, part: Bound, weight: float) -> Term:
    note = "; ".join(filter(None, (f"{part.name} at delta {part.delta:.3g}", *(t.note for t in part.terms))))
    n = max(t.estimate.n for t in part.terms)
    estimate = Estimate(part.value, 0.0, n, "certified")
    return Term(
        symbol=f"α_{task} {name}_{task}",
        name=name,
        equation=equation,
        estimate=estimate.scaled(weight),
        per_task=(estimate,),
        note=note,
    )


def _union_of_assumptions(parts: Sequence[Bound]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a for part in parts for a in part.assumptions))

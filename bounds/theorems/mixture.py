"""The theorems, assembled from statistics into bounds whose terms sum to their value (docs/theory.md 3-7).

Nothing here touches a network: every argument is a number with its standard error and status.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from bounds.distillation import Ladder
from bounds.heterogeneity import CrossRisk
from bounds.pac_bayes import GRIDS, POINCARE, QSB
from bounds.theorems.choice import Moments, PosteriorChoice, choose_posterior
from bounds.theorems.direct import direct_form, pooled_direct_form
from bounds.theorems.experts import (
    HELD_OUT,
    IID,
    AnchorStatistics,
    MergeAnchor,
    PosteriorStatistics,
    amplified,
    checked_weights,
    complexity_terms,
    expert_term,
    heterogeneity_term,
    prices,
)
from bounds.theorems.single_model import theorem2, vertices
from bounds.types import Bound, Estimate, Term, refuse, weighted_sum
from bounds.validation import check_estimate

__all__ = [
    "AnchorStatistics",
    "MergeAnchor",
    "Moments",
    "PosteriorChoice",
    "PosteriorStatistics",
    "argmax_error",
    "choose_posterior",
    "direct_form",
    "pooled_direct_form",
    "theorem1",
    "theorem2",
    "theorem3",
    "vertices",
]

Rungs = Literal["total_variation", "minimum", "pinsker", "bretagnolle_huber"]


def theorem1(
    posteriors: Sequence[PosteriorStatistics],
    heterogeneity: Estimate | CrossRisk | Sequence[Tensor],
    alpha: Sequence[float] | Tensor,
    beta: Sequence[float] | Tensor,
    *,
    delta: float,
    log_price: float | Sequence[float] | None = None,
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound the mixture: (4), for the network as it is, linear or not.

    L_alpha(Q_beta) <= sum_j beta_j {A_j [L^_j(Q_j) + (KL_j + price_j)/(eta_j n_j)] + B_j flatness_j} + H_Q.

    Args:
        posteriors: T experts.
        heterogeneity: H_Q itself, the cross-risk, or the held-out losses [m_i, T] per task.
        alpha: evaluation weights [T] on the simplex.
        beta: merging weights [T] on the simplex.
        delta: failure probability, for all alpha, beta and posteriors at once.
        log_price: ln(T G_j/delta) per expert or one for all (``union_price``); ln(T/delta) when None.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: weights off the simplex, counts that differ, or a price that does not pay for delta.

    Source: docs/theory.md (4). Status: worst of the inputs, never certified.
    """
    evaluation, merging = checked_weights(posteriors, alpha, beta)
    price = prices(log_price, len(posteriors), delta)
    factors = [q.factors for q in posteriors]
    risks = [amplified(a, q.posterior_risk) for q, (a, _) in zip(posteriors, factors, strict=True)]
    flat = [amplified(b, q.flatness) for q, (_, b) in zip(posteriors, factors, strict=True)]
    complexity = complexity_terms(posteriors, price)
    terms = (
        expert_term("Σβ_j A_j L̂_j(Q_j)", "posteriors' own risk", "(4)", risks, merging),
        expert_term("Σβ_j A_j (KL_j + price_j)/(η_j n_j)", "complexity", "(4)", complexity, merging),
        expert_term("Σβ_j B_j E E_Q⟨∇ℓ, Σ∇ℓ⟩", "Poincaré flatness", "(4)", flat, merging),
        heterogeneity_term(heterogeneity, evaluation, merging),
    )
    return Bound("Theorem 1", "posterior", terms, delta, (IID, GRIDS, QSB, POINCARE, HELD_OUT), trivial_risk)


def theorem3(
    ladder: Ladder,
    teacher_risk: Sequence[Estimate],
    bayes_risk: Sequence[Estimate] | None = None,
    *,
    rung: Rungs = "total_variation",
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound the student's (excess) risk by the teachers' and what imitation leaves: (8).

    R_alpha(q) - R*_alpha <= sum_t alpha_t [R_t(p_t) - R*_t] + rung.

    Args:
        ladder: from ``bounds.distillation.ladder`` (alpha and the cost bound M are in it).
        teacher_risk: R_t(p_t) = E sum_k p_t(k|x) c(k, y) per task, in [0, M].
        bayes_risk: R*_t per task; None bounds the risk itself instead of the excess.
        rung: which inequality of the ladder.
        trivial_risk: risk of the predictor that knows nothing (the excess, if ``bayes_risk`` is given).

    Returns:
        Bound with delta 0: it is about population quantities, here estimated.

    Raises:
        InputError: wrong number of risks, a risk outside [0, M], or a Bayes risk above its teacher's.

    Source: docs/theory.md (8). Status: worst of the inputs.
    """
    rungs = {name: getattr(ladder, name) for name in ("total_variation", "minimum", "pinsker", "bretagnolle_huber")}
    if rung not in rungs:
        refuse("rung", expected=tuple(rungs), got=rung, cure="choose one of these")
    check_risks(teacher_risk, ladder, "teacher risk")
    excess = list(teacher_risk)
    if bayes_risk is not None:
        check_risks(bayes_risk, ladder, "Bayes risk")
        excess = [weighted_sum([r, b], [1.0, -1.0]) for r, b in zip(teacher_risk, bayes_risk, strict=True)]
        for value in excess:
            check_estimate(value, "teacher's excess risk")
    symbol = "Σα_t R_t(p_t)" if bayes_risk is None else "Σα_t [R_t(p_t) − R_t*]"
    step = rungs[rung]
    terms = (
        expert_term(symbol, "teachers' risk", "(8)", excess, ladder.alpha),
        Term(f"M·{step.name}", "distillation", "(8)", step.total, step.per_task),
    )
    assumptions = ("the cost lies in [0, M]", "p and q are probabilities at temperature 1", "unused data")
    return Bound("Theorem 3", "risk" if bayes_risk is None else "excess risk", terms, 0.0, assumptions, trivial_risk)


def check_risks(risks: Sequence[Estimate], ladder: Ladder, what: str) -> None:
    """Refuse anything but one risk in [0, M] per task of the ladder."""
    if len(risks) != len(ladder.alpha):
        refuse(what, expected=f"{len(ladder.alpha)} tasks", got=len(risks), cure="give one per task")
    for risk in risks:
        if check_estimate(risk, what).value > ladder.cost_bound:
            refuse(what, expected=f"<= M = {ladder.cost_bound}", got=risk.value, cure="use the cost's units")


def argmax_error(ladder: Ladder, teacher_error: Sequence[Estimate]) -> Bound:
    """Bound the 0-1 error of the student's argmax: err(q) <= err(p) + Pr[argmax q != argmax p].

    Args:
        ladder: carries the disagreement and alpha.
        teacher_error: error of argmax p_t per task, in [0, 1].

    Raises:
        InputError: wrong number of errors, or one outside [0, 1].

    Source: docs/theory.md section 7. Status: worst of the inputs (see ``certificates.disagreement``).
    """
    check_risks(teacher_error, replace(ladder, cost_bound=1.0), "teacher error")
    terms = (
        expert_term("Σα_t err(p_t)", "teachers' error", "7", teacher_error, ladder.alpha),
        Term("Σα_t Pr[q ≠ p]", "disagreement", "7", ladder.disagreement.total, ladder.disagreement.per_task),
    )
    return Bound("student's error", "argmax", terms, 0.0, ("unused data",), 1.0)

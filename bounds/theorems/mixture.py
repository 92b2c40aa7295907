"""Theorem 1, the bound for the mixture of posteriors (docs/theory.md section 4)."""

from __future__ import annotations

import math

from bounds.pac_bayes import GRIDS, POINCARE, QSB
from bounds.theorems.experts import HELD_OUT, IID, Experts, PosteriorStatistics, amplified
from bounds.theorems.terms import COMPLEXITY, FLATNESS, POSTERIORS_RISK
from bounds.theorems.weights import Weights, check_tasks
from bounds.types import Bound


def theorem1(
    experts: Experts[PosteriorStatistics], weights: Weights, *, delta: float, trivial_risk: float = math.inf
) -> Bound:
    """Bound the mixture: (4), for the network as it is, linear or not.

    L_alpha(Q_beta) <= sum_j beta_j {A_j [L^_j(Q_j) + (KL_j + price_j)/(eta_j n_j)] + B_j flatness_j} + H_Q.

    Args:
        experts: T posteriors, their cross-risk, and what they were chosen from.
        weights: alpha and beta [T].
        delta: failure probability, for all alpha, beta and posteriors at once.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: weights of another number of tasks, or delta outside (0, 1).

    Source: docs/theory.md (4). Status: worst of the inputs, never certified.
    """
    check_tasks(len(weights), len(experts), "weights")
    risks = [amplified(q.factors[0], q.posterior_risk) for q in experts.statistics]
    terms = (
        POSTERIORS_RISK.average(risks, weights.beta),
        COMPLEXITY.elsewhere("(4)").average(experts.complexity(delta), weights.beta),
        FLATNESS.elsewhere("(4)").average(experts.flatness(), weights.beta),
        experts.heterogeneity(weights),
    )
    return Bound(
        name="Theorem 1",
        reading="posterior",
        terms=terms,
        delta=delta,
        assumptions=(IID, GRIDS, QSB, POINCARE, HELD_OUT),
        trivial_risk=trivial_risk,
    )

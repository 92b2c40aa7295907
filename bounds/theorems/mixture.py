"""Theorem 1, the bound for the mixture of posteriors (docs/theory.md section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from bounds.heterogeneity import CrossRisk
from bounds.pac_bayes import GRIDS, POINCARE, QSB
from bounds.theorems.experts import (
    HELD_OUT,
    IID,
    PosteriorStatistics,
    amplified,
    checked_weights,
    complexity_terms,
    expert_term,
    heterogeneity_term,
    prices,
)
from bounds.types import Bound, Estimate


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

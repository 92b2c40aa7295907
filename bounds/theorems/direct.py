"""The direct form: PAC-Bayes at the merged model itself, as a comparator (docs/theory.md section 5).

It needs labelled samples of every task and no H_Q; it grows with ||theta_m - theta_0|| through the KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from bounds.pac_bayes import GRIDS, IID, POINCARE, QSB
from bounds.pac_bayes.posterior import checked_price
from bounds.theorems.experts import AnchorStatistics, amplified, complexity_terms, expert_term, prices
from bounds.types import Bound, Estimate, Term, refuse, weighted_sum, worst_status
from bounds.validation import check_positive, check_weights

ASSUMPTIONS = (
    IID,
    GRIDS,
    QSB,
    POINCARE,
    "the loss is convex and gamma-smooth in the scores",
    "linearised network",
)


def direct_form(
    anchors: Sequence[AnchorStatistics],
    alpha: Sequence[float] | Tensor,
    *,
    delta: float,
    log_price: float | Sequence[float] | None = None,
    gamma: float = 0.5,
    reading: str = "linearised",
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound L_alpha(theta_m) with Q = N(theta_m, S_t) on every task and a price for T statements.

    Args:
        anchors: per task t, statistics of the anchor theta_m on S_t (``own_risk`` = L^_t(theta_m),
            ``displacement_sq`` = ||theta_m - theta_0||^2 per block).
        alpha: evaluation weights [T] on the simplex.
        delta: failure probability.
        log_price: ln(T G_t/delta) per task or one for all; ln(T/delta) when None.
        gamma: smoothness of the loss in the scores.
        reading: goes into the result.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: weights off the simplex, counts that differ, a price that does not pay for delta.

    Source: docs/theory.md section 5. Status: worst of the inputs, never certified.
    """
    weights = check_weights(alpha, len(anchors), "alpha")
    price = prices(log_price, len(anchors), delta)
    risk = [amplified(t.factors[0], t.own_risk) for t in anchors]
    noise = [amplified(t.factors[0], t.noise(gamma)) for t in anchors]
    flat = [amplified(t.factors[1], t.flatness) for t in anchors]
    complexity = complexity_terms(anchors, price)
    terms = (
        expert_term("Σα_t A_t L̂_t(θ_m)", "risk of the merge", "5, direct", risk, weights),
        expert_term("Σα_t A_t (γ/2)Σσ²κ̂_t", "kernel-weighted noise", "5, direct", noise, weights),
        expert_term("Σα_t A_t (KL + price_t)/(η_t n_t)", "complexity", "5, direct", complexity, weights),
        expert_term("Σα_t B_t E E_Q⟨∇ℓ, Σ∇ℓ⟩", "Poincaré flatness", "5, direct", flat, weights),
    )
    return Bound("direct", reading, terms, delta, ASSUMPTIONS, trivial_risk)


def pooled_direct_form(
    anchors: Sequence[AnchorStatistics],
    alpha: Sequence[float] | Tensor,
    lambda_: float,
    *,
    delta: float,
    price: float | None = None,
    gamma: float = 0.5,
    reading: str = "linearised",
    trivial_risk: float = math.inf,
) -> Bound:
    """Bound L_alpha(theta_m) with one KL for all tasks: independent samples, eta_t = lambda alpha_t / n_t.

    The moment generating functions multiply, so with Q = N(theta_m, S) common to the tasks
    sum_t alpha_t (1 - eta_t C_t/2) L_t(Q) <= sum_t alpha_t L^_t(Q) + (KL + price)/lambda
    + sum_t alpha_t (eta_t/2) flatness_t; the left side is at least L_alpha(Q) / max_t A_t.

    Args:
        anchors: as ``direct_form``, with the same displacement and sigma in all; their ``eta`` is not used.
        alpha: evaluation weights [T] on the simplex; tasks of weight 0 do not count.
        lambda_: common rate > 0, fixed in advance or on the grid paid for.
        delta: failure probability.
        price: ln(G/delta), without T (``union_price`` with one task); ln(1/delta) when None.
        gamma: smoothness of the loss in the scores.
        reading: goes into the result.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: posteriors that differ between tasks, weights off the simplex, eta_t C_t >= 2.

    Source: docs/theory.md section 5. Status: worst of the inputs, never certified.
    """
    weights = check_weights(alpha, len(anchors), "alpha")
    posteriors = {(t.displacement_sq, t.sigma) for t in anchors}
    if len(posteriors) != 1:
        refuse(
            "posteriors",
            expected="one N(theta_m, S)",
            got=len(posteriors),
            cure="use one sigma for all tasks",
        )
    price = checked_price(price, delta)
    check_positive(lambda_, "lambda")
    used = [(w, t.with_eta(lambda_ * w / t.n)) for w, t in zip(weights, anchors, strict=True) if w > 0.0]
    factors = [t.factors[0] for _, t in used]
    largest = max(factors, key=lambda a: a.value)
    a = Estimate(largest.value, largest.stderr, largest.n, worst_status([f.status for f in factors]))

    def pooled(symbol: str, name: str, values: Sequence[Estimate]) -> Term:
        total = weighted_sum(values, [w for w, _ in used])
        return Term(symbol, name, "5, pooled", amplified(a, total), tuple(values))

    kl = Estimate((used[0][1].kl + price) / lambda_)
    terms = (
        pooled("A Σα_t L̂_t(θ_m)", "risk of the merge", [t.own_risk for _, t in used]),
        pooled("A Σα_t (γ/2)Σσ²κ̂_t", "kernel-weighted noise", [t.noise(gamma) for _, t in used]),
        Term("A (KL + price)/Λ", "complexity", "5, pooled", amplified(a, kl)),
        pooled(
            "A Σα_t (η_t/2) E E_Q⟨∇ℓ, Σ∇ℓ⟩",
            "Poincaré flatness",
            [t.flatness.scaled(t.eta / 2.0) for _, t in used],
        ),
    )
    assumptions = (*ASSUMPTIONS, "the tasks' samples are independent")
    return Bound("pooled direct", reading, terms, delta, assumptions, trivial_risk)

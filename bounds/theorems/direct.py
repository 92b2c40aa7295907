"""The direct form: PAC-Bayes at the merged model itself, as a comparator (docs/theory.md section 5).

It needs labelled samples of every task and no H_Q; it grows with ||theta_m - theta_0|| through the KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from bounds.pac_bayes import GRIDS, IID, POINCARE, QSB, price
from bounds.theorems.experts import AnchorStatistics, amplified, complexities, prices
from bounds.theorems.terms import COMPLEXITY, FLATNESS, MERGE_RISK, NOISE, TermKind
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
    log_choices: float | Sequence[float] = 0.0,
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
        log_choices: ln G_t, how many posteriors each was chosen from, per task or one for all.
        gamma: smoothness of the loss in the scores.
        reading: goes into the result.
        trivial_risk: risk of the predictor that knows nothing.

    Raises:
        InputError: weights off the simplex, counts that differ, a negative ln G, delta outside (0, 1).

    Source: docs/theory.md section 5. Status: worst of the inputs, never certified.
    """
    weights = check_weights(alpha, len(anchors), "alpha")
    paid = prices(log_choices, len(anchors), delta)
    risk = [amplified(t.factors[0], t.own_risk) for t in anchors]
    noise = [amplified(t.factors[0], t.noise(gamma)) for t in anchors]
    flat = [amplified(t.factors[1], t.flatness) for t in anchors]
    terms = (
        MERGE_RISK.elsewhere("5, direct", "Σα_t A_t L̂_t(θ_m)").average(risk, weights),
        NOISE.elsewhere("5, direct", "Σα_t A_t (γ/2)Σσ²κ̂_t").average(noise, weights),
        COMPLEXITY.elsewhere("5, direct", "Σα_t A_t (KL + price_t)/(η_t n_t)").average(
            complexities(anchors, paid), weights
        ),
        FLATNESS.elsewhere("5, direct", "Σα_t B_t E E_Q⟨∇ℓ, Σ∇ℓ⟩").average(flat, weights),
    )
    return Bound(
        name="direct", reading=reading, terms=terms, delta=delta, assumptions=ASSUMPTIONS, trivial_risk=trivial_risk
    )


def pooled_direct_form(
    anchors: Sequence[AnchorStatistics],
    alpha: Sequence[float] | Tensor,
    lambda_: float,
    *,
    delta: float,
    log_choices: float = 0.0,
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
        log_choices: ln G, how many posteriors and rates this one was chosen from.
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
    check_positive(lambda_, "lambda")
    used = [(w, t.with_eta(lambda_ * w / t.n)) for w, t in zip(weights, anchors, strict=True) if w > 0.0]
    factors = [t.factors[0] for _, t in used]
    largest = max(factors, key=lambda a: a.value)
    a = Estimate(largest.value, largest.stderr, largest.n, worst_status([f.status for f in factors]))

    def pooled(kind: TermKind, symbol: str, values: Sequence[Estimate]) -> Term:
        total = weighted_sum(values, [w for w, _ in used])
        return kind.elsewhere("5, pooled", symbol).term(amplified(a, total), values)

    kl = Estimate((used[0][1].kl + price(1, delta, log_choices)) / lambda_)
    terms = (
        pooled(MERGE_RISK, "A Σα_t L̂_t(θ_m)", [t.own_risk for _, t in used]),
        pooled(NOISE, "A Σα_t (γ/2)Σσ²κ̂_t", [t.noise(gamma) for _, t in used]),
        COMPLEXITY.elsewhere("5, pooled", "A (KL + price)/Λ").term(amplified(a, kl)),
        pooled(FLATNESS, "A Σα_t (η_t/2) E E_Q⟨∇ℓ, Σ∇ℓ⟩", [t.flatness.scaled(t.eta / 2.0) for _, t in used]),
    )
    assumptions = (*ASSUMPTIONS, "the tasks' samples are independent")
    return Bound(
        name="pooled direct",
        reading=reading,
        terms=terms,
        delta=delta,
        assumptions=assumptions,
        trivial_risk=trivial_risk,
    )

"""PAC-Bayes in the space of merging coefficients (docs/theory.md (10))."""

from __future__ import annotations

import math

from torch import Tensor

from bounds.divergences import kl_inverse
from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_delta, check_nonnegative, check_positive


def coefficient_pac_bayes(
    empirical_error: float,
    n: int,
    coefficients: Tensor,
    prior_coefficients: Tensor,
    scale: float,
    *,
    delta: float,
    draws: int | None,
    delta_draws: float | None = None,
    grid_size: int = 1,
    posteriors_seen: int = 1,
) -> Bound:
    """Certify the Gibbs error of N(lambda, s^2 I) over merging coefficients by PAC-Bayes-kl: (10).

    e(Q) <= kl^-1( kl^-1(e_m | ln(G'/delta')/m) | (KL + ln(2 sqrt(n) G/delta))/n ),
    KL = ||lambda - prior||^2/(2 s^2).

    Args:
        empirical_error: e_m, the mean over m draws of lambda of the error rate (or loss in [0, 1]) on the n
            labelled examples; with ``draws=None`` the exact posterior mean.
        n: number of labelled examples; lambda may have been learned on them.
        coefficients: posterior mean, [T, L] or any shape.
        prior_coefficients: prior mean, same shape, from a list fixed without these data.
        scale: s > 0, common to prior and posterior, from that list.
        delta: failure probability of the PAC-Bayes step.
        draws: m, independent draws from the final posterior; None when the mean is exact.
        delta_draws: delta', failure probability of the step from draws to mean; ``delta`` when None.
        grid_size: G, length of the list of (prior, s).
        posteriors_seen: G', a limit set in advance on the posteriors whose draws are looked at, each with fresh
            noise (1 if drawn after the posterior was fixed).

    Returns:
        Bound at delta + delta' (delta alone when exact) = empirical error + Monte-Carlo margin + margin,
        certified. It bounds the randomised classifier; the majority vote errs at most twice as much; for the
        model at lambda itself use ``held_out``.

    Raises:
        InputError: shapes differ, s <= 0, an error outside [0, 1], counts below 1, deltas outside (0, 1).

    Source: docs/theory.md (10).
    """
    if not 0.0 <= empirical_error <= 1.0:
        refuse("empirical error", expected="in [0, 1]", got=empirical_error, cure="pass a rate, not a count")
    kl = coefficient_kl(coefficients, prior_coefficients, scale)
    check_count(n, "n")
    inner, total_delta, note = empirical_error, check_delta(delta), "posterior mean exact"
    if draws is not None:
        paid = check_delta(delta if delta_draws is None else delta_draws, "delta of the draws")
        nats = math.log(check_count(posteriors_seen, "posteriors seen") / paid) / check_count(draws, "draws")
        inner = float(kl_inverse(empirical_error, nats))
        total_delta = check_delta(delta + paid, "sum of the deltas")
        note = f"m = {draws}, delta' = {paid:g}, posteriors seen {posteriors_seen}"
    price = math.log(2.0 * math.sqrt(n) * check_count(grid_size, "grid size") / delta)
    upper = float(kl_inverse(inner, (kl + price) / n))
    monte_carlo = Estimate(inner - empirical_error, 0.0, draws or 0, "exact" if draws is None else "certified")
    terms = (
        Term("ê_m", "empirical Gibbs error", "(10)", Estimate(empirical_error, 0.0, n)),
        Term("kl⁻¹(ê_m) − ê_m", "Monte-Carlo margin", "(10)", monte_carlo, note=note),
        Term(
            "kl⁻¹ margin",
            "PAC-Bayes margin",
            "(10)",
            Estimate(upper - inner, 0.0, n, "certified"),
            note=f"KL = {kl:.6g} nats, G = {grid_size}, delta = {delta:g}",
        ),
    )
    assumptions = (
        "the labelled examples are i.i.d. and were not used for theta_0, the experts or the list of priors",
        "the bound is on the randomised (Gibbs) classifier",
    )
    return Bound("coefficient PAC-Bayes", "certificate", terms, total_delta, assumptions, 1.0)


def coefficient_kl(coefficients: Tensor, prior_coefficients: Tensor, scale: float) -> float:
    """Return ||lambda - lambda_prior||^2 / (2 s^2) in nats: it counts T * L coefficients, not parameters.

    Raises:
        InputError: shapes differ, non-finite entries, s <= 0.

    Source: docs/theory.md (10). Status: exact.
    """
    if coefficients.shape != prior_coefficients.shape:
        got = (tuple(coefficients.shape), tuple(prior_coefficients.shape))
        refuse("coefficients", expected="one shape", got=got, cure="expand the prior to [T, L]")
    difference = coefficients.detach().double() - prior_coefficients.detach().double()
    squared = check_nonnegative(float((difference**2).sum()), "squared distance of the coefficients")
    return squared / (2.0 * check_positive(scale, "scale s") ** 2)

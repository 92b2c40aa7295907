"""PAC-Bayes in the space of merging coefficients (docs/theory.md (10))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bounds.pac_bayes import kl_inverse
from bounds.types import Bound, Estimate, Term, refuse
from bounds.validation import check_count, check_delta, check_nonnegative, check_positive


@dataclass(frozen=True)
class Stratum:
    """A part of the labelled sample whose Gibbs error is estimated on its own.

    ``errors`` of ``draws`` independent judgements were wrong, every example of the part judged equally often;
    ``examples`` of the sample belong to it. The parts must be fixed before the draws are made.

    Raises:
        InputError: counts below 1, or errors outside [0, draws].
    """

    errors: int
    draws: int
    examples: int

    def __post_init__(self) -> None:
        check_count(self.draws, "draws")
        check_count(self.examples, "examples")
        if not 0 <= self.errors <= self.draws:
            refuse("errors", expected=f"0..{self.draws}", got=self.errors, cure="count wrong judgements")


def stratified_error(strata: Sequence[Stratum], delta: float, posteriors_seen: int = 1) -> tuple[float, float]:
    """Return the Gibbs error on the sample as drawn, and its upper limit from the draws: the inner step of (10).

    sum_k (n_k/n) kl^-1(e_k | ln(K G'/delta')/m_k) over the K strata, each at delta'/K. Judgements within a stratum are
    independent but not identically distributed: the kl form holds all the same (Hoeffding 1956). Where the strata
    are "the posterior mean is right" and "is wrong", their rates are near 0 and 1, where kl^-1 is tightest.

    Raises:
        InputError: no stratum, delta outside (0, 1), posteriors_seen < 1.

    Source: docs/theory.md (10), with a union bound over the strata. Status: certified.
    """
    if not strata:
        refuse("strata", expected="at least one", got="none", cure="pass one per part of the sample")
    price = math.log(len(strata) * check_count(posteriors_seen, "posteriors seen") / check_delta(delta, "delta'"))
    n = sum(s.examples for s in strata)
    rate = sum(s.examples / n * s.errors / s.draws for s in strata)
    upper = sum(s.examples / n * float(kl_inverse(s.errors / s.draws, price / s.draws)) for s in strata)
    return rate, upper


def coefficient_pac_bayes(
    empirical_error: float | Sequence[Stratum],
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
            labelled examples; with ``draws=None`` the exact posterior mean. Or the strata of the sample, which
            count their own draws (see :func:`stratified_error`).
        n: number of labelled examples; lambda may have been learned on them.
        coefficients: posterior mean, [T, L] or any shape.
        prior_coefficients: prior mean, same shape, from a list fixed without these data.
        scale: s > 0, common to prior and posterior, from that list.
        delta: failure probability of the PAC-Bayes step.
        draws: m, independent draws from the final posterior; None when the mean is exact or given by strata.
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
    kl = coefficient_kl(coefficients, prior_coefficients, scale)
    check_count(n, "n")
    paid = check_delta(check_delta(delta) if delta_draws is None else delta_draws, "delta of the draws")
    rate, inner, made = _mean_error(empirical_error, n, draws, paid, posteriors_seen)
    total_delta = check_delta(delta + paid, "sum of the deltas") if made else delta
    note = f"m = {made}, delta' = {paid:g}, posteriors seen {posteriors_seen}" if made else "posterior mean exact"
    price = math.log(2.0 * math.sqrt(n) * check_count(grid_size, "grid size") / delta)
    upper = float(kl_inverse(inner, (kl + price) / n))
    monte_carlo = Estimate(inner - rate, 0.0, made, "certified" if made else "exact")
    terms = (
        Term(symbol="ê_m", name="empirical Gibbs error", equation="(10)", estimate=Estimate(rate, 0.0, n)),
        Term(symbol="kl⁻¹(ê_m) − ê_m", name="Monte-Carlo margin", equation="(10)", estimate=monte_carlo, note=note),
        Term(
            symbol="kl⁻¹ margin",
            name="PAC-Bayes margin",
            equation="(10)",
            estimate=Estimate(upper - inner, 0.0, n, "certified"),
            note=f"KL = {kl:.6g} nats, G = {grid_size}, delta = {delta:g}",
        ),
    )
    assumptions = (
        "the labelled examples are i.i.d. and were not used for theta_0, the experts or the list of priors",
        "the bound is on the randomised (Gibbs) classifier",
    )
    return Bound(
        name="coefficient PAC-Bayes",
        reading="certificate",
        terms=terms,
        delta=total_delta,
        assumptions=assumptions,
        trivial_risk=1.0,
    )


def _mean_error(
    error: float | Sequence[Stratum], n: int, draws: int | None, delta: float, posteriors_seen: int
) -> tuple[float, float, int]:
    """Rate seen, upper limit of the posterior mean at ``delta``, and number of draws (0: the mean is exact)."""
    if isinstance(error, Sequence):
        if draws is not None or sum(s.examples for s in error) != n:
            got = f"{sum(s.examples for s in error)} examples, draws={draws}"
            refuse("strata", expected=f"n = {n} examples in all and draws=None", got=got, cure="cover the sample")
        return *stratified_error(error, delta, posteriors_seen), sum(s.draws for s in error)
    if not 0.0 <= error <= 1.0:
        refuse("empirical error", expected="in [0, 1]", got=error, cure="pass a rate, not a count")
    if draws is None:
        return error, error, 0
    nats = math.log(check_count(posteriors_seen, "posteriors seen") / delta) / check_count(draws, "draws")
    return error, float(kl_inverse(error, nats)), draws


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

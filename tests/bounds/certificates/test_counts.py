"""Certificates: exact tails, unions that are paid, and nothing uncertified let through."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from bounds.certificates import (
    Count,
    Stratum,
    coefficient_kl,
    coefficient_pac_bayes,
    disagreement,
    held_out,
    mixture,
    pooled,
    stratified_error,
)
from bounds.pac_bayes import kl_binary, kl_inverse
from bounds.types import Bound, Estimate, InputError, Term

DELTA = 0.05


@pytest.mark.parametrize("method", ["clopper-pearson", "kl"])
def test_held_out_misses_at_most_delta_exactly(method):
    """Pr[bound < p] for k ~ Binomial(n, p), by enumeration over k."""
    n, k = 60, np.arange(61)
    bounds = np.array([held_out(int(e), n, DELTA, method).value for e in k])
    rates = [float(binom.pmf(k, n, p)[bounds < p].sum()) for p in np.linspace(0.01, 0.99, 99)]
    assert max(rates) <= DELTA
    assert max(rates) > (0.045 if method == "clopper-pearson" else 0.02), "not needlessly wide"


def test_clopper_pearson_solves_the_tail_and_kl_is_looser():
    for errors, n in ((0, 10), (3, 40), (38, 40)):
        value = held_out(errors, n, DELTA).value
        assert binom.cdf(errors, n, value) == pytest.approx(DELTA, rel=1e-9)
        assert value <= held_out(errors, n, DELTA, "kl").value
    assert held_out(10, 10, DELTA).value == 1.0
    assert held_out(9, 10, DELTA).value == pytest.approx(1 - DELTA / 10)  # (13): Clopper-Pearson has .9949 there
    got = held_out(2.5, 40, DELTA, "kl").value
    assert float(kl_binary(2.5 / 40, got)) == pytest.approx(math.log(1 / DELTA) / 40, rel=1e-9)


def poisson_binomial(rates):
    """Pr[k errors], k = 0..n, of independent examples with these error rates."""
    law = np.ones(1)
    for rate in rates:
        law = np.convolve(law, [1.0 - rate, rate])
    return law


def clopper_pearson(k, n, delta):
    """The limit for i.i.d. examples, which (13) corrects."""
    return 1.0 if k == n else float(beta.ppf(1.0 - delta, k + 1, n - k))


def miss_rate(limit, rates, delta):
    """Pr[limit < mean rate], by enumeration."""
    n, law = len(rates), poisson_binomial(rates)
    missed = np.array([limit(k, n, delta) < np.mean(rates) - 1e-12 for k in range(n + 1)])
    return float(law[missed].sum())


def certified(k, n, delta):
    return held_out(k, n, delta).value


def without_the_maximum(k, n, delta):
    """A mutant of (13) that only treats k = n - 1."""
    return certified(k, n, delta) if k >= n - 1 else clopper_pearson(k, n, delta)


def test_examples_of_different_distributions_are_covered_exactly():
    """(13) over random error rates of n examples; many of them near 0 and 1, where the comparison is hardest."""
    generator = np.random.default_rng(0)
    for delta in (0.05, 0.2, 0.45):
        for n in range(2, 10):
            limits = [certified(k, n, delta) for k in range(n + 1)]
            assert limits == sorted(limits)
            assert all(a >= clopper_pearson(k, n, delta) - 1e-12 for k, a in enumerate(limits) if k < n - 1)
            table = dict(enumerate(limits))
            for shape in (0.1, 1.0):
                for _ in range(40):
                    rates = generator.beta(shape, shape, n)
                    assert miss_rate(lambda k, n, delta: table[k], rates, delta) <= delta + 1e-12  # noqa: B023


def test_plain_clopper_pearson_and_half_of_the_correction_are_caught():
    pair = (1.0, 0.9499)
    assert miss_rate(clopper_pearson, pair, DELTA) == pytest.approx(0.0501, abs=1e-9)
    assert miss_rate(certified, pair, DELTA) == 0.0
    # the worst pair of all misses at delta exactly: no smaller limit would do
    worst = (1.0, 1.0 - DELTA * (1.0 - 1e-9))
    assert DELTA * (1.0 - 1e-6) < miss_rate(certified, worst, DELTA) <= DELTA
    # above delta = 1/4 the maximum acts elsewhere, too: one sure error and two rare ones
    sure = (1.0, 0.5 + 1e-6, 0.5 + 1e-6)
    assert miss_rate(without_the_maximum, sure, 0.2499) <= 0.2499
    worst = max(miss_rate(without_the_maximum, (1.0, q, q), 0.45) for q in np.linspace(0.3, 0.9, 200))
    assert worst > 0.45
    assert max(miss_rate(certified, (1.0, q, q), 0.45) for q in np.linspace(0.3, 0.9, 200)) <= 0.45


@pytest.mark.parametrize("n", [2, 3, 10, 50, 200, 1498])
def test_below_a_quarter_the_maximum_acts_at_one_error_less_than_all_only(n):
    for delta in (0.01, 0.05, 0.249):
        assert all(certified(k, n, delta) == pytest.approx(clopper_pearson(k, n, delta)) for k in range(n - 1))


def test_one_draw_of_the_model_per_example_is_a_fixed_model_and_a_common_draw_is_not():
    """(16): a randomised model that errs at .1 or at .5 is certified by n draws, not by one."""
    generator, n, rounds = np.random.default_rng(1), 100, 4000
    table = np.array([certified(k, n, DELTA) for k in range(n + 1)])
    own = generator.choice([0.1, 0.5], (rounds, n))
    common = generator.choice([0.1, 0.5], (rounds, 1))
    misses = [table[(generator.random((rounds, n)) < chance).sum(1)] < 0.3 for chance in (own, common)]
    assert misses[0].mean() <= DELTA + 3 * math.sqrt(DELTA / rounds)
    assert misses[1].mean() > 0.4


def test_models_looked_at_are_paid():
    assert held_out(30, 200, DELTA, models_looked_at=20).value == pytest.approx(held_out(30, 200, DELTA / 20).value)
    assert held_out(30, 200, DELTA, "kl", 20).value == pytest.approx(held_out(30, 200, DELTA / 20, "kl").value)
    bound = held_out(30, 200, DELTA, models_looked_at=20)
    assert bound.delta == DELTA
    assert bound.status == "certified"
    assert "20" in bound.terms[1].note


def test_coefficient_pac_bayes_by_hand():
    mean, prior, scale, n, m = torch.full((2, 3), 0.5), torch.full((2, 3), 0.3), 0.1, 800, 64
    kl = 6 * 0.04 / (2 * 0.01)
    assert coefficient_kl(mean, prior, scale) == pytest.approx(kl, rel=1e-6)
    bound = coefficient_pac_bayes(
        0.13, n, mean, prior, scale, delta=0.04, draws=m, delta_draws=0.01, grid_size=7, posteriors_seen=3
    )
    inner = float(kl_inverse(0.13, math.log(3 / 0.01) / m))
    outer = float(kl_inverse(inner, (kl + math.log(2 * math.sqrt(n) * 7 / 0.04)) / n))
    assert bound.value == pytest.approx(outer, rel=1e-6)
    assert [t.estimate.value for t in bound.terms] == pytest.approx([0.13, inner - 0.13, outer - inner], rel=1e-5)
    assert bound.delta == pytest.approx(0.05)
    assert bound.status == "certified"
    exact = coefficient_pac_bayes(0.13, n, mean, prior, scale, delta=0.04, draws=None, grid_size=7)
    assert exact.delta == 0.04
    assert exact.terms[1].estimate.value == 0.0
    assert exact.value < bound.value


def test_strata_are_kl_bounds_at_a_share_of_delta_weighted_by_examples():
    strata = [Stratum(3, 700, 350), Stratum(290, 300, 150)]
    rate, upper = stratified_error(strata, 0.01, posteriors_seen=3)
    parts = [float(kl_inverse(s.errors / s.draws, math.log(2 * 3 / 0.01) / s.draws)) for s in strata]
    assert rate == pytest.approx(0.7 * 3 / 700 + 0.3 * 290 / 300)
    assert upper == pytest.approx(0.7 * parts[0] + 0.3 * parts[1], rel=1e-12)
    mean = torch.zeros(2)
    bound = coefficient_pac_bayes(strata, 500, mean, mean, 0.1, delta=0.04, draws=None, delta_draws=0.01)
    rate, upper = stratified_error(strata, 0.01)
    outer = float(kl_inverse(upper, math.log(2 * math.sqrt(500) / 0.04) / 500))
    assert [t.estimate.value for t in bound.terms] == pytest.approx([rate, upper - rate, outer - upper])
    assert bound.terms[1].estimate.n == 1000
    assert bound.terms[1].estimate.status == "certified"
    assert bound.delta == pytest.approx(0.05)
    # the same judgements in one list cost twice as much: rates near 0 and 1 deviate least
    assert upper < float(kl_inverse(rate, math.log(1 / 0.01) / 1000))


def test_strata_cover_as_often_as_they_say():
    """Examples of two kinds per stratum, so that judgements are not identically distributed; 4000 repetitions."""
    generator = np.random.default_rng(0)
    chances = (np.array([0.0, 0.04] * 40), np.array([0.9, 1.0] * 15))
    truth = sum(c.sum() for c in chances) / 110
    misses, without_price = 0, 0
    for _ in range(4000):
        strata = [Stratum(int((generator.random(len(c)) < c).sum()), len(c), len(c)) for c in chances]
        rate, upper = stratified_error(strata, 0.05)
        misses += upper < truth
        without_price += rate < truth
    assert misses / 4000 <= 0.05
    assert without_price / 4000 > 0.3


def test_mixture_is_weighted_certificates_at_a_share_each():
    counts = [Count(3, 100), Count(20, 50), Count(1, 400)]
    alpha = (0.5, 0.2, 0.3)
    bound = mixture(counts, alpha, DELTA)
    expected = sum(a * held_out(c.errors, c.n, DELTA / 3).value for a, c in zip(alpha, counts, strict=True))
    assert bound.value == pytest.approx(expected, rel=1e-12)
    looked = mixture(counts, alpha, DELTA, models_looked_at=4)
    assert looked.value == pytest.approx(
        sum(a * held_out(c.errors, c.n, DELTA / 12).value for a, c in zip(alpha, counts, strict=True))
    )
    assert bound.status == "certified"
    assert len({t.symbol for t in bound.terms}) == 3


def test_pooled_is_one_count_and_covers_unequal_tasks():
    counts = [Count(3, 100), Count(20, 50)]
    assert pooled(counts, DELTA).value == held_out(23, 150, DELTA).value
    assert pooled(counts, DELTA, 4, "kl").value == held_out(23, 150, DELTA, "kl", 4).value
    assert pooled([Count(3.5, 100)], DELTA, method="kl").value == held_out(3.5, 100, DELTA, "kl").value
    with pytest.raises(InputError, match="whole number"):
        pooled([Count(3.5, 100)], DELTA)
    # exact coverage for two different tasks: convolution of two binomials
    law = np.convolve(binom.pmf(np.arange(31), 30, 0.05), binom.pmf(np.arange(21), 20, 0.7))
    truth = (30 * 0.05 + 20 * 0.7) / 50
    misses = np.array([pooled([Count(int(k), 50)], DELTA).value < truth for k in range(51)])
    assert float(law[misses].sum()) <= DELTA


def test_disagreement_is_two_certificates_per_task():
    apart, errors, alpha = [Count(5, 300), Count(9, 100)], [Count(10, 200), Count(4, 90)], (0.4, 0.6)
    bound = disagreement(apart, errors, alpha, DELTA, models_looked_at=3)
    expected = sum(
        a * (held_out(d.errors, d.n, DELTA / 12).value + held_out(e.errors, e.n, DELTA / 4).value)
        for a, d, e in zip(alpha, apart, errors, strict=True)
    )
    assert bound.value == pytest.approx(expected, rel=1e-12)
    assert len(bound.terms) == 4
    assert bound.status == "certified"


def test_given_certificates_must_be_certified_and_cheap_enough():
    good = held_out(5, 300, DELTA / 2)
    assert mixture([good, Count(1, 30)], (0.5, 0.5), DELTA).terms[0].estimate.value == pytest.approx(good.value / 2)
    dear = held_out(5, 300, DELTA)
    guess = Bound(
        name="guess",
        reading="none",
        terms=(Term(symbol="e", name="error", equation="-", estimate=Estimate(0.1, 0.0, 5, "estimated")),),
        delta=DELTA / 2,
    )
    for bad in (dear, guess):
        with pytest.raises(InputError):
            mixture([bad, Count(1, 30)], (0.5, 0.5), DELTA)
    coefficients = torch.zeros(2)
    gibbs = coefficient_pac_bayes(0.1, 500, coefficients, coefficients, 0.1, delta=DELTA / 4, draws=None)
    disagreement([gibbs, gibbs], [Count(1, 30)] * 2, (0.5, 0.5), DELTA)
    with pytest.raises(InputError):
        disagreement([gibbs] * 3, [Count(1, 30)] * 3, (0.5, 0.3, 0.2), DELTA)


@pytest.mark.parametrize(
    ("errors", "n", "delta", "method", "models"),
    [
        (11, 10, DELTA, "clopper-pearson", 1),
        (-1, 10, DELTA, "clopper-pearson", 1),
        (1.5, 10, DELTA, "clopper-pearson", 1),
        (1, 0, DELTA, "clopper-pearson", 1),
        (1, 10, 0.0, "clopper-pearson", 1),
        (1, 10, 1.0, "kl", 1),
        (1, 10, DELTA, "wald", 1),
        (1, 10, DELTA, "kl", 0),
        (math.nan, 10, DELTA, "kl", 1),
    ],
)
def test_held_out_refuses(errors, n, delta, method, models):
    with pytest.raises(InputError):
        held_out(errors, n, delta, method, models)


def test_coefficient_pac_bayes_refuses():
    one = torch.ones(2)
    good = {"delta": DELTA, "draws": 10}
    for args, options in (
        ((1.1, 100, one, one, 0.1), good),
        ((0.1, 0, one, one, 0.1), good),
        ((0.1, 100, one, torch.ones(3), 0.1), good),
        ((0.1, 100, one, one * math.nan, 0.1), good),
        ((0.1, 100, one, one, 0.0), good),
        ((0.1, 100, one, one, 0.1), {**good, "draws": 0}),
        ((0.1, 100, one, one, 0.1), {**good, "grid_size": 0}),
        ((0.1, 100, one, one, 0.1), {**good, "delta_draws": 1.0}),
        ((0.1, 100, one, one, 0.1), {"delta": 0.6, "draws": 10}),
    ):
        with pytest.raises(InputError):
            coefficient_pac_bayes(*args, **options)
    for strata, draws in (([], None), ([Stratum(1, 10, 10)], None), ([Stratum(1, 10, 100)], 10)):
        with pytest.raises(InputError, match="strata"):
            coefficient_pac_bayes(strata, 100, one, one, 0.1, delta=DELTA, draws=draws)
    for counts in ((11, 10, 5), (-1, 10, 5), (0, 0, 5), (0, 5, 0)):
        with pytest.raises(InputError):
            Stratum(*counts)
    for bad in ([], [Count(1, 30)]):
        with pytest.raises(InputError):
            mixture(bad, (0.5, 0.5), DELTA)
    with pytest.raises(InputError):
        pooled([], DELTA)

"""Limits of weighted means: exact coverage by enumeration, closed forms, and wrong versions that miss too often."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, multinomial

from bounds.certificates import BoundedSample, Constants, choose_constants, data_free_constants, weighted_mean
from bounds.pac_bayes import kl_inverse
from bounds.types import InputError

DELTA = 0.05


def counted(errors, n):
    """A sample of n losses, of which so many are 1."""
    return BoundedSample(values=(torch.arange(n) < errors).double())


def evalue(samples, alpha, constants, mean):
    """W of (15), written out example by example."""
    n, product = sum(len(s.values) for s in samples), 1.0
    middle = sum(a * o for a, o in zip(alpha, constants.offsets, strict=True))
    for t, (s, a) in enumerate(zip(samples, alpha, strict=True)):
        bet = constants.rate * a * n / len(s.values)
        slope = constants.slope
        centre = constants.centres[t] if constants.centres else 0.0
        target = mean + constants.offsets[t] - middle - slope * centre
        guesses = s.predicted if slope else torch.zeros(len(s.values))
        for x, g in zip(s.values.tolist(), guesses.tolist(), strict=True):
            product *= 1.0 + bet * (target - (x - slope * g))
        for g in s.unlabelled.tolist() if slope else ():
            product *= 1.0 - slope * bet * len(s.values) / len(s.unlabelled) * (g - centre)
    return product


def guessed(generator, n, others, rate):
    """Losses 0 or 1 whose probability is g, and g on other inputs."""
    g = generator.beta(2 * rate, 2 * (1 - rate), n + others)
    x = generator.random(n) < g[:n]
    return BoundedSample(
        values=torch.from_numpy(x * 1.0), predicted=torch.from_numpy(g[:n]), unlabelled=torch.from_numpy(g[n:])
    )


def test_the_limit_is_where_the_product_is_one_over_delta():
    generator = np.random.default_rng(0)
    samples, alpha = [guessed(generator, n, 2 * n, p) for n, p in ((9, 0.2), (4, 0.6))], (0.7, 0.3)
    for constants in (Constants(0.8, (-0.1, 0.3)), Constants(0.5, (-0.1, 0.3), 0.6, (0.2, 0.5))):
        bound = weighted_mean(samples, alpha, DELTA, constants, models_looked_at=3)
        assert evalue(samples, alpha, constants, bound.value) >= 3 / DELTA
        assert evalue(samples, alpha, constants, bound.value - 4e-9) < 3 / DELTA
        assert bound.delta == DELTA
        assert bound.status == "certified"
        observed = sum(a * float(s.values.mean()) for a, s in zip(alpha, samples, strict=True))
        assert bound.terms[0].estimate.value == pytest.approx(observed)
    apart = sum(a * float(s.unlabelled.mean() - s.predicted.mean()) for a, s in zip(alpha, samples, strict=True))  # pyright: ignore
    assert bound.terms[1].estimate.value == pytest.approx(0.6 * apart)
    assert [t.equation for t in bound.terms] == ["(15)"] * 3


def test_the_best_rate_for_one_task_gives_chernoffs_limit():
    """With nu of the likelihood ratio the product is exp(n kl): the limit is kl^-1, which is proved otherwise."""
    for k, n in ((0, 30), (4, 40), (70, 100)):
        limit = float(kl_inverse(k / n, math.log(1 / DELTA) / n))
        constants = Constants((limit - k / n) / (limit * (1 - limit)), (0.0,))
        assert weighted_mean([counted(k, n)], (1.0,), DELTA, constants).value == pytest.approx(limit, abs=1e-8)
        for factor in (0.7, 1.4):
            other = Constants(factor * constants.rate, (0.0,))
            assert weighted_mean([counted(k, n)], (1.0,), DELTA, other).value > limit


def rates_of_two(sizes, truth, alpha, limit):
    """Exact probability that a limit of two counts is below the weighted mean of the error rates."""
    laws = [binom.pmf(np.arange(n + 1), n, p) for n, p in zip(sizes, truth, strict=True)]
    mean = sum(a * p for a, p in zip(alpha, truth, strict=True))
    pairs = itertools.product(*(range(n + 1) for n in sizes))
    return sum(laws[0][j] * laws[1][k] for j, k in pairs if limit(j, k) < mean)


def test_alpha_weighted_coverage_is_exact_and_pooling_in_its_place_is_caught():
    sizes, alpha, pooled = (60, 10), (0.5, 0.5), (6 / 7, 1 / 7)
    for constants in (None, Constants(0.4, (-0.1, 0.1))):
        tables = {
            weights: {
                pair: weighted_mean(
                    [counted(k, n) for k, n in zip(pair, sizes, strict=True)], weights, DELTA, constants
                )
                for pair in itertools.product(range(61), range(11))
            }
            for weights in (alpha, pooled)
        }
        for truth in ((0.05, 0.5), (0.3, 0.3), (0.5, 0.02), (0.9, 0.99)):
            assert rates_of_two(sizes, truth, alpha, lambda j, k: tables[alpha][j, k].value) <= DELTA  # noqa: B023
        # n_t/n in the place of alpha
        assert rates_of_two(sizes, (0.05, 0.5), alpha, lambda j, k: tables[pooled][j, k].value) > DELTA  # noqa: B023


def test_a_limit_at_delta_misses_at_delta_where_the_evalue_has_two_values():
    """No error at all in n examples: W is 1/Pr or 0, and Markov's inequality an equality. No smaller limit would do."""
    n = 20
    rate = 1.0 - (DELTA * 0.999) ** (1.0 / n)
    constants = Constants(0.9999 / (1.0 - rate), (0.0,))
    missed = [weighted_mean([counted(k, n)], (1.0,), DELTA, constants).value < rate for k in range(n + 1)]
    assert binom.pmf(np.arange(n + 1), n, rate)[missed].sum() == pytest.approx(0.999 * DELTA)
    # three of them together, at delta each and at a third
    for share, caught in ((DELTA, True), (DELTA / 3, False)):
        missed = [weighted_mean([counted(k, n)], (1.0,), share, constants).value < rate for k in range(n + 1)]
        one = float(binom.pmf(np.arange(n + 1), n, rate)[missed].sum())
        assert (1.0 - (1.0 - one) ** 3 > DELTA) == caught


def test_a_negative_factor_is_never_used():
    """Two losses of 1 and nu = 10: at e = 0 both factors are -9, and their product 81 exceeds 1/delta."""
    samples, constants = [counted(2, 2)], Constants(10.0, (0.0,))
    assert evalue(samples, (1.0,), constants, 0.0) == pytest.approx(81.0)
    assert weighted_mean(samples, (1.0,), DELTA, constants).value >= 0.9
    assert weighted_mean([counted(0, 2)], (1.0,), DELTA, constants).value == pytest.approx(0.9)


def test_differences_keep_their_sign_and_cover_on_both_sides():
    """X in {-1, 0, 1}: exact coverage over all counts; the lower limit is the mirror image of the upper one."""
    n, law = 24, (0.3, 0.6, 0.1)
    mean, constants = law[2] - law[0], Constants(0.5, (0.0,))
    missed = {"upper": 0.0, "lower": 0.0}
    for minus in range(n + 1):
        for plus in range(n + 1 - minus):
            values = torch.tensor([-1.0] * minus + [1.0] * plus + [0.0] * (n - minus - plus))
            sample = BoundedSample(values=values, lower=-1.0, upper=1.0)
            weight = float(multinomial.pmf([minus, n - minus - plus, plus], n, law))
            high = weighted_mean([sample], (1.0,), DELTA, constants).value
            low = weighted_mean([sample], (1.0,), DELTA, constants, side="lower").value
            mirrored = BoundedSample(values=-values, lower=-1.0, upper=1.0)
            assert low == pytest.approx(-weighted_mean([mirrored], (1.0,), DELTA, constants).value, abs=1e-8)
            assert low < float(values.mean()) < high or abs(float(values.mean())) == 1.0
            missed["upper"] += weight * (high < mean)
            missed["lower"] += weight * (low > mean)
    assert 0.0 < missed["upper"] <= DELTA
    assert 0.0 < missed["lower"] <= DELTA


def test_the_mean_of_g_over_unlabelled_inputs_is_no_constant():
    """X = g, few unlabelled inputs: (15) pays for them; the mutant that takes their mean for the truth misses."""
    generator, n, others, rounds = np.random.default_rng(2), 400, 20, 150
    constants, missed = Constants(0.04, (0.0,), 1.0, (0.3,)), np.zeros(2)
    for _ in range(rounds):
        g = torch.from_numpy(generator.beta(0.6, 1.4, n + others))
        sample = BoundedSample(values=g[:n], predicted=g[:n], unlabelled=g[n:])
        missed[0] += weighted_mean([sample], (1.0,), DELTA, constants).value < 0.3
        mean = float(g[n:].mean())
        taken = BoundedSample(values=g[:n] - g[:n] + mean, lower=mean - 1.0, upper=mean + 1.0)
        missed[1] += weighted_mean([taken], (1.0,), DELTA, Constants(0.98, (0.0,))).value < 0.3
    assert missed[0] <= DELTA * rounds
    assert missed[1] > 2 * DELTA * rounds


def test_unlabelled_inputs_narrow_the_limit_and_offsets_do():
    generator = np.random.default_rng(3)
    sizes, rates, alpha = (60, 100, 40), (0.1, 0.3, 0.7), (1 / 3,) * 3
    samples = [guessed(generator, n, 3000, p) for n, p in zip(sizes, rates, strict=True)]
    pilots = [guessed(generator, 400, 400, p) for p in rates]
    plain = [BoundedSample(values=s.values) for s in samples]
    widths = [
        sum(t.estimate.value for t in weighted_mean(group, alpha, DELTA, constants).terms if t.symbol == "margin")
        for group, constants in (
            (samples, choose_constants(pilots, samples, alpha, DELTA)),
            (plain, choose_constants(pilots, plain, alpha, DELTA)),
            (plain, data_free_constants(plain, alpha, DELTA)),
        )
    ]
    assert widths[0] < 0.9 * widths[1]
    assert widths[1] < 0.95 * widths[2]


def test_chosen_constants_are_means_and_the_slope_of_least_variance():
    generator = np.random.default_rng(4)
    pilots = [guessed(generator, 300, 300, p) for p in (0.2, 0.6)]
    samples, alpha = [guessed(generator, n, 5 * n, 0.4) for n in (50, 30)], (0.4, 0.6)
    found = choose_constants(pilots, samples, alpha, DELTA)
    assert found.offsets == pytest.approx([float(p.values.mean()) for p in pilots])
    assert found.centres == pytest.approx([float(p.predicted.mean()) for p in pilots])  # pyright: ignore
    scales = [a * a / len(s.values) for a, s in zip(alpha, samples, strict=True)]
    moments = [np.cov(p.values, p.predicted, bias=True) for p in pilots]
    both = sum(c * m[0, 1] for c, m in zip(scales, moments, strict=True))
    own = sum(c * 1.2 * m[1, 1] for c, m in zip(scales, moments, strict=True))
    assert found.slope == pytest.approx(both / own)
    turned = choose_constants(pilots, samples, alpha, DELTA, side="lower")
    assert turned.offsets == pytest.approx(found.offsets)
    assert turned.centres == pytest.approx(found.centres)
    lacking = [samples[0], BoundedSample(values=samples[1].values)]
    assert choose_constants(pilots, lacking, alpha, DELTA).slope == 0.0
    few = [BoundedSample(values=s.values, predicted=s.predicted, unlabelled=s.unlabelled[:2]) for s in samples]  # pyright: ignore
    assert weighted_mean(few, alpha, DELTA, choose_constants(pilots, few, alpha, DELTA)).value < 1.0


def test_extreme_samples_stay_finite():
    for errors, n in ((0, 100_000), (100_000, 100_000), (0, 1), (1, 1)):
        for side in ("upper", "lower"):
            bound = weighted_mean([counted(errors, n)], (1.0,), DELTA, side=side)
            assert 0.0 <= bound.value <= 1.0
            assert (bound.value >= errors / n) == (side == "upper") or bound.value == errors / n
    samples = [counted(3, 40), counted(0, 5)]  # a task without weight is not looked at
    alone = weighted_mean(samples[:1], (1.0,), DELTA, Constants(0.5, (0.0,))).value
    assert weighted_mean(samples, (1.0, 0.0), DELTA, Constants(0.5, (0.0, 3.0))).value == pytest.approx(alone)


def test_bad_input_is_refused_in_one_line():
    one, g = counted(1, 4), torch.full((4,), 0.5)
    full = BoundedSample(values=g, predicted=g, unlabelled=g[:2])
    for call, words in (
        (lambda: BoundedSample(values=torch.tensor([0.1, 7.3])), "clip or smooth"),
        (lambda: BoundedSample(values=torch.tensor([math.nan])), "finite"),
        (lambda: BoundedSample(values=g, lower=1.0), "width"),
        (lambda: BoundedSample(values=g, predicted=g), "both or neither"),
        (lambda: BoundedSample(values=g, predicted=g[:3], unlabelled=g), "one g per labelled"),
        (lambda: Constants(0.0, (0.0,)), "rate"),
        (lambda: Constants(1.0, (math.inf,)), "finite"),
        (lambda: Constants(1.0, (0.0,), -1.0), "slope"),
        (lambda: weighted_mean([one], (0.5,), DELTA), "alpha"),
        (lambda: weighted_mean([one], (1.0,), 1.0), "delta"),
        (lambda: weighted_mean([one], (1.0,), DELTA, models_looked_at=0), "models looked at"),
        (lambda: weighted_mean([one], (1.0,), DELTA, side="both"), "side"),  # pyright: ignore
        (lambda: weighted_mean([one], (1.0,), DELTA, Constants(1.0, (0.0, 0.0))), "constants"),
        (lambda: weighted_mean([one], (1.0,), DELTA, Constants(1.0, (0.0,), 0.5)), "slope l"),
        (lambda: weighted_mean([full], (1.0,), DELTA, Constants(1.0, (0.0,), 1.0)), "can be negative"),
        (lambda: choose_constants([one], [one, one], (0.5, 0.5), DELTA), "pilots"),
        (lambda: choose_constants([one], [one], (1.0,), DELTA, side="both"), "side"),  # pyright: ignore
    ):
        with pytest.raises(InputError, match=words):
            call()

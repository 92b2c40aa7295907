"""Laws that hold for every input: orders, round trips, linearity, invariances, monotonicity."""

import math
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bounds.certificates import Count, coefficient_pac_bayes, held_out, mixture, pooled
from bounds.distillation import kl, ladder, total_variation
from bounds.heterogeneity import cross_risk, heterogeneity, pointwise_losses
from bounds.pac_bayes import (
    flatness_bound,
    kl_binary,
    kl_bound,
    kl_inverse,
    kl_lower_inverse,
    lemma1,
    maurer_bound,
)
from bounds.theorems import AnchorStatistics, Experts, MergedModel, Weights, theorem2, vertices
from bounds.types import Estimate

COMMON = settings(deadline=None, max_examples=60, derandomize=True)
UNIT = st.floats(0.0, 1.0)
INSIDE = st.floats(0.001, 0.999)


def table(rows, columns, low=-30.0, high=30.0):
    return arrays(np.float64, (rows, columns), elements=st.floats(low, high, width=32)).map(torch.from_numpy)


def simplex(size):
    return st.lists(st.floats(0.01, 1.0), min_size=size, max_size=size).map(lambda w: [x / sum(w) for x in w])


@COMMON
@given(table(4, 3, -250, 250), table(4, 3, -250, 250))
def test_ladder_is_ordered(p, q):
    """TV <= min(Pinsker, Bretagnolle-Huber), per example and after Jensen; all finite; BH never above 1."""
    tv, divergence = total_variation(p, q), kl(p, q)
    assert bool(torch.isfinite(divergence).all())
    assert bool((tv <= (divergence / 2).sqrt() + 1e-7).all())
    assert bool((tv <= (-torch.expm1(-divergence)).sqrt() + 1e-7).all())
    made = ladder([p, q], [q, p], (0.3, 0.7))
    assert made.total_variation.total.value <= made.minimum.total.value + 1e-7
    assert made.bretagnolle_huber.total.value <= 1.0


@COMMON
@given(UNIT, UNIT)
def test_kl_inverse_round_trip(p, q):
    low, high = min(p, q), max(p, q)
    upper = float(kl_inverse(low, kl_binary(low, high)))
    lower = float(kl_lower_inverse(high, kl_binary(high, low)))
    assert upper >= high - 1e-7  # rounding of kl itself near its minimum is amplified by a square root
    assert abs(upper - high) < 1e-7
    assert abs(lower - low) < 1e-7


@COMMON
@given(UNIT, st.floats(0.0, 50.0))
def test_kl_inverse_stays_within_its_budget(p, budget):
    upper = float(kl_inverse(p, budget))
    assert p <= upper <= 1.0
    assert float(kl_binary(p, max(upper - 1e-9, p))) <= budget * (1 + 1e-9) + 1e-12
    assert float(kl_inverse(p, budget + 0.1)) >= upper


@COMMON
@given(UNIT, st.floats(0.0, 200.0), st.integers(1, 10_000), INSIDE)
def test_kl_bound_never_exceeds_maurers(p, divergence, n, delta):
    risk = Estimate(3.0 * p)
    inverse = kl_bound(risk, divergence, n, 3.0, delta=delta).value
    assert inverse <= maurer_bound(risk, divergence, n, 3.0, delta=delta).value + 1e-9
    assert inverse <= 3.0 + 1e-12


@COMMON
@given(table(5, 3, 0, 10), table(4, 3, 0, 10), table(6, 3, 0, 10), simplex(3), simplex(3), simplex(3), UNIT)
def test_heterogeneity_is_linear_in_alpha_and_beta(a, b, c, first, second, other, mix):
    losses = [a, b, c]
    between = [mix * x + (1 - mix) * y for x, y in zip(first, second, strict=True)]

    def value(alpha, beta):
        return heterogeneity(losses, alpha, beta).value

    joined = mix * value(first, other) + (1 - mix) * value(second, other)
    assert math.isclose(value(between, other), joined, abs_tol=1e-9)
    joined = mix * value(other, first) + (1 - mix) * value(other, second)
    assert math.isclose(value(other, between), joined, abs_tol=1e-9)


@COMMON
@given(table(5, 3, 0, 10), simplex(3), simplex(3))
def test_heterogeneity_is_zero_for_equal_tasks_and_standard_error_is_not_free(rows, alpha, beta):
    got = heterogeneity([rows, rows, rows], alpha, beta)
    assert abs(got.value) < 1e-9
    shifted = heterogeneity([rows + 5, rows, rows], alpha, beta)  # a constant per task moves H by alpha - beta
    assert math.isclose(shifted.value, 5 * (alpha[0] - beta[0]), abs_tol=1e-9)
    assert math.isclose(shifted.stderr, got.stderr, abs_tol=1e-6)


@COMMON
@given(table(6, 4, -20, 20), table(6, 4, -20, 20), st.floats(0.0, 1.0))
def test_jensen_for_convex_losses(first, second, mix):
    """Lemma 2 in score space; cross-entropy and its gap E KL(p_mean || p)."""
    labels = torch.arange(6) % 4
    mean = mix * first + (1 - mix) * second
    at_mean = pointwise_losses(mean, labels, "cross-entropy")
    average = mix * pointwise_losses(first, labels, "cross-entropy")
    average = average + (1 - mix) * pointwise_losses(second, labels, "cross-entropy")
    gap = mix * kl(mean, first) + (1 - mix) * kl(mean, second)
    assert bool((at_mean <= average + 1e-9).all())
    torch.testing.assert_close(average - at_mean, gap, atol=1e-8, rtol=1e-8)


@COMMON
@given(table(6, 4, -20, 20), table(6, 4, -20, 20))
def test_cross_entropy_is_half_smooth_and_its_bregman_divergence_is_kl(first, second):
    """l(s') = l(s) + <grad, s' - s> + KL(p_s || p_s') <= ... + (1/4)||centred s' - s||^2."""
    labels = torch.arange(6) % 4
    residual = first.softmax(-1) - torch.nn.functional.one_hot(labels, 4)
    linear = pointwise_losses(first, labels, "cross-entropy") + (residual * (second - first)).sum(-1)
    exact = pointwise_losses(second, labels, "cross-entropy")
    torch.testing.assert_close(exact, linear + kl(first, second), atol=1e-8, rtol=1e-8)
    step = second - first
    centred = step - step.mean(-1, keepdim=True)
    assert bool((exact <= linear + 0.25 * centred.pow(2).sum(-1) + 1e-9).all())


ONE = st.floats(0.01, 3.0)


@COMMON
@given(ONE, ONE, ONE, st.floats(0.01, 0.5), INSIDE, st.integers(1, 10**6), st.floats(1.01, 3.0))
def test_one_task_bounds_are_monotone(risk, divergence, flat, eta, delta, n, more):
    def value(risk=risk, divergence=divergence, n=n, delta=delta, constant=1.0, flat=flat):
        arguments = (Estimate(risk), divergence, n, eta, Estimate(constant), Estimate(flat))
        return flatness_bound(*arguments, delta=delta).value

    base = value()
    assert value(risk=risk * more) > base
    assert value(divergence=divergence * more) > base
    assert value(n=n + 1) < base
    assert value(delta=delta / more) > base
    assert value(constant=more) > base
    assert value(flat=flat * more) > base
    two = lemma1(Estimate(risk), divergence, n, eta, Estimate(flat), delta=delta).value
    assert two > lemma1(Estimate(risk), divergence, n + 1, eta, Estimate(flat), delta=delta).value


def expert(seed, n=300):
    draw = np.random.default_rng(seed).uniform(0.1, 1.0, 8)
    pair = Estimate(draw[1]), Estimate(draw[2])
    return AnchorStatistics(
        own_risk=Estimate(draw[0]),
        n=n,
        displacement_sq=(draw[3], draw[4]),
        kernel=pair,
        gradient=pair,
        sigma=(draw[5], draw[6]),
        eta=0.2,
        qsb=Estimate(draw[7]),
    )


@COMMON
@given(st.permutations(range(4)), simplex(4), simplex(4), st.integers(0, 1000), table(3, 4, 0, 5))
def test_theorem2_is_invariant_to_the_order_of_tasks(order, alpha, beta, seed, rows):
    experts = [expert(seed + k) for k in range(4)]
    losses = [rows + rows.roll(k, 0) * (1 + k) for k in range(4)]
    gaps = [Estimate(0.1 * k - 0.2) for k in range(4)]

    def bound(index):
        side = Experts([experts[i] for i in index], cross_risk([losses[i][:, list(index)] for i in index]))
        weights = Weights([alpha[i] for i in index], [beta[i] for i in index])
        return theorem2(side, MergedModel([gaps[i] for i in index]), weights, delta=0.05)

    plain, moved = bound(range(4)), bound(order)
    assert math.isclose(plain.value, moved.value, rel_tol=1e-9)
    corners = vertices(plain)
    for position, i in enumerate(order):
        assert math.isclose(vertices(moved)[position].value, corners[i].value, rel_tol=1e-9)
    average = sum(b * c.value for b, c in zip(beta, corners, strict=True))
    assert math.isclose(average, plain.value, rel_tol=1e-9)
    assert min(c.value for c in corners) <= plain.value + 1e-9


@COMMON
@given(st.integers(0, 1000), INSIDE, st.floats(1.01, 3.0))
def test_theorem2_is_monotone(seed, delta, more):
    experts = [expert(seed), expert(seed + 1)]

    def value(changed, delta=delta):
        side = Experts([changed, experts[1]], cross_risk([torch.tensor([[0.1, 0.3]]), torch.tensor([[0.3, 0.1]])]))
        return theorem2(side, MergedModel(None), Weights((0.5, 0.5), (0.5, 0.5)), delta=delta).value

    first = experts[0]
    base = value(first)
    assert value(replace(first, n=first.n + 50)) < base
    assert value(replace(first, displacement_sq=tuple(d * more for d in first.displacement_sq))) > base
    assert value(first, delta / more) > base


@COMMON
@given(st.integers(1, 60), st.integers(0, 60), INSIDE, st.floats(1.01, 3.0), st.integers(1, 9))
def test_certificates_are_monotone_and_ordered(n, errors, delta, more, models):
    errors, delta = min(errors, n), delta / 2  # above 1/2 an upper limit may lie below the rate itself
    exact = held_out(errors, n, delta).value
    assert errors / n <= exact <= held_out(errors, n, delta, "kl").value + 1e-12
    assert held_out(errors, n, delta / more).value >= exact
    assert held_out(errors, n, delta, models_looked_at=models + 1).value >= exact
    assert held_out(2 * errors, 2 * n, delta, "kl").value <= held_out(errors, n, delta, "kl").value + 1e-12
    counts = [Count(errors, n), Count(n - errors, n)]
    assert mixture(counts, (0.5, 0.5), delta).value >= 0.5 - 1e-12
    assert pooled(counts, delta).value >= 0.5 - 1e-12


@COMMON
@given(UNIT, st.integers(2, 5000), st.floats(0.01, 2.0), INSIDE, st.integers(1, 500))
def test_coefficient_bound_is_monotone(error, n, distance, delta, draws):
    delta, zero, far = delta / 2, torch.zeros(3), torch.full((3,), distance)

    def value(mean, n=n, scale=0.5, grid_size=1, draws: int | None = draws):
        return coefficient_pac_bayes(error, n, mean, zero, scale, delta=delta, draws=draws, grid_size=grid_size).value

    assert error <= value(zero, draws=None) <= value(zero) <= value(far) <= 1.0
    assert value(far, grid_size=5) >= value(far)
    assert value(far, scale=0.25) >= value(far)
    assert value(far, n=2 * n) <= value(far) + 1e-12

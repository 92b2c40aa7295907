"""Closed forms for the one-task bounds: every symbol of (2), (2a), (3) is moved by some test."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import gammaln
from torch.distributions import Normal, kl_divergence

from bounds.pac_bayes import (
    CE_FLATNESS,
    best_flatness_bound,
    diagonal_gaussian_kl,
    empirical_flatness_bound,
    flatness_bound,
    gaussian_kl,
    kl_binary,
    kl_bound,
    kl_inverse,
    kl_lower_inverse,
    lemma1,
    maurer_bound,
    qsb_constant,
)
from bounds.types import Estimate, InputError

EXACT = 1e-12


def test_block_gaussian_kl_is_torchs():
    generator = torch.Generator().manual_seed(0)
    sizes, sigma = (3, 5, 2), (0.1, 2.0, 0.7)
    blocks = [torch.randn(k, generator=generator, dtype=torch.float64) for k in sizes]
    expected = sum(
        float(kl_divergence(Normal(d, s), Normal(torch.zeros_like(d), s)).sum())
        for d, s in zip(blocks, sigma, strict=True)
    )
    got = gaussian_kl([float((d**2).sum()) for d in blocks], sigma)
    assert got == pytest.approx(expected, rel=EXACT)


def test_a_block_that_does_not_move_may_have_sigma_zero():
    assert gaussian_kl([0.0, 8.0], [0.0, 2.0]) == 1.0
    for displacement, sigma in (
        ([1.0], [0.0]),
        ([0.0], [-1.0]),
        ([1.0], [-1.0]),
        ([-1.0], [1.0]),
        ([1.0], [1.0, 1.0]),
    ):
        with pytest.raises(InputError):
            gaussian_kl(displacement, sigma)


def test_diagonal_gaussian_kl_is_torchs_and_the_block_form_at_equal_variances():
    generator = torch.Generator().manual_seed(1)
    mean_q, mean_p = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    std_q, std_p = torch.rand(2, 7, generator=generator, dtype=torch.float64) + 0.2
    expected = float(kl_divergence(Normal(mean_q, std_q), Normal(mean_p, std_p)).sum())
    assert diagonal_gaussian_kl(mean_q, std_q, mean_p, std_p) == pytest.approx(expected, rel=EXACT)
    same = diagonal_gaussian_kl(mean_q, torch.full((7,), 0.3), mean_p, torch.full((7,), 0.3))
    assert same == pytest.approx(gaussian_kl([float(((mean_q - mean_p) ** 2).sum())], [0.3]), rel=1e-6)
    with pytest.raises(InputError):
        diagonal_gaussian_kl(mean_q, std_q * 0, mean_p, std_p)


def test_kl_binary_at_the_ends():
    got = kl_binary([0.0, 1.0, 0.0, 0.3, 0.3, 0.5], [0.0, 1.0, 0.2, 1.0, 0.0, 0.5])
    np.testing.assert_allclose(got, [0.0, 0.0, -math.log(0.8), math.inf, math.inf, 0.0])
    for p, q in ((1.1, 0.5), (0.5, -0.1), (math.nan, 0.5)):
        with pytest.raises(InputError):
            kl_binary(p, q)


def test_kl_inverse_against_a_root_finder_and_at_the_ends():
    for p in (1e-4, 0.13, 0.5, 0.9):
        for budget in (1e-4, 0.01, 0.5):
            root = brentq(lambda q, p=p, b=budget: float(kl_binary(p, q)) - b, p, 1 - 1e-15, xtol=1e-15)
            assert float(kl_inverse(p, budget)) == pytest.approx(root, abs=1e-10)
            if float(kl_binary(p, 1e-300)) < budget:
                continue  # the lower inverse is below the smallest float
            low = brentq(lambda q, p=p, b=budget: float(kl_binary(p, q)) - b, 1e-300, p, xtol=1e-16)
            assert float(kl_lower_inverse(p, budget)) == pytest.approx(low, abs=1e-10)
    ends = kl_inverse([0.0, 1.0, 0.3, 0.3], [0.7, 0.7, 0.0, math.inf])
    np.testing.assert_array_equal(ends, [-math.expm1(-0.7), 1.0, 0.3, 1.0])
    assert float(kl_inverse(0.0, 1e-21)) == 1e-21
    for budget in (-1.0, math.nan):
        with pytest.raises(InputError):
            kl_inverse(0.3, budget)


@pytest.mark.parametrize(("kl", "expected"), [(0, 0.165), (10, 0.185), (50, 0.237), (200, 0.355)])
def test_kl_bound_gives_the_published_sizes(kl, expected):
    bound = kl_bound(Estimate(0.13), kl, 1600, 1.0, delta=0.05)
    assert bound.value == pytest.approx(expected, abs=6e-4)
    assert bound.status == "certified"


def test_maurers_constant_holds_for_every_n():
    """The moment generating function behind both comparators is at most 2 sqrt(n), from n = 1 on."""
    for n in (1, 2, 3, 4, 5, 6, 7, 8, 50, 1000):
        k = np.arange(n + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_powers = np.nan_to_num(k * np.log(k / n)) + np.nan_to_num((n - k) * np.log(1 - k / n))
        log_choose = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        assert np.exp(log_choose + log_powers).sum() <= 2 * math.sqrt(n) * (1 + 1e-12)


def test_comparators_by_hand_and_their_order():
    risk, kl, n, delta, choices = Estimate(0.8), 7.0, 500, 0.05, math.log(3 * 8)
    budget = (kl + math.log(2 * math.sqrt(n)) + math.log(3 * 8 / 0.05)) / n
    square_root = maurer_bound(risk, kl, n, 4.0, delta=delta, log_choices=choices)
    inverse = kl_bound(risk, kl, n, 4.0, delta=delta, log_choices=choices)
    assert square_root.value == pytest.approx(0.8 + 4.0 * math.sqrt(budget / 2), rel=EXACT)
    assert float(kl_binary(0.2, inverse.value / 4)) == pytest.approx(budget, rel=1e-9)
    assert inverse.value < square_root.value
    with pytest.raises(InputError):
        maurer_bound(Estimate(4.1), kl, n, 4.0, delta=delta)
    with pytest.raises(InputError):
        kl_bound(risk, kl, n, 4.0, delta=delta, log_choices=-1.0)


@pytest.mark.parametrize("choices", [0.0, math.log(24.0)])
def test_every_bound_pays_for_delta_and_for_the_choices(choices):
    """G choices at delta cost what one choice at delta/G does; ln G is a count's logarithm, never negative."""
    risk, one, moment = Estimate(0.4), Estimate(0.1), Estimate(0.9)
    bounds = {
        "lemma1": lambda **paid: lemma1(risk, 3.0, 200, 0.5, moment, **paid),
        "flatness": lambda **paid: flatness_bound(risk, 3.0, 200, 0.5, one, moment, **paid),
        "best": lambda **paid: best_flatness_bound(risk, 3.0, 200, (0.1, 0.5), one, moment, **paid)[1],
        "empirical": lambda **paid: empirical_flatness_bound(risk, 3.0, 200, 0.5, one, moment, **paid),
        "maurer": lambda **paid: maurer_bound(risk, 3.0, 200, 4.0, **paid),
        "kl": lambda **paid: kl_bound(risk, 3.0, 200, 4.0, **paid),
    }
    for name, bound in bounds.items():
        found = bound(delta=0.1, log_choices=choices)
        assert found.value == pytest.approx(bound(delta=0.1 / math.exp(choices)).value, rel=EXACT), name
        assert found.delta == 0.1, name
        for delta, wrong in ((0.1, -0.5), (0.1, math.nan), (1.0, 0.0)):
            with pytest.raises(InputError):
                bound(delta=delta, log_choices=wrong)


def test_lemma1_by_hand():
    bound = lemma1(Estimate(0.4), 3.0, 200, 0.5, Estimate(0.9, 0.1), delta=0.1)
    assert bound.value == pytest.approx(0.4 + (3.0 + math.log(10)) / (0.5 * 200) + 0.25 * 0.9, rel=EXACT)
    assert bound.stderr == pytest.approx(0.25 * 0.1)


def test_flatness_bound_is_lemma1_solved_for_the_risk():
    """With E E_Q l^2 = flatness + C L (Poincaré and QSB as equalities), (2) is the fixed point of (2a)."""
    risk, kl, n, eta, delta = 0.4, 30.0, 300, 0.25, 0.05
    constant, flatness = 1.7, 0.6
    bound = flatness_bound(Estimate(risk), kl, n, eta, Estimate(constant), Estimate(flatness), delta=delta)
    again = lemma1(Estimate(risk), kl, n, eta, Estimate(flatness + constant * bound.value), delta=delta)
    assert bound.value == pytest.approx(again.value, rel=EXACT)


def test_constant_loss_is_qsb_equality():
    """l = C everywhere: the ratio is C, no gradient, and (2) at n = inf is C/(1 - eta C/2) >= C."""
    constant = qsb_constant(torch.full((50,), 1.3, dtype=torch.float64))
    assert constant.value == pytest.approx(1.3, rel=EXACT)
    assert constant.stderr == pytest.approx(0.0, abs=1e-12)
    bound = flatness_bound(Estimate(1.3), 0.0, 10**15, 0.2, constant, Estimate(0.0), delta=0.05)
    assert bound.value == pytest.approx(1.3 / (1 - 0.1 * 1.3), rel=1e-9)


def test_linear_loss_is_poincare_equality():
    """l(theta) = c + <a, theta - m>: Var_Q l = <a, S a> = E<grad, S grad>, so (2) and (2a) meet exactly."""
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randn(40, 6, generator=generator, dtype=torch.float64) * 0.05
    offsets = 1.0 + torch.rand(40, generator=generator, dtype=torch.float64)
    sigma = 0.8
    flatness = float((sigma**2 * slopes**2).sum(1).mean())
    # Quadrature over the one direction that matters per example gives E_Q l^2 without Poincaré.
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    spread = sigma * slopes.norm(dim=1).numpy()
    values = offsets.numpy()[:, None] + spread[:, None] * nodes
    second_moment = float(((values**2) @ weights / weights.sum()).mean())
    ratio, mean = qsb_constant(offsets), float(offsets.mean())
    assert second_moment == pytest.approx(flatness + ratio.value * mean, rel=1e-10)
    # At L^ such that (2a) reads L = ..., (2) gives the same L.
    n, eta, kl, delta = 1000, 0.1, 5.0, 0.05
    training = mean - (kl + math.log(1 / delta)) / (eta * n) - eta / 2 * second_moment
    assert lemma1(Estimate(training), kl, n, eta, Estimate(second_moment), delta=delta).value == pytest.approx(mean)
    bound = flatness_bound(Estimate(training), kl, n, eta, ratio, Estimate(flatness), delta=delta)
    assert bound.value == pytest.approx(mean, rel=1e-10)


def test_donsker_varadhan_equality_pins_the_kl():
    """ln E_P e^<a, u> = E_Q<a, u> - KL at Q = N(theta_0 + S a, S): a KL off by a factor breaks it."""
    a, sigma, eta, n, delta = np.array([0.7, -1.1, 0.4]), np.array([0.5, 1.5, 0.9]), 0.3, 50, 0.05
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    log_mgf = sum(math.log(np.exp(ak * sk * nodes) @ weights / weights.sum()) for ak, sk in zip(a, sigma, strict=True))
    shift = sigma**2 * a
    bound = lemma1(Estimate(0.0), gaussian_kl(list(shift**2), list(sigma)), n, eta, Estimate(0.0), delta=delta)
    kl_paid = bound.value * eta * n - math.log(1 / delta)
    assert float(a @ shift) - kl_paid == pytest.approx(log_mgf, rel=1e-10)
    two = flatness_bound(
        Estimate(0.0),
        gaussian_kl(list(shift**2), list(sigma)),
        n,
        eta,
        Estimate(0.0),
        Estimate(0.0),
        delta=delta,
    )
    assert two.value == pytest.approx(bound.value, rel=EXACT)


def test_empirical_form_is_the_flatness_bound_with_the_self_bound_put_in():
    """flatness = 2 gamma kappa L at equality, so (3) is the fixed point of (2)."""
    args = (Estimate(0.4), 3.0, 300, 0.2)
    constant, kappa, gamma = Estimate(1.1), 0.7, 0.8
    three = empirical_flatness_bound(*args, constant, Estimate(kappa), delta=0.05, gamma=gamma)
    two = flatness_bound(*args, constant, Estimate(2 * gamma * kappa * three.value), delta=0.05)
    assert three.value == pytest.approx(two.value, rel=EXACT)
    refined = empirical_flatness_bound(*args, constant, Estimate(0.9), delta=0.05, refined=True)
    two = flatness_bound(*args, constant, Estimate(CE_FLATNESS * 0.9 * refined.value), delta=0.05)
    assert refined.value == pytest.approx(two.value, rel=EXACT)
    with pytest.raises(InputError):
        empirical_flatness_bound(*args, constant, Estimate(100.0), delta=0.05)


def test_ce_flatness_is_the_supremum():
    losses = np.linspace(1e-3, 20, 400_001)
    supremum = float(((-np.expm1(-losses)) ** 2 / losses).max())
    assert 0 <= CE_FLATNESS - supremum < 1e-4


def test_ce_gradient_obeys_both_self_bounds():
    """||J^T (p - e_y)||^2 <= 0.4073 D^2 l and <= 2 gamma kappa_op l, on random softmaxes."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        classes = int(torch.randint(2, 7, (), generator=generator))
        scores = 4 * torch.randn(classes, generator=generator, dtype=torch.float64)
        jacobian = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
        loss = -torch.log_softmax(scores, 0)[0]
        residual = torch.softmax(scores, 0) - torch.eye(classes, dtype=torch.float64)[0]
        squared = float(((residual @ jacobian) ** 2).sum())
        differences = (jacobian[:, None] - jacobian[None, :]).pow(2).sum(-1).max()
        assert squared <= CE_FLATNESS * float(differences * loss) + 1e-12
        assert squared <= float(torch.linalg.matrix_norm(jacobian, 2) ** 2 * loss) + 1e-12


def test_standard_errors_follow_every_estimated_input():
    """Delta method against a numerical derivative of the value, one input at a time."""
    inputs = {"risk": 0.4, "constant": 1.2, "flatness": 0.6}

    def bound(spread_in=None, **values):
        made = {k: Estimate(v, 1e-3 if k == spread_in else 0.0, 10, "estimated") for k, v in values.items()}
        return flatness_bound(made["risk"], 3.0, 100, 0.3, made["constant"], made["flatness"], delta=0.05)

    for name in inputs:
        up = bound(**{**inputs, name: inputs[name] + 1e-6}).value
        slope = (up - bound(**inputs).value) / 1e-6
        assert bound(name, **inputs).stderr == pytest.approx(1e-3 * slope, rel=1e-4)


def test_statuses_never_certified():
    certified = Estimate(0.4, 0.0, 10, "certified")
    bound = flatness_bound(certified, 3.0, 100, 0.3, certified, certified, delta=0.05)
    assert bound.status == "estimated"
    assert lemma1(Estimate(0.1), 3.0, 100, 0.3, certified, delta=0.05).status == "estimated"


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 0.0},
        {"delta": 1.0},
        {"n": 0},
        {"eta": 0.0},
        {"eta": 2.0},
        {"kl": -1.0},
        {"risk": -0.1},
        {"flat": math.nan},
    ],
)
def test_flatness_bound_refuses(change):
    given = {"delta": 0.05, "n": 10, "eta": 0.5, "kl": 1.0, "risk": 0.4, "flat": 0.1, **change}
    with pytest.raises(InputError):
        flatness_bound(
            Estimate(given["risk"]),
            given["kl"],
            given["n"],
            given["eta"],
            Estimate(1.0),
            Estimate(given["flat"]),
            delta=given["delta"],
        )

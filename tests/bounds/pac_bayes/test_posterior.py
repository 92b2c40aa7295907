"""Prices, grids, the QSB constant, closed-form sigma, and the choice of a posterior."""

import math

import numpy as np
import pytest
import torch

from bounds.pac_bayes import (
    amplification,
    best_flatness_bound,
    flatness_bound,
    log_choices,
    optimal_sigma,
    price,
    qsb_constant,
    round_to_grid,
)
from bounds.theorems import Moments, choose_posterior
from bounds.types import Estimate, InputError

EXACT = 1e-12


def test_qsb_constant_is_the_ratio_with_a_right_standard_error():
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert qsb_constant(losses).value == pytest.approx(14 / 6)
    assert qsb_constant(torch.zeros(4)).value == 0.0
    generator = torch.Generator().manual_seed(4)
    draws = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64))
    torch.manual_seed(int(torch.randint(10**6, (), generator=generator)))
    table = draws.sample((2000, 400))
    ratios = (table**2).mean(1) / table.mean(1)
    stated = torch.tensor([qsb_constant(row).stderr for row in table[:200]]).mean()
    assert float(stated) == pytest.approx(float(ratios.std()), rel=0.1)
    for bad in (torch.tensor([-1.0]), torch.tensor([math.nan]), torch.tensor([])):
        with pytest.raises(InputError):
            qsb_constant(bad)


def test_log_choices_count_every_choice_once():
    grid_eta, grid_sigma = (0.1, 0.2, 0.4), (1.0, 2.0)
    assert log_choices(grid_eta, grid_sigma, 4) == pytest.approx(math.log(3 * 2**4))
    assert log_choices(grid_eta, grid_sigma, 4, tied=True) == pytest.approx(math.log(3 * 2))
    assert log_choices(None, grid_sigma, 1) == pytest.approx(math.log(2))
    for bad in (((), grid_sigma, 1), (grid_eta, (0.0,), 1), (grid_eta, grid_sigma, 0)):
        with pytest.raises(InputError):
            log_choices(*bad)


def test_price_is_that_of_all_statements_and_choices():
    assert price(5, 0.05, math.log(48)) == pytest.approx(math.log(5 * 48 / 0.05))
    assert price(1, 0.05) == pytest.approx(math.log(1 / 0.05))
    for bad in ((0, 0.05, 0.0), (1, 1.0, 0.0), (1, 0.05, -0.1)):
        with pytest.raises(InputError):
            price(*bad)


def cost_of_sigma(sigma, displacement, kernel, gradient, n, eta, constant, gamma):
    """The sigma-dependent part of one expert's (5)."""
    a, b = (e.value for e in amplification(eta, Estimate(constant)))
    variance = np.asarray(sigma) ** 2
    noise = a * gamma / 2 * np.asarray(kernel) + b * np.asarray(gradient)
    return float((a * np.asarray(displacement) / (2 * eta * n * variance) + variance * noise).sum())


def test_optimal_sigma_is_a_minimum_untied_and_tied():
    setting = {"n": 700, "eta": 0.2, "gamma": 0.5}
    blocks = ([2.0, 0.5], [30.0, 4.0], [1.0, 5.0])
    for tied in (False, True):
        best = np.array(optimal_sigma(*blocks, **setting, qsb=Estimate(1.5), tied=tied))
        value = cost_of_sigma(best, *blocks, 700, 0.2, 1.5, 0.5)
        nudges = [(f, f) for f in (0.99, 1.01)] if tied else [(f, g) for f in (0.99, 1, 1.01) for g in (0.99, 1, 1.01)]
        for nudge in nudges:
            if nudge != (1, 1):
                assert cost_of_sigma(best * nudge, *blocks, 700, 0.2, 1.5, 0.5) > value
        assert (best[0] == best[1]) == tied


def test_frozen_and_free_blocks():
    got = optimal_sigma([0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0], n=10, eta=0.1, qsb=Estimate(1.0))
    assert got[0] == 0.0
    assert got[1] == math.inf
    assert 0.0 < got[2] < math.inf
    assert round_to_grid(0.0, [1.0]) == 0.0
    assert round_to_grid(math.inf, [1.0, 4.0]) == 4.0


def test_rounding_costs_at_most_six_point_one_per_cent():
    grid = [2 ** (k / 2) for k in range(-20, 21)]
    blocks, worst = ([2.0], [30.0], [1.0]), 1.0
    for scale in np.geomspace(0.1, 10, 300):
        scaled = ([blocks[0][0] * scale], blocks[1], blocks[2])
        (best,) = optimal_sigma(*scaled, n=700, eta=0.2, qsb=Estimate(1.5))
        on_grid = cost_of_sigma([round_to_grid(best, grid)], *scaled, 700, 0.2, 1.5, 0.5)
        assert on_grid == min(cost_of_sigma([g], *scaled, 700, 0.2, 1.5, 0.5) for g in grid)
        worst = max(worst, on_grid / cost_of_sigma([best], *scaled, 700, 0.2, 1.5, 0.5))
    assert 1.055 < worst <= 1.061


def test_best_eta_is_the_smallest_on_the_grid_and_is_paid():
    grid = (0.05, 0.2, 0.8, 3.0)
    fixed = (Estimate(0.4), 30.0, 500)
    rest = (Estimate(0.9), Estimate(0.5))
    for others in (1, 6):
        eta, bound = best_flatness_bound(*fixed, grid, *rest, delta=0.05, log_choices=math.log(others))
        paid = math.log(4 * others)
        values = {e: flatness_bound(*fixed, e, *rest, delta=0.05, log_choices=paid).value for e in grid[:3]}
        assert bound.value == pytest.approx(min(values.values()), rel=EXACT)
        assert eta == min(values, key=lambda e: values[e])
    with pytest.raises(InputError):
        best_flatness_bound(*fixed, (3.0,), *rest, delta=0.05)


def objective(eta, sigma, own, displacement, kernel, moments, n, nats):
    a, b = (e.value for e in amplification(eta, moments.qsb))
    risk = own + 0.25 * sum(s**2 * k for s, k in zip(sigma, kernel, strict=True))
    complexity = (sum(d / (2 * s**2) for d, s in zip(displacement, sigma, strict=True)) + nats) / (eta * n)
    return a * (risk + complexity) + b * sum(s**2 * g.value for s, g in zip(sigma, moments.gradient, strict=True))


def test_choose_posterior_finds_the_grid_optimum_with_constant_moments():
    etas, sigmas, nats = (0.05, 0.1, 0.2, 0.4), (0.05, 0.1, 0.2, 0.4, 0.8), 6.0
    own, displacement, kernel, n = 0.2, (1.0, 3.0), (8.0, 0.5), 900
    moments = Moments((Estimate(0.4), Estimate(0.1)), Estimate(0.9))
    choice = choose_posterior(own, displacement, kernel, moments, n=n, log_price=nats, eta_grid=etas, sigma_grid=sigmas)
    table = {
        (e, (s, t)): objective(e, (s, t), own, displacement, kernel, moments, n, nats)
        for e in etas
        for s in sigmas
        for t in sigmas
    }
    assert (choice.eta, choice.sigma) == min(table, key=lambda key: table[key])
    assert choice.objective == pytest.approx(min(table.values()), rel=EXACT)


def test_choose_posterior_reads_moments_at_the_sigma_it_returns():
    calls = []

    def moments(sigma):
        calls.append(sigma)
        return Moments((Estimate(0.4 + sigma[0]),), Estimate(0.5 + sigma[0] ** 2))

    etas, sigmas = (0.05, 0.2, 3.9), (0.1, 0.2, 0.4, 0.8)
    choice = choose_posterior(0.2, (1.0,), (8.0,), moments, n=900, log_price=6.0, eta_grid=etas, sigma_grid=sigmas)
    assert choice.moments == moments(choice.sigma)
    assert choice.objective == pytest.approx(
        objective(choice.eta, choice.sigma, 0.2, (1.0,), (8.0,), choice.moments, 900, 6.0), rel=EXACT
    )
    assert len(calls) - 1 == len(set(calls)), "each sigma is read once"
    with pytest.raises(InputError):
        choose_posterior(0.2, (1.0,), (8.0,), moments, n=900, log_price=6.0, eta_grid=(9.0,), sigma_grid=sigmas)


def test_log_choices_with_zero_count_one_more_value_per_block():
    free = log_choices([1.0], [0.1, 0.2, 0.3], 2, with_zero=True)
    assert free == pytest.approx(math.log(4**2))
    tied = log_choices([1.0], [0.1, 0.2, 0.3], 2, tied=True, with_zero=True)
    assert tied == pytest.approx(math.log(3 * 2**2))

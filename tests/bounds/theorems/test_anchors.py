"""The slack of the experts' own bounds at any anchor, in a world of softmaxes that are linear in theta."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar

from bounds.heterogeneity import cross_risk
from bounds.pac_bayes import optimal_sigma
from bounds.theorems import (
    AnchorStatistics,
    Experts,
    MergedModel,
    Weights,
    examples_for_slack,
    isotropic_slack,
    slack,
    slacks,
    theorem2,
)
from bounds.types import Estimate, InputError

ALPHA, BETA, DELTA = (0.5, 0.2, 0.3), (0.1, 0.6, 0.3), 0.05


def log_softmax(scores):
    return scores - np.logaddexp.reduce(scores, -1, keepdims=True)


class World:
    """Linear scores, three finite tasks; posteriors N(c tau_j, sigma^2 I) in two dimensions, by quadrature."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.jacobians = generator.normal(size=(3, 6, 4, 2))
        self.labels = generator.integers(4, size=(3, 6))
        self.taus, self.merged = generator.normal(size=(3, 2)), np.array([0.8, -0.9])
        nodes, weights = np.polynomial.hermite_e.hermegauss(30)
        self.grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
        self.weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def losses(self, theta):
        return -np.take_along_axis(log_softmax(self.jacobians @ theta), self.labels[..., None], -1)[..., 0]

    def at(self, c, sigma):
        """Return the experts at anchors c tau_j, and gap and gain of the merge against them."""
        tables, gain = np.zeros((3, 6, 3)), 0.0
        log_merged = log_softmax(self.jacobians @ self.merged)
        for j in range(3):
            for point, weight in zip(self.grid, self.weights, strict=True):
                theta = c * self.taus[j] + sigma * point
                tables[:, :, j] += weight * self.losses(theta)
                divergence = (np.exp(log_merged) * (log_merged - log_softmax(self.jacobians @ theta))).sum(-1)
                gain += BETA[j] * weight * float(np.array(ALPHA) @ divergence.mean(-1))
        residual = np.exp(log_merged) - np.eye(4)[self.labels]
        gradient = np.einsum("t,tnkp,tnk->p", np.array(ALPHA), self.jacobians, residual) / 6
        gap = float(gradient @ (self.merged - c * np.array(BETA) @ self.taus))
        statistics = [
            AnchorStatistics(
                own_risk=Estimate(float(self.losses(c * tau)[j].mean())),
                n=500,
                displacement_sq=(float(c * c * tau @ tau),),
                kernel=(Estimate(float((self.jacobians[j] ** 2).sum((-1, -2)).mean())),),
                gradient=(Estimate(0.3),),
                sigma=(sigma,),
                eta=0.1,
                qsb=Estimate(2.0),
            )
            for j, tau in enumerate(self.taus)
        ]
        side = Experts(statistics, cross_risk([torch.tensor(t) for t in tables]), math.log(20.0))
        return side, Estimate(gap), Estimate(gain)

    def right_side(self, c, sigma, *, with_gain=True):
        side, gap, gain = self.at(c, sigma)
        merge = MergedModel(gap, gain if with_gain else None)
        return side, theorem2(side, merge, Weights(ALPHA, BETA), delta=DELTA).value


def test_at_free_anchors_the_right_side_is_the_risk_plus_the_slack():
    """(17) at c = 0 and elsewhere; without the Bregman gain it is another number."""
    world = World()
    risk = float(np.array(ALPHA) @ world.losses(world.merged).mean(-1))
    totals = {}
    for c, sigma in ((0.0, 0.0), (0.5, 0.4), (1.0, 0.4)):
        side, totals[c] = world.right_side(c, sigma)
        slack = [e.value for e in slacks(side, delta=DELTA)]
        assert totals[c] == pytest.approx(risk + sum(b * s for b, s in zip(BETA, slack, strict=True)), abs=1e-6)
        assert abs(world.right_side(c, sigma, with_gain=False)[1] - totals[c]) > 0.05
    assert totals[0.0] < totals[0.5] < totals[1.0]  # for one and the same merge


def test_at_theta_zero_only_the_price_is_left():
    side, *_ = World().at(0.0, 0.0)
    for j, (found, anchor) in enumerate(zip(slacks(side, delta=DELTA), side.statistics, strict=True)):
        price = math.log(3 * 20.0 / DELTA)
        by_hand = (anchor.own_risk.value + price / (0.1 * 500)) / (1 - 0.1) - float(side.cross.risk[j, j])
        assert found.value == pytest.approx(by_hand, rel=1e-9)
        assert found.status == "estimated"


def test_isotropic_slack_is_noise_and_kl_at_their_best_sigma():
    """Noise equals KL there, and n (slack)^2 examples make one nat."""
    moved, kernel, eta, n = (0.7, 2.0), (40.0, 3.0), 0.25, 800
    total = 0.0
    for d, k in zip(moved, kernel, strict=True):
        sigma = optimal_sigma([d], [k], [0.0], n=n, eta=eta, qsb=Estimate(0.0))[0]
        noise, kl = 0.25 * sigma**2 * k, d / (2 * sigma**2) / (eta * n)
        assert noise == pytest.approx(kl, rel=1e-9)
        total += noise + kl
    found = isotropic_slack(moved, kernel, eta=eta, n=n)
    assert found == pytest.approx(total, rel=1e-9)
    nat = round(n * found**2 * 1000)
    assert isotropic_slack(moved, kernel, eta=eta, n=nat) == pytest.approx(1000**-0.5, rel=1e-3)
    assert isotropic_slack(moved, kernel, eta=eta, n=n, amplification=2.0) == pytest.approx(2 * found)
    for bad in ({"eta": 0.0}, {"n": 0}, {"gamma": -1.0}):
        with pytest.raises(InputError):
            isotropic_slack(moved, kernel, **{"eta": eta, "n": n, **bad})
    with pytest.raises(InputError):
        isotropic_slack(moved, kernel[:1], eta=eta, n=n)


WIDE = AnchorStatistics(
    own_risk=Estimate(0.3),
    n=500,
    displacement_sq=(0.7, 2.0, 0.0),
    kernel=(Estimate(40.0), Estimate(3.0), Estimate(9.0)),
    gradient=(Estimate(6.0), Estimate(0.5), Estimate(1.0)),
    sigma=(0.1, 0.3, 0.0),
    eta=0.125,
    qsb=Estimate(2.0),
)
RATES, PRICE = (0.0625, 0.125, 0.25, 0.5), 25.0


def least_slack(n, risk):
    """Minimise every block's noise, KL and flatness by scipy, at every rate; the brace written out."""
    found = []
    for eta in RATES:
        a, b = 1 / (1 - eta), eta / (2 - 2 * eta)
        total = a * (0.3 + PRICE / (eta * n)) - risk
        for d, k, g in ((0.7, 40.0, 6.0), (2.0, 3.0, 0.5)):
            cost = lambda t, d=d, k=k, g=g, a=a, b=b, eta=eta: (  # noqa: E731
                a * (math.exp(t) * k / 4 + d / (2 * math.exp(t) * eta * n)) + b * math.exp(t) * g
            )
            total += minimize_scalar(cost, bounds=(-25, 10), method="bounded", options={"xatol": 1e-9}).fun  # pyright: ignore
        found.append(total)
    return min(found)


@pytest.mark.parametrize("target", [1.0, 0.25])
def test_the_sample_size_of_a_slack_is_where_the_minimised_brace_has_it(target):
    found = examples_for_slack(WIDE, 0.32, log_price=PRICE, eta_grid=RATES, target=target)
    assert found is not None
    root = brentq(lambda log_n: least_slack(math.exp(log_n), 0.32) - target, 0, 25)
    assert found.n == pytest.approx(math.exp(root), rel=1e-4, abs=1)  # pyright: ignore
    there = dataclasses.replace(WIDE, n=found.n, eta=found.eta, sigma=found.sigma)
    assert slack(there, Estimate(0.32), log_price=PRICE).value == pytest.approx(target, rel=1e-2)
    by_hand = WIDE.n * (slack(WIDE, Estimate(0.32), log_price=PRICE).value / target) ** 2
    assert abs(by_hand - found.n) > 0.05 * found.n  # n^{-1/2} alone is not the answer: eta is chosen anew
    without_price = examples_for_slack(WIDE, 0.32, log_price=0.0, eta_grid=RATES, target=target)
    assert without_price is not None
    assert without_price.n < 0.99 * found.n


def test_no_sample_is_large_enough_where_the_experts_risk_itself_is_higher():
    assert examples_for_slack(WIDE, 0.0, log_price=PRICE, eta_grid=(0.5,), target=0.5) is None  # A L^ = 0.6
    assert examples_for_slack(WIDE, 0.0, log_price=PRICE, eta_grid=RATES, target=0.5) is not None
    for bad in ({"target": 0.0}, {"eta_grid": ()}, {"log_price": -1.0}):
        with pytest.raises(InputError):
            examples_for_slack(WIDE, 0.3, **{"log_price": PRICE, "eta_grid": RATES, **bad})

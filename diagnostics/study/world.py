"""A world in which every population quantity is exact: one-hot inputs, logistic loss, Gaussian posterior.

Inputs are x = e_k with k uniform over ``cells``; the label is +1 with probability p_k, else -1; both labels
are in the pool. In units of the prior's standard deviation theta ~ N(nu, I), prior N(0, I), and the margin of
cell k is y * scale * theta_k: a model that is linear in theta. As a two-class softmax with scores (f/2, -f/2)
its centred kernel has trace scale^2/2 and gamma = 1/2. Expectations over N(nu, 1) are tabulated by the
trapezoidal rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

LIMIT = 30.0
PAIR_BASE = 1_000_000


def sigmoid(margin: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-margin)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -margin))


def cross_entropy(margin: np.ndarray) -> np.ndarray:
    """ln(1 + exp(-margin)), without overflow."""
    return np.logaddexp(0.0, -margin)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What one task's posterior gives on each of D samples, all [D]: exact but for the table's interpolation.

    ``training_risk`` E_Q L^, ``risk`` L(Q), ``squared`` E_z (E_Q l)^2, ``second_moment`` E_z E_Q l^2,
    ``flatness`` E_z E_Q ||grad l||^2 (sigma = 1), ``divergence`` KL(Q || P).
    """

    training_risk: np.ndarray
    risk: np.ndarray
    squared: np.ndarray
    second_moment: np.ndarray
    flatness: np.ndarray
    divergence: np.ndarray

    @property
    def qsb(self) -> np.ndarray:
        """The ratio E (E_Q l)^2 / E E_Q l."""
        return self.squared / self.risk


class OneHotLogistic:
    """Expectations over theta_k ~ N(nu, 1) for the label +1; those for -1 are at -nu."""

    def __init__(self, scale: float, step: float = 0.02) -> None:
        self.scale = scale
        nu = np.arange(-LIMIT, LIMIT + step / 2, step)
        noise = np.arange(-9.0, 9.0 + 1e-9, 0.04)
        weights = np.exp(-(noise**2) / 2.0)
        weights /= weights.sum()
        margin = scale * (nu[:, None] + noise)
        loss, slope = cross_entropy(margin), scale * sigmoid(-margin)
        self.loss = CubicSpline(nu, loss @ weights)
        self.loss_squared = CubicSpline(nu, loss**2 @ weights)
        self.slope_squared = CubicSpline(nu, slope**2 @ weights)
        self.derivative = CubicSpline(nu, -(slope @ weights))

    @property
    def kernel_trace(self) -> float:
        """Centred tr K, the same for every input."""
        return self.scale**2 / 2.0

    def risk(self, nu: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Return L(Q) [D] for means ``nu`` [D, cells] and label probabilities ``positive`` [cells]."""
        return (positive * self.loss(nu) + (1.0 - positive) * self.loss(-nu)).mean(-1)

    def point_risk(self, theta: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Return L(theta) [D] of single models ``theta`` [D, cells]."""
        margin = self.scale * theta
        return (positive * cross_entropy(margin) + (1.0 - positive) * cross_entropy(-margin)).mean(-1)

    def point_training_risk(self, theta: np.ndarray, plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
        """Return L^(theta) [D] on samples with counts ``plus`` and ``minus`` [D, cells]."""
        margin = self.scale * theta
        total = (plus * cross_entropy(margin) + minus * cross_entropy(-margin)).sum(-1)
        return total / (plus + minus).sum(-1)

    def point_gradient(self, theta: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Return grad L(theta) [D, cells]."""
        return self.scale * (sigmoid(self.scale * theta) - positive) / theta.shape[-1]

    def bregman_gain(self, theta: np.ndarray, nu: np.ndarray) -> np.ndarray:
        """Return E_x E_Q KL(p_theta || p) [D]: a Bregman divergence of ln(1 + e^f), free of labels."""
        score = self.scale * theta
        slope = sigmoid(score) * self.scale * (nu - theta)
        return (self.loss(-nu) - cross_entropy(-score) - slope).mean(-1)

    def draws(self, nu: np.ndarray, plus: np.ndarray, minus: np.ndarray, positive: np.ndarray) -> Draws:
        """Return all statistics of the posteriors ``nu`` on samples ``plus``, ``minus``, all [D, cells]."""
        if np.abs(nu).max() > LIMIT - 1.0:
            raise ValueError(f"posterior means reach {np.abs(nu).max():.1f}, beyond the table")
        up, down, negative = self.loss(nu), self.loss(-nu), 1.0 - positive
        return Draws(
            training_risk=(plus * up + minus * down).sum(-1) / (plus + minus).sum(-1),
            risk=(positive * up + negative * down).mean(-1),
            squared=(positive * up**2 + negative * down**2).mean(-1),
            second_moment=(positive * self.loss_squared(nu) + negative * self.loss_squared(-nu)).mean(-1),
            flatness=(positive * self.slope_squared(nu) + negative * self.slope_squared(-nu)).mean(-1),
            divergence=(nu**2).sum(-1) / 2.0,
        )


def sample_counts(
    generator: np.random.Generator, size: int, positive: np.ndarray, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count each cell with label +1 and with -1, two [draws, cells], among ``size`` i.i.d. examples."""
    cells = len(positive)
    probabilities = np.concatenate([positive, 1.0 - positive]) / cells
    counts = generator.multinomial(size, probabilities, size=draws)
    return counts[:, :cells], counts[:, cells:]


def per_pair(choose: Callable[[np.ndarray, np.ndarray], np.ndarray], plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Apply a rule that looks at one cell's counts to every cell, once per distinct pair."""
    pairs, where = np.unique(plus * PAIR_BASE + minus, return_inverse=True)
    chosen = choose((pairs // PAIR_BASE).astype(float), (pairs % PAIR_BASE).astype(float))
    return chosen[where].reshape(plus.shape)


def regularised_mean(world: OneHotLogistic, plus: np.ndarray, minus: np.ndarray, strength: float) -> np.ndarray:
    """Minimise n L^(Q) + strength * KL over the posterior means, cell by cell (bisection)."""

    def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        low, high = np.full_like(a, -LIMIT), np.full_like(a, LIMIT)
        for _ in range(45):
            middle = (low + high) / 2.0
            slope = a * world.derivative(middle) - b * world.derivative(-middle) + strength * middle
            low, high = np.where(slope < 0.0, middle, low), np.where(slope < 0.0, high, middle)
        return (low + high) / 2.0

    return per_pair(solve, plus, minus)


def adversarial_mean(
    world: OneHotLogistic,
    plus: np.ndarray,
    minus: np.ndarray,
    positive: float,
    eta: float,
    *,
    divergence_factor: float = 1.0,
    moment_factor: float = 0.5,
    split: bool = True,
) -> np.ndarray:
    """Maximise n eta (L - L^ - moment_factor eta M) - divergence_factor KL per cell, knowing the population.

    M is E_z[(E_Q l)^2 + E_Q ||grad l||^2] as in (2) with the ratio for C (``split``), or E_z E_Q l^2 as in
    (2a). All cells share one label probability.
    """
    size, cells = float((plus + minus)[0].sum()), plus.shape[1]
    nu = np.arange(-12.0, 12.0 + 1e-9, 0.005)
    up, down = world.loss(nu), world.loss(-nu)
    if split:
        moments = [world.loss(sign * nu) ** 2 + world.slope_squared(sign * nu) for sign in (1, -1)]
    else:
        moments = [world.loss_squared(sign * nu) for sign in (1, -1)]
    moment = positive * moments[0] + (1.0 - positive) * moments[1]
    population = size / cells * (positive * up + (1.0 - positive) * down - moment_factor * eta * moment)
    fixed = population - divergence_factor * nu**2 / (2.0 * eta)

    def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return nu[(fixed - a[:, None] * up - b[:, None] * down).argmax(1)]

    return per_pair(solve, plus, minus)

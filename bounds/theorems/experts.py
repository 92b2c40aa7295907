"""What the theorems need to know about the experts, and the parts of each that make up the terms.

Per-expert values carry their factors A_j, B_j; the weights beta_j enter in the sum only, so that the vertices
of (5) can be read off the terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from bounds.heterogeneity import CrossRisk, heterogeneity
from bounds.pac_bayes import amplification, gaussian_kl, price
from bounds.pac_bayes.posterior import dependent_sum, product, uncertified
from bounds.theorems.terms import HETEROGENEITY, MERGE_RISK
from bounds.theorems.weights import Weights, check_tasks
from bounds.types import Estimate, Term, refuse
from bounds.validation import check_count, check_estimate, check_nonnegative, check_positive

IID = "each task's training points are i.i.d.; theta_0, heads, blocks and grids do not depend on them"
HELD_OUT = "the held-out data behind C, flatness, H_Q, the gap and the gain are unused in training and choices"


@dataclass(frozen=True, kw_only=True)
class PosteriorStatistics:
    """One expert's posterior Q_j in (4).

    ``posterior_risk`` = training risk E_Q L^_j (mean over all n points); ``kl`` = KL(Q_j || P_j) in nats;
    ``flatness`` = E_{D_j} E_{Q_j} <grad l, S_j grad l>; ``eta`` the rate; ``qsb`` the constant C_j.

    Raises:
        InputError: negative or non-finite values, n < 1, eta <= 0, eta C >= 2.
    """

    posterior_risk: Estimate
    n: int
    kl: float
    flatness: Estimate
    eta: float
    qsb: Estimate

    def __post_init__(self) -> None:
        check_count(self.n, "n")
        check_nonnegative(self.kl, "KL")
        check_estimate(self.posterior_risk, "posterior risk")
        check_estimate(self.flatness, "flatness")
        amplification(self.eta, self.qsb)

    @property
    def factors(self) -> tuple[Estimate, Estimate]:
        """A_j and B_j."""
        return amplification(self.eta, uncertified(self.qsb))


@dataclass(frozen=True, kw_only=True)
class AnchorStatistics:
    """One expert's anchor m_j and posterior N(m_j, diag sigma_b^2) in (5); tuples run over blocks.

    ``own_risk`` = L^_j(m_j), mean over all n points; ``displacement_sq`` = ||m_{j,b} - theta_{0,b}||^2;
    ``kernel`` = sample means of tr K restricted to the block; ``gradient`` = E_D E_Q ||grad_b l||^2 on unused
    data; ``sigma`` the standard deviations (0 only in a block that does not move); ``eta`` the rate; ``qsb``
    the constant C_j.

    Raises:
        InputError: block counts differ, negative or non-finite values, sigma <= 0 in a moving block, n < 1,
            eta <= 0, eta C >= 2.
    """

    own_risk: Estimate
    n: int
    displacement_sq: tuple[float, ...]
    kernel: tuple[Estimate, ...]
    gradient: tuple[Estimate, ...]
    sigma: tuple[float, ...]
    eta: float
    qsb: Estimate

    def __post_init__(self) -> None:
        check_count(self.n, "n")
        check_estimate(self.own_risk, "own risk")
        sizes = (len(self.displacement_sq), len(self.kernel), len(self.gradient), len(self.sigma))
        if len(set(sizes)) != 1:
            refuse("blocks", expected="equal lengths", got=sizes, cure="use one partition for all statistics")
        for what, values in (("kernel trace", self.kernel), ("gradient moment", self.gradient)):
            for value in values:
                check_estimate(value, what)
        gaussian_kl(self.displacement_sq, self.sigma)
        amplification(self.eta, self.qsb)

    @property
    def kl(self) -> float:
        """KL_j = sum_b ||d_b||^2 / (2 sigma_b^2), in nats."""
        return gaussian_kl(self.displacement_sq, self.sigma)

    @property
    def factors(self) -> tuple[Estimate, Estimate]:
        """A_j and B_j."""
        return amplification(self.eta, uncertified(self.qsb))

    @property
    def flatness(self) -> Estimate:
        """sum_b sigma_b^2 E_D E_Q ||grad_b l||^2."""
        return dependent_sum(self.gradient, [s**2 for s in self.sigma])

    def noise(self, gamma: float) -> Estimate:
        """Lemma 3: (gamma/2) sum_b sigma_b^2 kappa_b."""
        return dependent_sum(self.kernel, [check_positive(gamma, "gamma") / 2.0 * s**2 for s in self.sigma])

    def with_eta(self, eta: float) -> AnchorStatistics:
        """Return the same statistics at another rate."""
        return replace(self, eta=eta)


@dataclass(frozen=True, kw_only=True)
class MergeAnchor:
    """What (6) needs to move expert j's anchor to the merged model, on the training sample of task j.

    ``risk`` = L^_j(theta_m); ``gradient_norm_sq`` = ||grad L^_j(theta_m)||^2; ``distance_sq`` =
    ||m_j - theta_m||^2; ``kernel_dispersion`` = mean_i ||J(x_i)(m_j - theta_m)||^2; ``mu`` > 0, or None for
    the best one, ||grad|| / ||m_j - theta_m||.

    Raises:
        InputError: negative or non-finite values, mu <= 0.
    """

    risk: Estimate
    gradient_norm_sq: Estimate
    distance_sq: float
    kernel_dispersion: Estimate
    mu: float | None = None

    def __post_init__(self) -> None:
        check_estimate(self.risk, MERGE_RISK.name)
        check_estimate(self.gradient_norm_sq, "squared gradient norm")
        check_nonnegative(self.distance_sq, "squared distance")
        check_estimate(self.kernel_dispersion, "kernel dispersion")
        if self.mu is not None:
            check_positive(self.mu, "mu")

    @property
    def gradient_flatness(self) -> Estimate:
        """||grad||^2 / (2 mu); at the best mu, ||grad|| ||m_j - theta_m|| / 2 (standard error at that mu)."""
        squared = self.gradient_norm_sq
        if self.mu is not None:
            return squared.scaled(0.5 / self.mu)
        if squared.value == 0.0 or self.distance_sq == 0.0:
            return Estimate(0.0, 0.0, squared.n, squared.status)
        return squared.scaled(0.5 * math.sqrt(self.distance_sq / squared.value))

    @property
    def dispersion(self) -> Estimate:
        """(mu/2) ||m_j - theta_m||^2; at the best mu, the same value as ``gradient_flatness``."""
        if self.mu is not None:
            return Estimate(0.5 * self.mu * self.distance_sq)
        return Estimate(self.gradient_flatness.value, 0.0, self.gradient_norm_sq.n, self.gradient_norm_sq.status)


Statistics = TypeVar("Statistics", AnchorStatistics, PosteriorStatistics)


@dataclass(frozen=True)
class Experts(Generic[Statistics]):
    """The experts' side of (4) and (5): all that is known before a merge and the weights are given.

    ``statistics`` one per expert; ``cross`` the risks R_ij = L_i(Q_j) on held-out data, from which H_Q follows at any
    weights; ``log_choices`` = ln G, how many posteriors each expert's was chosen from (``posterior.log_choices``), one
    value per expert or one for all; 0 if nothing was chosen.

    Raises:
        InputError: no expert, a cross-risk of other tasks, a negative ln G, or not one per expert.
    """

    statistics: Sequence[Statistics]
    cross: CrossRisk
    log_choices: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if not self.statistics:
            refuse("experts", expected="at least one", got="none", cure="pass one set of statistics per expert")
        check_tasks(len(self.cross.sizes), len(self), "cross-risk")
        check_tasks(len(per_expert(self.log_choices, len(self))), len(self), "ln G of the choices")

    def __len__(self) -> int:
        return len(self.statistics)

    def prices(self, delta: float) -> tuple[float, ...]:
        """Return the price ln(T G_j/delta) of each expert's statement, in nats; together they hold but for delta."""
        return prices(self.log_choices, len(self), delta)

    def complexity(self, delta: float) -> tuple[Estimate, ...]:
        """Return A_j (KL_j + price_j)/(eta_j n_j) per expert."""
        return complexities(self.statistics, self.prices(delta))

    def flatness(self) -> tuple[Estimate, ...]:
        """Return B_j E E_Q <grad l, S_j grad l> per expert."""
        return tuple(amplified(s.factors[1], s.flatness) for s in self.statistics)

    def heterogeneity(self, weights: Weights) -> Term:
        """Return H_Q as a term, with its value at every beta = e_j."""
        check_tasks(len(weights), len(self), "weights")
        corners = [[float(i == j) for i in range(len(self))] for j in range(len(self))]
        vertex = [heterogeneity(self.cross, weights.alpha, corner) for corner in corners]
        total = heterogeneity(self.cross, weights.alpha, weights.beta)
        return HETEROGENEITY.term(total, vertex, "per expert: Σ_i α_i R_ij − R_jj")


def per_expert(value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Return one value per expert, from one for all or one for each."""
    return (float(value),) * count if isinstance(value, (int, float)) else tuple(map(float, value))


def prices(log_choices: float | Sequence[float], tasks: int, delta: float) -> tuple[float, ...]:
    """Return the price ln(T G_j/delta) of each of T statements.

    Raises:
        InputError: wrong number, a negative or non-finite ln G, delta outside (0, 1).
    """
    values = per_expert(log_choices, tasks)
    check_tasks(len(values), tasks, "ln G of the choices")
    return tuple(price(tasks, delta, value) for value in values)


def amplified(factor: Estimate, value: Estimate) -> Estimate:
    """Return factor * value, never ``certified``."""
    return product(factor, uncertified(value))


def complexities(
    experts: Sequence[AnchorStatistics | PosteriorStatistics], paid: Sequence[float]
) -> tuple[Estimate, ...]:
    """Return A_j (KL_j + price_j)/(eta_j n_j) per expert."""
    return tuple(
        amplified(e.factors[0], Estimate((e.kl + p) / (e.eta * e.n), 0.0, e.n))
        for e, p in zip(experts, paid, strict=True)
    )

"""What the theorems need to know about each expert, and the terms that are sums over experts.

Per-expert values carry their factors A_j, B_j; the weights beta_j enter in the sum only, so that the vertices
of (5) can be read off the terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bounds import heterogeneity as cross
from bounds.heterogeneity import CrossRisk
from bounds.pac_bayes.divergences import gaussian_kl
from bounds.pac_bayes.posterior import amplification, dependent_sum, product, uncertified
from bounds.types import Estimate, Term, refuse, weighted_sum
from bounds.validation import (
    check_count,
    check_delta,
    check_estimate,
    check_nonnegative,
    check_positive,
    check_weights,
)

PRICE_TOLERANCE = 1e-9
HETEROGENEITY = "H_Q(α,β)"
IID = "each task's training points are i.i.d.; theta_0, heads, blocks and grids do not depend on them"
HELD_OUT = "the held-out data behind C, flatness, H_Q, the gap and the gain are unused in training and choices"


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
        check_estimate(self.risk, "risk of the merge")
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


def prices(log_price: float | Sequence[float] | None, tasks: int, delta: float) -> tuple[float, ...]:
    """Return the price ln(T G_j/delta) of each of T statements; ln(T/delta) for None (nothing chosen).

    Raises:
        InputError: wrong number, not finite, or sum_j exp(-price_j) > delta: delta is not paid for.
    """
    check_delta(delta)
    if log_price is None:
        return (math.log(tasks / delta),) * tasks
    values = (float(log_price),) * tasks if isinstance(log_price, (int, float)) else tuple(map(float, log_price))
    if len(values) != tasks:
        refuse("log_price", expected=f"{tasks} values", got=len(values), cure="give one price per expert")
    paid = sum(math.exp(-check_nonnegative(v, "log_price")) for v in values)
    if paid > delta * (1.0 + PRICE_TOLERANCE):
        cure = "use union_price: ln(T G_j/delta)"
        refuse("log_price", expected=f"sum of exp(-price) <= delta = {delta}", got=paid, cure=cure)
    return values


def expert_term(
    symbol: str,
    name: str,
    equation: str,
    values: Sequence[Estimate],
    weights: Sequence[float],
    note: str = "",
) -> Term:
    """Return the term sum_j w_j v_j; the experts' samples are independent, so errors add in quadrature."""
    return Term(symbol, name, equation, weighted_sum(values, weights), tuple(values), note)


def amplified(factor: Estimate, value: Estimate) -> Estimate:
    """Return factor * value, never ``certified``."""
    return product(factor, uncertified(value))


def complexity_terms(
    experts: Sequence[AnchorStatistics | PosteriorStatistics], price: Sequence[float]
) -> tuple[Estimate, ...]:
    """Return A_j (KL_j + price_j)/(eta_j n_j) per expert."""
    return tuple(
        amplified(e.factors[0], Estimate((e.kl + p) / (e.eta * e.n), 0.0, e.n))
        for e, p in zip(experts, price, strict=True)
    )


def heterogeneity_term(
    source: Estimate | CrossRisk | Sequence[Tensor], alpha: tuple[float, ...], beta: tuple[float, ...]
) -> Term:
    """Return H_Q as a term, with its value at every beta = e_j where the cross-risk is known."""
    if isinstance(source, Estimate):
        estimate = uncertified(check_estimate(source, "heterogeneity", signed=True))
        return Term(HETEROGENEITY, "heterogeneity", "(1)", estimate)
    table = source if isinstance(source, CrossRisk) else cross.cross_risk(source)
    tasks = range(len(alpha))
    vertex = [cross.heterogeneity(table, alpha, [float(i == j) for i in tasks]) for j in tasks]
    note = "per expert: Σ_i α_i R_ij − R_jj"
    total = cross.heterogeneity(table, alpha, beta)
    return Term(HETEROGENEITY, "heterogeneity", "(1)", total, tuple(vertex), note)


def checked_weights(
    experts: Sequence[AnchorStatistics | PosteriorStatistics],
    alpha: Sequence[float] | Tensor,
    beta: Sequence[float] | Tensor,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return alpha and beta on the simplex, one entry per expert."""
    if not experts:
        refuse("experts", expected="at least one", got="none", cure="pass one set of statistics per expert")
    return check_weights(alpha, len(experts), "alpha"), check_weights(beta, len(experts), "beta")

"""What the choice of anchors does to (5): the slack of each expert's own bound (docs/theory.md (17))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bounds.pac_bayes import amplification, optimal_sigma
from bounds.pac_bayes.posterior import checked_grid, sigma_weights
from bounds.theorems.experts import AnchorStatistics, Experts, amplified
from bounds.types import Estimate, refuse, weighted_sum
from bounds.validation import check_nonnegative, check_positive


def slack(statistics: AnchorStatistics, risk: Estimate, *, log_price: float, gamma: float = 0.5) -> Estimate:
    """Return s_j of one expert: the brace of (5), its own one-task bound, minus its risk L_j(Q_j).

    Args:
        statistics: the anchor's.
        risk: L_j(Q_j), on the task's own held-out examples.
        log_price: ln(T G_j/delta) in nats.
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy).

    Returns:
        The slack, in the loss's units; standard errors add (an upper limit).

    Raises:
        InputError: gamma not positive.

    Source: docs/theory.md (5a), (17). Status: that of the parts, never certified.
    """
    a, b = statistics.factors
    complexity = Estimate((statistics.kl + log_price) / (statistics.eta * statistics.n), 0.0, statistics.n)
    training = [amplified(a, part) for part in (statistics.own_risk, statistics.noise(gamma), complexity)]
    parts = [*training, amplified(b, statistics.flatness), risk]
    total = weighted_sum(parts, [1.0, 1.0, 1.0, 1.0, -1.0])
    return replace(total, stderr=sum(e.stderr for e in parts))


def slacks(experts: Experts[AnchorStatistics], *, delta: float, gamma: float = 0.5) -> tuple[Estimate, ...]:
    """Return s_j, by how much the bound on each expert's own task exceeds its risk there: (5a), (17).

    s_j = A_j [L^_j(m_j) + noise + (KL_j + ln(T G_j/delta))/(eta_j n_j)] + B_j flatness - L_j(Q_j). The right side of
    (5) is the linearised risk of the merge plus sum_j beta_j s_j, whatever the anchors m_j = theta_0 + c tau_j are: the
    slack at every c says how much of an expert's training evidence survives the price; the total says nothing else.

    Args:
        experts: the anchors' statistics and the cross-risk of their posteriors.
        delta: failure probability of all T bounds together.
        gamma: smoothness of the loss in the scores (1/2 for cross-entropy).

    Returns:
        One estimate per expert, in the loss's units; standard errors add (an upper limit).

    Raises:
        InputError: delta outside (0, 1), gamma not positive.

    Source: docs/theory.md (17). Status: that of the parts, never certified.
    """
    cross = experts.cross
    risks = [
        Estimate(float(cross.risk[j, j]), float(cross.stderr[j, j]), int(cross.sizes[j]), "estimated")
        for j in range(len(experts))
    ]
    rows = zip(experts.statistics, risks, experts.prices(delta), strict=True)
    return tuple(slack(statistics, risk, log_price=paid, gamma=gamma) for statistics, risk, paid in rows)


@dataclass(frozen=True)
class SampleSize:
    """Training examples ``n`` at which a slack has the size asked for, with the rate and the sigma it has there."""

    n: int
    eta: float
    sigma: tuple[float, ...]


def examples_for_slack(
    statistics: AnchorStatistics,
    risk: float,
    *,
    log_price: float,
    eta_grid: Sequence[float],
    target: float = 1.0,
    gamma: float = 0.5,
) -> SampleSize | None:
    """Return the least n at which the slack is at most ``target``, with eta on its grid and sigma in closed form.

    At the best sigma the brace of (5) is A L^ + A price/(eta n) + 2 sum_b sqrt(A |d_b|^2 w_b/(2 eta n)), so that
    slack = target is a quadratic in n^{-1/2}. Own risk, kernel, gradient moments, C and the risk are held as they are
    given: read them again at the sigma returned, and solve again, where they depend on it.

    Args:
        statistics: the anchor's; its n, eta and sigma are not used.
        risk: L_j(Q_j).
        log_price: ln(T G_j/delta) in nats.
        eta_grid: absolute values of the rate; those with eta C > 1 (A > 2) are passed over.
        target: the slack wanted, in the loss's units.
        gamma: smoothness of the loss in the scores.

    Returns:
        The sample size, or None where no number of examples is enough at any eta.

    Raises:
        InputError: a bad grid, target or price.

    Source: docs/theory.md (17b). Status: exact for the numbers given.
    """
    kernel, gradient = ([e.value for e in values] for values in (statistics.kernel, statistics.gradient))
    moved, own = statistics.displacement_sq, statistics.own_risk.value
    check_nonnegative(risk, "risk")
    check_positive(target, "target slack")
    check_nonnegative(log_price, "price")
    best: tuple[float, float] | None = None
    for eta in checked_grid(eta_grid, "eta grid"):
        if eta * statistics.qsb.value > 1.0:
            continue
        a, b = (e.value for e in amplification(eta, statistics.qsb))
        short = target - (a * own - risk)
        if short <= 0.0:
            continue
        weights = sigma_weights(kernel, gradient, a, b, gamma)
        linear = sum(2.0 * math.sqrt(a * d * w / (2.0 * eta)) for d, w in zip(moved, weights, strict=True))
        root = (linear + math.sqrt(linear**2 + 4.0 * short * a * log_price / eta)) / (2.0 * short)  # sqrt(n)
        if best is None or root**2 < best[0]:
            best = (root**2, eta)
    if best is None:
        return None
    n, eta = max(1, math.ceil(best[0])), best[1]
    sigma = optimal_sigma(moved, kernel, gradient, n=n, eta=eta, qsb=statistics.qsb, gamma=gamma)
    return SampleSize(n, eta, sigma)


def isotropic_slack(
    displacement_sq: Sequence[float],
    kernel: Sequence[float],
    *,
    eta: float,
    n: int,
    amplification: float = 1.0,
    gamma: float = 0.5,
) -> float:
    """Return sum_b A |d_b| sqrt(gamma kappa_b/(eta n)): noise and KL of (5) at their best sigma, by the kernel alone.

    Args:
        displacement_sq: ||m_{j,b} - theta_{0,b}||^2 per block.
        kernel: kappa_b, mean of tr K per block.
        eta: the rate.
        n: training examples; n (this)^2 of them would make it one nat, at the same eta.
        amplification: A_j.
        gamma: smoothness of the loss in the scores.

    Returns:
        The slack, in the loss's units. Exact for the numbers given.

    Raises:
        InputError: other numbers of blocks, negative or non-finite values.

    Source: docs/theory.md (17a).
    """
    if len(displacement_sq) != len(kernel):
        got = (len(displacement_sq), len(kernel))
        refuse("blocks", expected="equal lengths", got=got, cure="use one partition for both")
    scale = check_positive(gamma, "gamma") / (check_positive(eta, "eta") * check_positive(n, "n"))
    parts = zip(displacement_sq, kernel, strict=True)
    squares = [check_nonnegative(d, "displacement") * check_nonnegative(k, "kernel trace") for d, k in parts]
    return check_positive(amplification, "A") * sum(math.sqrt(scale * square) for square in squares)

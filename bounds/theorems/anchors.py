"""What the choice of anchors does to (5): the slack of each expert's own bound (docs/theory.md (17))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bounds.theorems.experts import AnchorStatistics, Experts, amplified
from bounds.types import Estimate, refuse, weighted_sum
from bounds.validation import check_nonnegative, check_positive


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
    own_task, errors = experts.cross.risk.diagonal(), experts.cross.stderr.diagonal()
    rows = zip(experts.statistics, experts.complexity(delta), experts.flatness(), strict=True)
    found = []
    for j, (statistics, complexity, flatness) in enumerate(rows):
        a = statistics.factors[0]
        brace = [amplified(a, statistics.own_risk), amplified(a, statistics.noise(gamma)), complexity, flatness]
        risk = Estimate(float(own_task[j]), float(errors[j]), int(experts.cross.sizes[j]), "estimated")
        total = weighted_sum([*brace, risk], [1.0, 1.0, 1.0, 1.0, -1.0])
        found.append(replace(total, stderr=sum(e.stderr for e in (*brace, risk))))
    return tuple(found)


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

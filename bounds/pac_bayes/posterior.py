"""Choosing eta and sigma, and the constants they bring: docs/theory.md sections 2 and 5.

Grids are absolute (or relative to theta_0): never relative to a statistic of the training sample. What is
chosen on them after seeing the data is paid for by ``price``, with ``log_choices`` = ln G.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

from bounds.types import Estimate, refuse, worst_status
from bounds.validation import (
    check_count,
    check_delta,
    check_estimate,
    check_finite,
    check_nonnegative,
    check_positive,
)


def log_choices(
    eta_grid: Sequence[float] | None,
    sigma_grid: Sequence[float],
    blocks: int,
    *,
    tied: bool = False,
    with_zero: bool = False,
) -> float:
    """Ln G of the choices made on grids: G = |eta grid| * |sigma grid|^blocks (one factor when sigma is tied).

    Args:
        eta_grid: the values eta may be chosen from; None for a bound without eta (the comparators).
        sigma_grid: the values every sigma_b may be chosen from.
        blocks: number of blocks that move (a block frozen by design has sigma 0 and no price).
        tied: one sigma for all blocks.
        with_zero: sigma_b = 0 may be chosen too, for a block found afterwards not to have moved: one more value
            per block, or, tied, one factor 2 per block for the pattern of zeros.

    Raises:
        InputError: empty or non-positive grid, or no block.

    Source: docs/theory.md section 0. Status: exact.
    """
    sigma_choices = len(checked_grid(sigma_grid, "sigma grid"))
    eta_choices = 1 if eta_grid is None else len(checked_grid(eta_grid, "eta grid"))
    count = check_count(blocks, "number of blocks")
    if tied:
        log_sigmas = math.log(sigma_choices) + (count * math.log(2.0) if with_zero else 0.0)
    else:
        log_sigmas = count * math.log(sigma_choices + with_zero)
    return math.log(eta_choices) + log_sigmas


def price(tasks: int, delta: float, choices: float = 0.0) -> float:
    """ln(T G / delta), in nats, what T simultaneous statements cost each of them.

    Args:
        tasks: number T of statements.
        delta: failure probability of all of them together.
        choices: ln G from ``log_choices``; 0 if nothing was chosen.

    Raises:
        InputError: fewer than one task, delta outside (0, 1), or a negative ln G.

    Source: docs/theory.md section 0. Status: exact.
    """
    check_delta(delta)
    check_nonnegative(choices, "ln G of the choices")
    return math.log(check_count(tasks, "number of tasks")) + choices - math.log(delta)


def checked_grid(grid: Sequence[float], what: str) -> tuple[float, ...]:
    """Return the sorted distinct values of a grid of positive numbers.

    Raises:
        InputError: empty, or a value not finite or <= 0.
    """
    return _checked(tuple(grid), what)


@lru_cache(maxsize=64)
def _checked(grid: tuple[float, ...], what: str) -> tuple[float, ...]:
    values = tuple(sorted({check_positive(float(v), what) for v in grid}))
    if not values:
        refuse(what, expected="at least one value", got="none", cure="give an absolute grid")
    return values


def round_to_grid(value: float, grid: Sequence[float]) -> float:
    """Return the grid value nearest to ``value`` on the log scale (0 stays 0, inf is the largest).

    On the log scale a/x + w x is symmetric about its minimum, so this is the best grid value. A grid of
    ratio 2 in sigma^2 costs at most 6.1 % of the two terms.
    """
    if value == 0.0:
        return 0.0
    values = checked_grid(grid, "grid")
    above = bisect_left(values, value)
    if above in (0, len(values)):
        return values[min(above, len(values) - 1)]
    below = values[above - 1]
    return below if value / below <= values[above] / value else values[above]


def amplification(eta: float, qsb: Estimate) -> tuple[Estimate, Estimate]:
    """Return A = 1/(1 - eta C/2) and B = eta/(2 - eta C); delta-method standard errors, status of C.

    Raises:
        InputError: eta <= 0, C < 0, or eta C >= 2 (the bound is then empty).

    Source: docs/theory.md (2).
    """
    check_positive(eta, "eta")
    constant = check_estimate(qsb, "QSB constant C").value
    if eta * constant >= 2.0:
        refuse("eta C", expected="< 2", got=eta * constant, cure="use a smaller eta or a smaller loss range")
    factor = 1.0 / (1.0 - eta * constant / 2.0)
    stderr = eta / 2.0 * factor**2 * qsb.stderr
    a = Estimate(factor, stderr, qsb.n, qsb.status)
    return a, a.scaled(eta / 2.0)


def product(factor: Estimate, estimate: Estimate) -> Estimate:
    """Multiply two independent estimates; delta-method standard error, n of ``estimate``, worst status."""
    spread = (
        0.0 if e.stderr == 0.0 or other.value == 0.0 else other.value * e.stderr
        for e, other in ((factor, estimate), (estimate, factor))
    )
    stderr = math.hypot(*spread)
    status = worst_status([factor.status, estimate.status])
    return Estimate(factor.value * estimate.value, stderr, estimate.n, status)


def dependent_sum(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Sum weighted estimates made on the same examples: standard errors add (an upper limit); largest n.

    Entries of weight 0 do not count.
    """
    used = [(e, w) for e, w in zip(estimates, weights, strict=True) if w != 0]
    return Estimate(
        sum(w * e.value for e, w in used),
        sum(abs(w) * e.stderr for e, w in used),
        max((e.n for e, _ in used), default=0),
        worst_status([e.status for e, _ in used]),
    )


def qsb_constant(expected_losses: Tensor) -> Estimate:
    """Estimate the smallest C with E_z[(E_Q l)^2] <= C E_z[E_Q l]: the ratio, with its delta-method error.

    Args:
        expected_losses: [N] posterior expectations E_Q l(., z_i) >= 0 on examples unused in training. When
            they are means of k posterior draws the squares, hence C, are biased upwards by Var_Q/k (safe).

    Returns:
        Estimate in units of the loss; 0 when every loss is 0. Status: estimated. The ratio says nothing about
        losses never seen: a supremum of E_Q l, where one is known, can be used instead.

    Raises:
        InputError: empty, non-finite or negative losses.

    Source: docs/theory.md (2).
    """
    losses = check_finite(expected_losses.flatten(), "expected losses")
    check_nonnegative(float(losses.min()), "smallest expected loss")
    mean, n = float(losses.mean()), len(losses)
    if mean == 0.0:
        return Estimate(0.0, 0.0, n, "estimated")
    ratio = float((losses**2).mean()) / mean
    stderr = math.inf if n == 1 else float((losses**2 - ratio * losses).std()) / (mean * math.sqrt(n))
    return Estimate(ratio, stderr, n, "estimated")


def sigma_weights(kernel: Sequence[float], gradient: Sequence[float], a: float, b: float, gamma: float) -> list[float]:
    """w_b = A (gamma/2) kappa_b + B g_b: what one unit of sigma_b^2 costs (docs/theory.md section 5)."""
    return [a * gamma / 2.0 * k + b * g for k, g in zip(kernel, gradient, strict=True)]


def optimal_sigma(
    displacement_sq: Sequence[float],
    kernel: Sequence[float],
    gradient: Sequence[float],
    *,
    n: int,
    eta: float,
    qsb: Estimate,
    gamma: float = 0.5,
    tied: bool = False,
) -> tuple[float, ...]:
    """Return the closed form sigma_b^4 = A ||d_b||^2 / (2 eta n w_b), w_b = A (gamma/2) kappa_b + B g_b.

    Args:
        displacement_sq: ||m_b - theta_{0,b}||^2 per block.
        kernel: sample mean of tr K restricted to each block.
        gradient: E_D E_Q ||grad_b l||^2 per block.
        n: size of the training sample.
        eta: the PAC-Bayes rate.
        qsb: QSB constant C.
        gamma: smoothness of the loss in the scores.
        tied: one sigma for all blocks that move (numerator and w are summed over them).

    Returns:
        sigma per block, not yet on a grid (see ``round_to_grid``); 0 for a block with d_b = 0, inf for a
        moving block that costs nothing (w_b = 0: it does not touch the loss). Status: exact.

    Raises:
        InputError: lengths differ, negative entries, or eta C >= 2.

    Source: docs/theory.md section 5.
    """
    if not len(displacement_sq) == len(kernel) == len(gradient) >= 1:
        got = (len(displacement_sq), len(kernel), len(gradient))
        refuse("blocks", expected="equal lengths >= 1", got=got, cure="use one partition for all")
    a, b = (e.value for e in amplification(eta, qsb))
    moving = [check_nonnegative(squared, "squared displacement") > 0.0 for squared in displacement_sq]
    weights = sigma_weights(kernel, gradient, a, b, check_positive(gamma, "gamma"))
    numerators = [a * squared / (2.0 * eta * check_count(n, "n")) for squared in displacement_sq]
    if tied:
        numerators = [sum(numerators)] * len(moving)
        weights = [sum(w for w, m in zip(weights, moving, strict=True) if m)] * len(moving)
    return tuple(
        (top / w if check_nonnegative(w, "sigma weight w_b") > 0.0 else math.inf) ** 0.25 if m else 0.0
        for top, w, m in zip(numerators, weights, moving, strict=True)
    )


def uncertified(estimate: Estimate) -> Estimate:
    """Return the estimate with ``certified`` lowered to ``estimated``: (2), (4), (5) certify nothing."""
    if worst_status([estimate.status, "exact"]) != "certified":
        return estimate
    return Estimate(estimate.value, estimate.stderr, estimate.n, "estimated")

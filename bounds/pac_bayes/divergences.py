"""Divergences: Gaussian KL, and the binary kl with its inverses (docs/theory.md sections 0 and 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bounds.types import refuse
from bounds.validation import check_finite, check_nonnegative, check_positive

BISECTIONS = 64


def gaussian_kl(displacement_sq: Sequence[float], sigma: Sequence[float]) -> float:
    """Return KL(N(m, S) || N(theta_0, S)) = sum_b ||d_b||^2 / (2 sigma_b^2), in nats. Status: exact.

    Args:
        displacement_sq: squared norms ||m_b - theta_{0,b}||^2 of the blocks.
        sigma: standard deviations of the blocks; 0 only where the displacement is 0 (a frozen block).

    Raises:
        InputError: lengths differ, a displacement is negative or not finite, or sigma_b <= 0 with d_b != 0.

    Source: docs/theory.md section 0.
    """
    if len(displacement_sq) != len(sigma) or len(sigma) == 0:
        refuse(
            "sigma",
            expected=f"{len(displacement_sq)} blocks (at least 1)",
            got=len(sigma),
            cure="give one sigma per block",
        )
    total = 0.0
    for squared, deviation in zip(displacement_sq, sigma, strict=True):
        check_nonnegative(squared, "squared displacement")
        if squared == 0.0 and deviation == 0.0:
            continue
        total += squared / (2.0 * check_positive(deviation, "sigma") ** 2)
    return total


def diagonal_gaussian_kl(posterior_mean: Tensor, posterior_std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> float:
    """Return KL between diagonal Gaussians of any variances, summed over coordinates, in nats. Status: exact.

    Args:
        posterior_mean: [P]; the other three are [P] or broadcast to it.
        posterior_std: standard deviations of the posterior, > 0.
        prior_mean: means of the prior.
        prior_std: standard deviations of the prior, > 0.

    Raises:
        InputError: non-finite entries or a standard deviation <= 0.

    Source: docs/theory.md section 0.
    """
    mean_q, std_q, mean_p, std_p = (
        check_finite(tensor, what)
        for tensor, what in (
            (posterior_mean, "posterior mean"),
            (posterior_std, "posterior std"),
            (prior_mean, "prior mean"),
            (prior_std, "prior std"),
        )
    )
    for tensor, what in ((std_q, "posterior std"), (std_p, "prior std")):
        check_positive(float(tensor.min()), what)
    log_ratio = 2.0 * (torch.log(std_q) - torch.log(std_p))
    return float(0.5 * (torch.expm1(log_ratio) - log_ratio + ((mean_q - mean_p) / std_p) ** 2).sum())


def kl_binary(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    """Return kl(p || q) between Bernoulli distributions, in nats, elementwise (float64).

    0 at p = q, also at the ends; inf where q is 0 or 1 and p is not.

    Raises:
        InputError: an entry outside [0, 1].

    Source: docs/theory.md section 2. Status: exact.
    """
    first, second = np.broadcast_arrays(_unit(p, "p"), _unit(q, "q"))
    return _kl(first, second)


def kl_inverse(p: ArrayLike, budget: ArrayLike) -> np.ndarray:
    """Return sup{q in [p, 1] : kl(p || q) <= budget}, elementwise (float64; bisection, rounded upwards).

    Exact at the ends: p = 1 gives 1, p = 0 gives 1 - exp(-budget), budget 0 gives p, budget inf gives 1.

    Args:
        p: empirical means in [0, 1].
        budget: nats >= 0, inf allowed; broadcast against ``p``.

    Raises:
        InputError: p outside [0, 1], or a budget negative or not a number.

    Source: docs/theory.md section 2. Status: exact.
    """
    mean, nats = np.broadcast_arrays(_unit(p, "p"), np.asarray(budget, dtype=np.float64))
    if not np.all(nats >= 0.0):
        refuse("kl budget", expected="nats >= 0", got=float(np.min(nats)), cure="check KL, delta and n")
    low, high = mean.copy(), np.ones_like(mean)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        inside = _kl(mean, middle) <= nats
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    result = np.where(mean == 0.0, -np.expm1(-nats), high)
    return np.where(nats == 0.0, mean, result)


def kl_lower_inverse(p: ArrayLike, budget: ArrayLike) -> np.ndarray:
    """Return inf{q in [0, p] : kl(p || q) <= budget}, elementwise; see ``kl_inverse``."""
    return 1.0 - kl_inverse(1.0 - _unit(p, "p"), budget)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import rel_entr  # SciPy takes half a second to import; a cached report needs none of it

    return np.maximum(rel_entr(p, q) + rel_entr(1.0 - p, 1.0 - q), 0.0)


def _unit(values: ArrayLike, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.all((array >= 0.0) & (array <= 1.0)):
        refuse(what, expected="values in [0, 1]", got=array, cure="divide bounded losses by their range")
    return array

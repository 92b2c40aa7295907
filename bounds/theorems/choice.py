"""Choosing eta and sigma on absolute grids (docs/theory.md section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bounds.pac_bayes import amplification, gaussian_kl, optimal_sigma, round_to_grid
from bounds.pac_bayes.posterior import checked_grid
from bounds.types import Estimate, refuse
from bounds.validation import check_count


@dataclass(frozen=True)
class Moments:
    """What depends on sigma: E_D E_Q ||grad_b l||^2 per block, and the QSB constant."""

    gradient: tuple[Estimate, ...]
    qsb: Estimate


@dataclass(frozen=True)
class PosteriorChoice:
    """The chosen eta and sigma, the moments at that sigma, and the part of the bound they decide."""

    eta: float
    sigma: tuple[float, ...]
    moments: Moments
    objective: float


def choose_posterior(
    own_risk: float,
    displacement_sq: Sequence[float],
    kernel: Sequence[float],
    moments: Moments | Callable[[tuple[float, ...]], Moments],
    *,
    n: int,
    log_price: float,
    eta_grid: Sequence[float],
    sigma_grid: Sequence[float],
    tied: bool = False,
    gamma: float = 0.5,
    rounds: int = 2,
) -> PosteriorChoice:
    """Pick eta and sigma on absolute grids to make one expert's part of (5) small.

    For each eta: start from the moments at the middle of the sigma grid, take the closed-form sigma, round
    it, read the moments again at that sigma; ``rounds`` times. Every (eta, sigma) met is scored with the
    moments at its own sigma; the best need not be the grid's optimum when the moments move with sigma
    (constant ``moments`` give the optimum). Moments are read once per distinct sigma. Estimated moments used
    for the choice favour themselves: choose on one half of the held-out data, report on the other.

    Args:
        own_risk: training risk at the anchor.
        displacement_sq: ||m_b - theta_{0,b}||^2 per block.
        kernel: sample mean of tr K per block.
        moments: the moments, or a function of sigma giving them.
        n: size of the training sample.
        log_price: ``posterior.price`` of these very grids, in nats.
        eta_grid: absolute values; those with eta C >= 2 are passed over.
        sigma_grid: absolute values; a block with d_b = 0 gets sigma 0.
        tied: one sigma for all blocks that move.
        gamma: smoothness of the loss in the scores.
        rounds: how often sigma is refreshed.

    Returns:
        The best choice met; ``objective`` = A [own risk + noise + complexity] + B flatness.

    Raises:
        InputError: bad grids or inputs, or eta C >= 2 on the whole eta grid.

    Source: docs/theory.md (5) and the closed form below it.
    """
    sigmas = checked_grid(sigma_grid, "sigma grid")
    seen: dict[tuple[float, ...], Moments] = {}

    def read(sigma: tuple[float, ...]) -> Moments:
        if sigma not in seen:
            seen[sigma] = moments(sigma) if callable(moments) else moments
        return seen[sigma]

    def score(eta: float, sigma: tuple[float, ...]) -> float:
        at = read(sigma)
        a, b = (e.value for e in amplification(eta, at.qsb))
        noise = gamma / 2.0 * sum(s**2 * k for s, k in zip(sigma, kernel, strict=True))
        flatness = sum(s**2 * g.value for s, g in zip(sigma, at.gradient, strict=True))
        complexity = (gaussian_kl(displacement_sq, sigma) + log_price) / (eta * n)
        return a * (own_risk + noise + complexity) + b * flatness

    best: PosteriorChoice | None = None
    for eta in checked_grid(eta_grid, "eta grid"):
        sigma = tuple(sigmas[len(sigmas) // 2] if d > 0.0 else 0.0 for d in displacement_sq)
        for _ in range(check_count(rounds, "rounds") + 1):
            at = read(sigma)
            if eta * at.qsb.value >= 2.0:
                break
            objective = score(eta, sigma)
            if best is None or objective < best.objective:
                best = PosteriorChoice(eta, sigma, at, objective)
            gradient = [g.value for g in at.gradient]
            free = optimal_sigma(displacement_sq, kernel, gradient, n=n, eta=eta, qsb=at.qsb, gamma=gamma, tied=tied)
            sigma = tuple(round_to_grid(s, sigmas) for s in free)
    if best is None:
        refuse(
            "eta grid",
            expected="an eta with eta C < 2",
            got=tuple(eta_grid),
            cure="add smaller values of eta",
        )
    return best

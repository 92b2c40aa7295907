"""The part of (5) that belongs to the experts: posteriors on the grids, own risk, noise, flatness, cross-risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.heterogeneity import cross_risk
from bounds.pac_bayes import log_choices, price, qsb_constant
from bounds.theorems import AnchorStatistics, Experts, Moments, choose_posterior
from bounds.types import Blocks, Estimate, refuse
from diagnostics.settings import ETA_GRID, GAMMA, SIGMA_GRID, Settings
from diagnostics.terms.linear import LinearTask, losses
from diagnostics.terms.network import PosteriorDraws
from merging.params import squared_norms
from merging.task_vectors import TaskVectors

CHOOSING, REPORTING = 0, 1
"""Every second held-out example, from the first or the second: what is chosen on one half is reported on the other."""


@dataclass(frozen=True)
class LinearPosteriors:
    """Draws of f^lin under every posterior: ``scores[i][j]`` [S, M_i, C_i]; what all expectations over Q_j average."""

    scores: Sequence[Sequence[Tensor]]


def mean_over(values: Tensor, population: int) -> Estimate:
    """Mean over a training sample: exact if ``values`` [n'] covers all of it, else estimated from the subsample."""
    estimate = Estimate.of_mean(values)
    return replace(estimate, stderr=0.0, status="exact") if len(values) == population else estimate


def linearised(
    worlds: Sequence[LinearTask],
    task_vectors: TaskVectors,
    sizes: Sequence[int],
    blocks: Blocks,
    settings: Settings,
) -> tuple[Experts[AnchorStatistics], LinearPosteriors]:
    """Choose each expert's η and σ on the grids and measure (5)'s expert terms in the linearised network.

    The choice reads the moments on one half of the held-out examples, the terms on the other half. A block that did
    not move gets σ = 0, and since that shows only afterwards, 0 is paid for as one more value of its grid.

    Args:
        worlds: the linearised network on each task; displacement j is τ_j.
        task_vectors: θ_0 and τ.
        sizes: |S_j|.
        blocks: partition of the posteriors' σ.
        settings: draws, seed, δ.
    """
    choices = log_choices(ETA_GRID, SIGMA_GRID, len(blocks), with_zero=True)
    paid = price(len(worlds), settings.delta, choices)
    statistics = [
        chosen(
            world,
            j,
            own=world.own_losses(),
            displacement_sq=tuple(squared_norms(task_vectors.deltas[j], blocks).values()),
            size=sizes[j],
            paid=paid,
            settings=settings,
        )
        for j, world in enumerate(worlds)
    ]
    posteriors = LinearPosteriors(
        [
            [world.posterior_scores(j, s.sigma, settings.draws, settings.seed) for j, s in enumerate(statistics)]
            for world in worlds
        ]
    )
    return Experts(statistics, cross_risk(risks(worlds, posteriors)), choices), posteriors


def risks(worlds: Sequence[LinearTask], posteriors: LinearPosteriors) -> list[Tensor]:
    """E_Q ℓ of every held-out example under every posterior, [N_i, T] per task."""
    return [
        torch.stack([losses(draws, world.labels) for draws in row], dim=1)
        for world, row in zip(worlds, posteriors.scores, strict=True)
    ]


def chosen(
    world: LinearTask,
    anchor: int,
    *,
    own: Tensor,
    displacement_sq: tuple[float, ...],
    size: int,
    paid: float,
    settings: Settings,
    scale: float = 1.0,
) -> AnchorStatistics:
    """Choose η and σ of N(θ_0 + scale · d, Σ) for one task on half of its held-out examples; report on the others.

    Args:
        world: the linearised network on the task.
        anchor: the displacement d of the world.
        own: losses of f^lin at the anchor on a subsample of S_t.
        displacement_sq: squared length of scale · d per block.
        size: |S_t|.
        paid: price ln(T G/δ) in nats.
        settings: draws, seed.
        scale: c.
    """
    kernel = tuple(mean_over(column, size) for column in world.train_trace.T)
    own_risk = mean_over(own, size)
    choice = choose_posterior(
        own_risk.value,
        displacement_sq,
        [k.value for k in kernel],
        lambda sigma: moments_at(world, anchor, sigma, CHOOSING, settings, scale),
        n=size,
        log_price=paid,
        eta_grid=ETA_GRID,
        sigma_grid=SIGMA_GRID,
        gamma=GAMMA,
    )
    reported = moments_at(world, anchor, choice.sigma, REPORTING, settings, scale)
    return AnchorStatistics(
        own_risk=own_risk,
        n=size,
        displacement_sq=displacement_sq,
        kernel=kernel,
        gradient=reported.gradient,
        sigma=choice.sigma,
        eta=guarded_eta(choice.eta, reported.qsb.value),
        qsb=reported.qsb,
    )


def moments_at(
    world: LinearTask, anchor: int, sigma: Sequence[float], half: int, settings: Settings, scale: float = 1.0
) -> Moments:
    """Return gradient moments and C under N(θ_0 + scale · d, Σ), on one half of the held-out examples."""
    draws = world.posterior_scores(anchor, sigma, settings.draws, settings.seed, scale)
    return _moments(world.gradient_moments(draws), losses(draws, world.labels), half)


def best_eta(statistics: AnchorStatistics, log_price: float) -> float:
    """Return the η of the grid, with ηC <= 1, at which an expert's part of (5) is smallest for its σ and moments."""

    def part(at: AnchorStatistics) -> float:
        a, b = (factor.value for factor in at.factors)
        complexity = (at.kl + log_price) / (at.eta * at.n)
        return a * (at.own_risk.value + at.noise(GAMMA).value + complexity) + b * at.flatness.value

    ceiling = guarded_eta(max(ETA_GRID), statistics.qsb.value)
    return min((statistics.with_eta(eta) for eta in ETA_GRID if eta <= ceiling), key=part).eta


def guarded_eta(eta: float, qsb: float) -> float:
    """Return the largest η of the grid that is at most ``eta`` and has ηC <= 1 for the C reported, so that A <= 2.

    C is read on other examples than those η was chosen on, and ηC < 2 must hold for the C in the bound.

    Raises:
        InputError: C too large for every η of the grid.
    """
    allowed = [value for value in ETA_GRID if value <= eta and value * qsb <= 1]
    if not allowed:
        refuse(
            "QSB constant C", expected=f"at most {1 / min(ETA_GRID):g}", got=qsb, cure="report on a smaller loss range"
        )
    return max(allowed)


def _moments(gradients: Tensor, risks: Tensor, half: int) -> Moments:
    """Gradient moments and C on every second example, from per-example values [N, B] and [N]."""
    return Moments(tuple(Estimate.of_mean(column) for column in gradients[half::2].T), qsb_constant(risks[half::2]))


def assumed_linear(
    linear: Experts[AnchorStatistics], draws: PosteriorDraws, sizes: Sequence[int], delta: float
) -> Experts[AnchorStatistics]:
    """Read the same posteriors with the real network f in place of f^lin: risks, flatness, C, cross-risk are f's."""
    table = draws.losses
    statistics = []
    for j, (anchor, losses_at_expert, gradients, size, paid) in enumerate(
        zip(linear.statistics, draws.own, draws.gradients, sizes, linear.prices(delta), strict=True)
    ):
        own = mean_over(losses_at_expert, size)
        chosen, reported = (_moments(gradients, table[j][:, j], half) for half in (CHOOSING, REPORTING))
        eta = best_eta(replace(anchor, own_risk=own, gradient=chosen.gradient, eta=ETA_GRID[0], qsb=chosen.qsb), paid)
        statistics.append(
            replace(
                anchor,
                own_risk=own,
                gradient=reported.gradient,
                qsb=reported.qsb,
                eta=guarded_eta(eta, reported.qsb.value),
            )
        )
    return replace(linear, statistics=statistics, cross=cross_risk(table))

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
    statistics = []
    for j, world in enumerate(worlds):
        own = mean_over(losses(world.train_scores, world.train_labels), sizes[j])
        kernel = tuple(mean_over(column, sizes[j]) for column in world.train_trace.T)
        displacement = tuple(squared_norms(task_vectors.deltas[j], blocks).values())

        def moments(sigma: tuple[float, ...], half: int, world: LinearTask = world, j: int = j) -> Moments:
            draws = world.posterior_scores(j, sigma, settings.draws, settings.seed)
            gradients = world.gradient_moments(draws)
            return _moments(gradients, losses(draws, world.labels), half)

        choice = choose_posterior(
            own.value,
            displacement,
            [k.value for k in kernel],
            lambda sigma, read=moments: read(sigma, 0),
            n=sizes[j],
            log_price=paid,
            eta_grid=ETA_GRID,
            sigma_grid=SIGMA_GRID,
            gamma=GAMMA,
        )
        reported = moments(choice.sigma, 1)
        eta = guarded_eta(choice.eta, reported.qsb.value)
        statistics.append(
            AnchorStatistics(
                own_risk=own,
                n=sizes[j],
                displacement_sq=displacement,
                kernel=kernel,
                gradient=reported.gradient,
                sigma=choice.sigma,
                eta=eta,
                qsb=reported.qsb,
            )
        )
    posteriors = LinearPosteriors(
        [
            [world.posterior_scores(j, s.sigma, settings.draws, settings.seed) for j, s in enumerate(statistics)]
            for world in worlds
        ]
    )
    table = [
        torch.stack([losses(draws, world.labels) for draws in row], dim=1)
        for world, row in zip(worlds, posteriors.scores, strict=True)
    ]
    return Experts(statistics, cross_risk(table), choices), posteriors


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
    table = [
        torch.stack([losses(scores, labels) for scores in row], dim=1)
        for row, labels in zip(draws.scores, draws.labels, strict=True)
    ]
    statistics = []
    for j, (anchor, losses_at_expert, gradients, size, paid) in enumerate(
        zip(linear.statistics, draws.own, draws.gradients, sizes, linear.prices(delta), strict=True)
    ):
        own = mean_over(losses_at_expert, size)
        chosen, reported = (_moments(gradients, table[j][:, j], half) for half in (0, 1))
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

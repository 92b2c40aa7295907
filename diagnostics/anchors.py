"""The part of (5) that belongs to the experts: posteriors on the grids, own risk, noise, flatness, cross-risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.heterogeneity import CrossRisk, cross_risk
from bounds.pac_bayes import qsb_constant
from bounds.posterior import union_price
from bounds.theorems import AnchorStatistics, Moments, choose_posterior
from bounds.types import Blocks, Estimate, refuse
from diagnostics.linear_world import LinearTask, losses
from diagnostics.network_world import PosteriorDraws
from diagnostics.settings import ETA_GRID, GAMMA, SIGMA_GRID, Settings
from merging.params import squared_norms
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class Anchors:
    """Per expert the statistics of its posterior, the cross-risk R_ij, and the price ln(T G/δ) paid for the grids."""

    statistics: Sequence[AnchorStatistics]
    cross: CrossRisk
    log_price: float


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
) -> tuple[Anchors, LinearPosteriors]:
    """Choose each expert's η and σ on the grids and measure (5)'s expert terms in the linearised network.

    The choice reads the moments on one half of the kernel examples, the terms on the other half.

    Args:
        worlds: the linearised network on each task; displacement j is τ_j.
        task_vectors: θ_0 and τ.
        sizes: |S_j|.
        blocks: partition of the posteriors' σ.
        settings: draws, seed, δ.
    """
    moving = sum(any(bool(delta[n].any()) for delta in task_vectors.deltas for n in names) for names in blocks.values())
    price = union_price(len(worlds), ETA_GRID, SIGMA_GRID, max(moving, 1), False, settings.delta)
    statistics = []
    for j, world in enumerate(worlds):
        own = mean_over(losses(world.train_scores, world.train_labels), sizes[j])
        kernel = tuple(mean_over(column, sizes[j]) for column in world.train_trace.T)
        displacement = tuple(squared_norms(task_vectors.deltas[j], blocks).values())

        def moments(sigma: tuple[float, ...], half: int, world: LinearTask = world, j: int = j) -> Moments:
            draws = world.posterior_scores(j, sigma, settings.draws, settings.seed)
            gradients = world.gradient_moments(draws)[half::2]
            risks = losses(draws, world.labels[: draws.shape[1]])[half::2]
            return Moments(tuple(Estimate.of_mean(column) for column in gradients.T), qsb_constant(risks))

        choice = choose_posterior(
            own.value,
            displacement,
            [k.value for k in kernel],
            lambda sigma, read=moments: read(sigma, 0),
            n=sizes[j],
            log_price=price,
            eta_grid=ETA_GRID,
            sigma_grid=SIGMA_GRID,
        )
        reported = moments(choice.sigma, 1)
        statistics.append(
            _with_best_eta(own, sizes[j], displacement, kernel, reported.gradient, choice.sigma, reported.qsb, price)
        )
    posteriors = LinearPosteriors(
        [
            [world.posterior_scores(j, s.sigma, settings.draws, settings.seed) for j, s in enumerate(statistics)]
            for world in worlds
        ]
    )
    table = [
        torch.stack([losses(draws, world.labels[: draws.shape[1]]) for draws in row], dim=1)
        for world, row in zip(worlds, posteriors.scores, strict=True)
    ]
    return Anchors(statistics, cross_risk(table), price), posteriors


def _with_best_eta(
    own_risk: Estimate,
    n: int,
    displacement_sq: tuple[float, ...],
    kernel: tuple[Estimate, ...],
    gradient: tuple[Estimate, ...],
    sigma: tuple[float, ...],
    qsb: Estimate,
    price: float,
) -> AnchorStatistics:
    """Statistics at the η of the grid that makes them smallest, among those with ηC < 2 for the C reported.

    ηC < 2 must hold for the C that is reported, so η follows it; σ was chosen on other examples.
    """
    choices = [
        AnchorStatistics(own_risk, n, displacement_sq, kernel, gradient, sigma, eta, qsb)
        for eta in ETA_GRID
        if eta * qsb.value < 2
    ]
    if not choices:
        refuse(
            "QSB constant C",
            expected=f"below 2/η for the smallest η = {min(ETA_GRID)}",
            got=qsb.value,
            cure="give the experts a bounded or smaller loss",
        )

    def size(at: AnchorStatistics) -> float:
        (a, b), per_example = at.factors, (at.kl + price) / (at.eta * at.n)
        return a.value * (at.own_risk.value + at.noise(GAMMA).value + per_example) + b.value * at.flatness.value

    return min(choices, key=size)


def assumed_linear(linear: Anchors, draws: PosteriorDraws, sizes: Sequence[int]) -> Anchors:
    """Read the same posteriors with the real network f in place of f^lin: risks, flatness, C, cross-risk are f's."""
    table = [
        torch.stack([losses(scores, labels) for scores in row], dim=1)
        for row, labels in zip(draws.scores, draws.labels, strict=True)
    ]
    statistics = [
        _with_best_eta(
            mean_over(own, size),
            anchor.n,
            anchor.displacement_sq,
            anchor.kernel,
            tuple(Estimate.of_mean(column) for column in gradients.T),
            anchor.sigma,
            qsb_constant(table[j][:, j]),
            linear.log_price,
        )
        for j, (anchor, own, gradients, size) in enumerate(
            zip(linear.statistics, draws.own, draws.gradients, sizes, strict=True)
        )
    ]
    return Anchors(statistics, cross_risk(table), linear.log_price)

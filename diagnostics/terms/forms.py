"""Other bounds on the linearised risk of the same merge, to compare (5) with (docs/theory.md section 5).

They are at θ_m itself: the merge-anchored form (6), and PAC-Bayes with posteriors around θ_m, per task or pooled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from bounds.autodiff import differentiable
from bounds.jacobian import centre, pull_back
from bounds.linearize import jvp_scores
from bounds.pac_bayes import log_choices, optimal_sigma, price, round_to_grid
from bounds.scores import cross_entropy_slope
from bounds.theorems import (
    AnchorStatistics,
    MergeAnchor,
    MergedModel,
    Moments,
    direct_form,
    pooled_direct_form,
    theorem2,
)
from bounds.types import Bound, Estimate, Params, Sample, refuse
from diagnostics.settings import ETA_GRID, GAMMA, LAMBDA_GRID, SIGMA_GRID, Settings
from diagnostics.terms.experts import CHOOSING, REPORTING, chosen, mean_over, moments_at
from diagnostics.terms.linear import LinearTask, losses
from diagnostics.terms.path import ExpertSide
from merging.task import Task

Rates = TypeVar("Rates", bound=Collection[Any])


@dataclass(frozen=True, kw_only=True)
class TrainingAtMerge:
    """f^lin at θ_m on M training examples of one task: ``losses`` [M]; ``towards`` [M] = ‖J(x)(θ_j - θ_m)‖², centred.

    ``gradient_sq`` = ‖∇L̂^lin(θ_m)‖² of their mean; ``size`` = |S_t|.
    """

    losses: Tensor
    towards: Tensor
    gradient_sq: float
    size: int


def training_products(task: Task, sample: Sample, base: Params, displacement: Params) -> Mapping[str, Tensor]:
    """Return J(x)d [M, C] of training examples, and the squared norm of the mean loss's gradient at f^lin_{θ_0 + d}.

    One JVP and one VJP at θ_0: the linearised network's gradient is Jᵀ(p^lin - y).
    """
    assert sample.labels is not None, "checked before anything was measured"
    scores0, along = jvp_scores(task.forward, base, sample.inputs, [displacement])
    slope = cross_entropy_slope(scores0 + along[0], sample.labels) / len(sample)
    with torch.no_grad(), differentiable():
        gradient = pull_back(task.forward, base, sample.inputs, slope.to(scores0.dtype))
    square = sum(float(value.double().square().sum()) for value in gradient.values())
    return {"tangents": along[0].double().cpu(), "gradient_sq": torch.tensor(square, dtype=torch.float64)}


def training_at_merge(world: LinearTask, products: Mapping[str, Tensor], size: int) -> TrainingAtMerge:
    """Return what the forms need of one task's training examples."""
    tangents = products["tangents"]
    few = slice(len(tangents))
    scores0 = world.train_scores0[few]
    towards = centre(world.train_scores[few] - scores0 - tangents).square().sum(dim=1)
    return TrainingAtMerge(
        losses=losses(scores0 + tangents, world.train_labels[few]),
        towards=towards,
        gradient_sq=float(products["gradient_sq"]),
        size=size,
    )


def merge_anchored(
    side: ExpertSide, merge: MergedModel, training: Sequence[TrainingAtMerge], distance_sq: Sequence[float]
) -> Bound:
    """Return (6): the experts' own risk is bounded from θ_m. ``distance_sq`` are ‖θ_j - θ_m‖²."""
    anchors = [
        MergeAnchor(
            risk=mean_over(t.losses, t.size),
            gradient_norm_sq=Estimate(t.gradient_sq, 0.0, len(t.losses), "estimated"),
            distance_sq=distance,
            kernel_dispersion=mean_over(t.towards, t.size),
        )
        for t, distance in zip(training, distance_sq, strict=True)
    ]
    merge = replace(merge, anchors=anchors)
    return theorem2(side.linear, merge, side.weights, delta=side.delta, gamma=GAMMA, trivial_risk=side.trivial_risk)


def direct(
    worlds: Sequence[LinearTask],
    training: Sequence[TrainingAtMerge],
    displacement_sq: tuple[float, ...],
    side: ExpertSide,
    settings: Settings,
) -> tuple[Bound, list[AnchorStatistics]]:
    """Return the direct form with its statistics: a posterior N(θ_m, Σ_t) per task, chosen as the experts' are.

    Args:
        worlds: the linearised network on each task; θ_m - θ_0 is the last displacement.
        training: training examples at θ_m.
        displacement_sq: ‖θ_m - θ_0‖² per block.
        side: weights, δ, the risk of knowing nothing.
        settings: draws, seed.
    """
    choices = log_choices(ETA_GRID, SIGMA_GRID, len(displacement_sq), with_zero=True)
    paid = price(len(worlds), side.delta, choices)
    statistics = [
        chosen(
            world, -1, own=t.losses, displacement_sq=displacement_sq, size=t.size, paid=paid, settings=settings
        )
        for world, t in zip(worlds, training, strict=True)
    ]  # fmt: skip
    bound = direct_form(
        statistics,
        side.weights.alpha,
        delta=side.delta,
        log_choices=choices,
        gamma=GAMMA,
        trivial_risk=side.trivial_risk,
    )
    return bound, statistics


def pooled(
    worlds: Sequence[LinearTask], statistics: Sequence[AnchorStatistics], side: ExpertSide, settings: Settings
) -> Bound:
    """Return the pooled direct form: one posterior for all tasks, Λ and σ chosen on one half, reported on the other.

    ``statistics`` are the direct form's; of them own risk, kernel and displacement count. At given Λ the best σ is a
    closed form as in section 5, with Σ_t α_t κ_t and Σ_t α_t η_t g_t in the place of one task's.

    Raises:
        InputError: no Λ of the grid has η_t C_t <= 1 on every task, with η_t = Λα_t/n_t and C_t of either half: few
            examples were trained on, or losses are spread widely.
    """
    alpha, moved = side.weights.alpha, statistics[0].displacement_sq
    choices = log_choices(LAMBDA_GRID, SIGMA_GRID, len(moved), with_zero=True)
    kernel = [sum(a * s.kernel[b].value for a, s in zip(alpha, statistics, strict=True)) for b in range(len(moved))]

    def read(sigma: tuple[float, ...], half: int) -> list[Moments]:
        return [moments_at(world, -1, sigma, half, settings) for world in worlds]

    def fits(rate: float, moments: Sequence[Moments]) -> bool:
        rates = [rate * a / s.n for a, s in zip(alpha, statistics, strict=True)]
        return all(eta * m.qsb.value <= 1 for eta, m in zip(rates, moments, strict=True))

    def bound(rate: float, sigma: tuple[float, ...], moments: Sequence[Moments]) -> Bound:
        anchors = [
            replace(s, sigma=sigma, gradient=m.gradient, qsb=m.qsb, eta=min(ETA_GRID))
            for s, m in zip(statistics, moments, strict=True)
        ]
        return pooled_direct_form(
            anchors,
            alpha,
            rate,
            delta=side.delta,
            log_choices=choices,
            gamma=GAMMA,
            trivial_risk=side.trivial_risk,
        )

    sigma = tuple(SIGMA_GRID[len(SIGMA_GRID) // 2] if d > 0 else 0.0 for d in moved)
    moments, found = read(sigma, CHOOSING), {}
    for rate in LAMBDA_GRID:
        gradient = [
            sum(a * a / s.n * m.gradient[b].value for a, s, m in zip(alpha, statistics, moments, strict=True))
            for b in range(len(moved))
        ]
        free = optimal_sigma(moved, kernel, gradient, n=1, eta=rate, qsb=Estimate(0.0), gamma=GAMMA)
        sigma = tuple(round_to_grid(value, SIGMA_GRID) for value in free)
        moments = read(sigma, CHOOSING)
        if fits(rate, moments):
            found[rate, sigma] = bound(rate, sigma, moments).value
    rate, sigma = min(_any(found), key=found.__getitem__)
    reported = read(sigma, REPORTING)
    return bound(max(_any([r for r in LAMBDA_GRID if r <= rate and fits(r, reported)])), sigma, reported)


def _any(rates: Rates) -> Rates:
    """Return the rates Λ that fit, if there are some."""
    if not rates:
        refuse(
            "rates Λ of the pooled form",
            expected="one of the grid with Λα_t C_t/n_t <= 1 on every task",
            got=f"none from {min(LAMBDA_GRID):g} on",
            cure="train on more examples, or read the other bounds",
        )
    return rates

"""The part of (5) and (7) that belongs to the merged model: consensus gap, Bregman gain, transfer error, its risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.linearize import residual, transfer_error
from bounds.scores import cross_entropy_slope, kl, log_probabilities
from bounds.theorems import MergedModel, PerExpert, Weights
from bounds.theorems.weights import average
from bounds.types import Estimate, Params, weighted_sum
from diagnostics.terms.experts import LinearPosteriors
from diagnostics.terms.linear import LinearTask, losses
from diagnostics.terms.network import PosteriorDraws, along
from merging.task import Task


@dataclass(frozen=True)
class MergeTerms:
    """What one reading says about one point θ: gap and gain of (5) on every example, the reading's own risk there."""

    gap: PerExpert
    gain: PerExpert
    risk: Estimate

    @property
    def merge(self) -> MergedModel:
        """The same, as (5) takes it."""
        return MergedModel(self.gap, self.gain)


@dataclass(frozen=True)
class NetworkAtPoint:
    """The real network at one point θ: scores and derivative towards θ - θ_β of each task's held-out examples."""

    scores: Sequence[Tensor]
    tangents: Sequence[Tensor]

    def part(self, examples: slice) -> NetworkAtPoint:
        """Return the same on some of the held-out examples."""
        return NetworkAtPoint([s[examples] for s in self.scores], [t[examples] for t in self.tangents])


def network_at(tasks: Sequence[Task], worlds: Sequence[LinearTask], theta: Params, centre: Params) -> NetworkAtPoint:
    """Evaluate the real network at θ on every task's held-out examples, with its derivative along θ - ``centre``."""
    pairs = [along(task, theta, world.held_out.inputs, centre) for task, world in zip(tasks, worlds, strict=True)]
    return NetworkAtPoint([scores for scores, _ in pairs], [tangents for _, tangents in pairs])


def linearised_terms(
    worlds: Sequence[LinearTask],
    posteriors: LinearPosteriors,
    scale: float,
    alpha: Sequence[float],
) -> MergeTerms:
    """Gap, gain and risk of f^lin at θ_0 + scale · (θ_m - θ_0), whose displacement is the last of each world."""
    gaps, gains, risks = [], [], []
    for world, draws in zip(worlds, posteriors.scores, strict=True):
        scores = world.scores(-1, scale)
        towards = scale * world.tangents[-1] - world.tangents[:-1]
        gaps.append(_derivative(scores, world.labels, towards))
        gains.append(torch.stack([_divergence(scores, draw) for draw in draws], dim=1))
        risks.append(Estimate.of_mean(losses(scores, world.labels)))
    return MergeTerms(PerExpert(tuple(gaps)), PerExpert(tuple(gains)), weighted_sum(risks, alpha))


def assumed_linear_terms(
    worlds: Sequence[LinearTask],
    network: NetworkAtPoint,
    draws: PosteriorDraws,
    weights: Weights,
) -> MergeTerms:
    """Measure the same on the real network: its gradient at θ along θ - θ_β, its scores under sampled weights."""
    beta = torch.tensor(weights.beta, dtype=torch.float64)
    gaps, gains, risks = [], [], []
    for world, scores, tangents, row in zip(worlds, network.scores, network.tangents, draws.scores, strict=True):
        gaps.append(_derivative(scores, world.labels, tangents.unsqueeze(0))[:, 0])
        gains.append(torch.stack([_divergence(scores, drawn.unsqueeze(0)) for drawn in row], dim=1) @ beta)
        risks.append(Estimate.of_mean(losses(scores, world.labels)))
    return MergeTerms(PerExpert(tuple(gaps)), PerExpert(tuple(gains)), weighted_sum(risks, weights.alpha))


@dataclass(frozen=True)
class Transfer:
    """How far f is from f^lin at one point: ε⁺ and ε of (7), and the residual ‖f - f^lin‖/‖f - f_0‖ over all tasks.

    The residual is of centred scores: cross-entropy does not see a constant added to all of them. ``values[i]`` [N_i]
    are e⁺ of task i's examples.
    """

    positive: Estimate
    absolute: Estimate
    residual: float
    values: tuple[Tensor, ...]


def transfer_terms(
    worlds: Sequence[LinearTask], network: NetworkAtPoint, scale: float, alpha: Sequence[float]
) -> Transfer:
    """Transfer error and residual at θ_0 + scale · (θ_m - θ_0); no labels are used."""
    return transfer(network.scores, [w.scores(-1, scale) for w in worlds], [w.scores0 for w in worlds], alpha)


def transfer(
    scores: Sequence[Tensor], linear: Sequence[Tensor], base: Sequence[Tensor], alpha: Sequence[float]
) -> Transfer:
    """Transfer error and residual of f, f^lin and f_0, from their scores [N_i, C_i] of every task; no labels."""
    centred = [[part - part.mean(dim=1, keepdim=True) for part in parts] for parts in (scores, linear, base)]
    errors = [transfer_error(f, lin) for f, lin in zip(scores, linear, strict=True)]
    flat = [torch.cat([part.flatten() for part in parts]).unsqueeze(0) for parts in centred]
    return Transfer(
        average([e.positive for e in errors], alpha),
        average([e.absolute for e in errors], alpha),
        residual(*flat),
        tuple(e.positive for e in errors),
    )


def _derivative(scores: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
    """⟨∇ℓ(θ; x, y), d⟩ [N, D] of cross-entropy, from the scores [N, C] at θ and J(x)d [D, N, C]."""
    return torch.einsum("nc,dnc->nd", cross_entropy_slope(scores, labels), tangents)


def _divergence(scores: Tensor, draws: Tensor) -> Tensor:
    """E_θ KL(p ‖ p_θ) [N], from the scores [N, C] of p and draws [S, N, C]."""
    return kl(log_probabilities(scores), log_probabilities(draws)).mean(dim=0)

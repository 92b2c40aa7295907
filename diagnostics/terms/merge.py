"""The part of (5) and (7) that belongs to the merged model: consensus gap, Bregman gain, transfer error, its risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.linearize import residual, transfer_error
from bounds.types import Estimate, Params, weighted_sum
from diagnostics.terms.experts import LinearPosteriors
from diagnostics.terms.linear import LinearTask, losses
from diagnostics.terms.network import PosteriorDraws, along
from merging.task import Task


@dataclass(frozen=True)
class MergeTerms:
    """What one reading says about one point θ: gap and gain of (5), the reading's own risk there.

    ``gap_values[i]`` [N_i] and ``gain_values[i]`` [M_i] are task i's examples, of which the two are α-weighted means.
    """

    gap: Estimate
    gain: Estimate
    risk: Estimate
    gap_values: tuple[Tensor, ...]
    gain_values: tuple[Tensor, ...]
    gap_per_expert: tuple[Estimate, ...] = ()
    gain_per_expert: tuple[Estimate, ...] = ()


@dataclass(frozen=True)
class NetworkAtPoint:
    """The real network at one point θ: scores and derivative towards θ - θ_β of each task's held-out examples."""

    scores: Sequence[Tensor]
    tangents: Sequence[Tensor]


def network_at(tasks: Sequence[Task], worlds: Sequence[LinearTask], theta: Params, centre: Params) -> NetworkAtPoint:
    """Evaluate the real network at θ on every task's held-out examples, with its derivative along θ - ``centre``."""
    pairs = [
        along(task.forward, theta, world.held_out.inputs, centre) for task, world in zip(tasks, worlds, strict=True)
    ]
    return NetworkAtPoint([scores for scores, _ in pairs], [tangents for _, tangents in pairs])


def linearised_terms(
    worlds: Sequence[LinearTask],
    posteriors: LinearPosteriors,
    scale: float,
    alpha: Sequence[float],
    beta: Sequence[float],
) -> MergeTerms:
    """Gap, gain and risk of f^lin at θ_0 + scale · (θ_m - θ_0), whose displacement is the last of each world."""
    gaps, gains, risks = [], [], []
    for world, draws in zip(worlds, posteriors.scores, strict=True):
        scores = world.scores(-1, scale)
        towards = scale * world.tangents[-1] - world.tangents[:-1]
        gaps.append(_derivative(scores, world.labels, towards))
        gains.append(torch.stack([_divergence(scores, draw) for draw in draws], dim=1))
        risks.append(Estimate.of_mean(losses(scores, world.labels)))
    experts = range(len(beta))
    weights = torch.tensor(beta, dtype=torch.float64)
    gap_values, gain_values = tuple(g @ weights for g in gaps), tuple(g @ weights for g in gains)
    return MergeTerms(
        _average(gap_values, alpha),
        _average(gain_values, alpha),
        weighted_sum(risks, alpha),
        gap_values,
        gain_values,
        tuple(_average([g[:, j] for g in gaps], alpha) for j in experts),
        tuple(_average([g[:, j] for g in gains], alpha) for j in experts),
    )


def assumed_linear_terms(
    worlds: Sequence[LinearTask],
    network: NetworkAtPoint,
    draws: PosteriorDraws,
    alpha: Sequence[float],
    beta: Sequence[float],
) -> MergeTerms:
    """Measure the same on the real network: its gradient at θ along θ - θ_β, its scores under sampled weights."""
    weights = torch.tensor(beta, dtype=torch.float64)
    gaps, gains, risks = [], [], []
    for world, scores, tangents, row in zip(worlds, network.scores, network.tangents, draws.scores, strict=True):
        gaps.append(_derivative(scores, world.labels, tangents.unsqueeze(0))[:, 0])
        gains.append(torch.stack([_divergence(scores, drawn.unsqueeze(0)) for drawn in row], dim=1) @ weights)
        risks.append(Estimate.of_mean(losses(scores, world.labels)))
    return MergeTerms(
        _average(gaps, alpha), _average(gains, alpha), weighted_sum(risks, alpha), tuple(gaps), tuple(gains)
    )


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
    centred = [
        [part - part.mean(dim=1, keepdim=True) for part in parts]
        for parts in (network.scores, [w.scores(-1, scale) for w in worlds], [w.scores0 for w in worlds])
    ]
    errors = [transfer_error(f, w.scores(-1, scale)) for f, w in zip(network.scores, worlds, strict=True)]
    flat = [torch.cat([part.flatten() for part in parts]).unsqueeze(0) for parts in centred]
    return Transfer(
        _average([e.positive for e in errors], alpha),
        _average([e.absolute for e in errors], alpha),
        residual(*flat),
        tuple(e.positive for e in errors),
    )


def _derivative(scores: Tensor, labels: Tensor, tangents: Tensor) -> Tensor:
    """⟨∇ℓ(θ; x, y), d⟩ [N, D] of cross-entropy, from the scores [N, C] at θ and J(x)d [D, N, C]."""
    errors = scores.softmax(dim=-1) - F.one_hot(labels, scores.shape[-1])
    return torch.einsum("nc,dnc->nd", errors, tangents)


def _divergence(scores: Tensor, draws: Tensor) -> Tensor:
    """E_θ KL(p ‖ p_θ) [N], from the scores [N, C] of p and draws [S, N, C]."""
    logs = scores.log_softmax(dim=-1)
    return (logs.exp() * (logs - draws.log_softmax(dim=-1))).sum(dim=-1).mean(dim=0)


def _average(values: Sequence[Tensor], alpha: Sequence[float]) -> Estimate:
    """Σ_i α_i (mean over task i's examples); errors of the tasks are independent."""
    return weighted_sum([Estimate.of_mean(v) for v in values], alpha)

"""ACE-Merging: each task's inputs are guessed from its own task vector, then the outputs are fitted as RegMean does.

Tensors of two or more axes are read as matrices [rows, everything else]; those of one axis are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.closed_form.scale import MEAN_GRID, check_at_least, check_share, scaled
from merging.closed_form.spectral import UnscaledSettings, by_matrices
from merging.closed_form.tensors import thin_svd
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class CovarianceSettings(UnscaledSettings):
    """Settings of ACE-Merging."""

    ridge: float = 1e-5
    """Added to the diagonal of every covariance, ε of the paper: 1e-5, for RoBERTa 2e-4, for GPT-2 4e-2."""
    heterogeneity: float = 0.3
    """Matrices whose tasks differ more than this in size have covariances of trace 1 and a refined spectrum, τ."""
    refined: float = 0.3
    """Share of the singular directions that the refinement adds, k_frac."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("ridge", self.ridge, 1e-12)
        check_at_least("heterogeneity", self.heterogeneity, 0)
        check_share("refined", self.refined)


def size_spread(deltas: Tensor) -> float:
    """Return γ = Var_t[log ‖τ_t‖²]/(E_t[log ‖τ_t‖²])² of τ [T, m, n], all not 0: how much tasks differ in size. Exact.

    The variance divides by T - 1; 0 for one task. (As the paper has it: it depends on the unit of the weights.)
    """
    logs = deltas.double().square().sum(dim=(1, 2)).log()
    if len(logs) < 2:
        return 0.0
    mean = float(logs.mean())
    return float(logs.var()) / max(mean * mean, 1e-300)


def ace(deltas: Tensor, settings: CovarianceSettings) -> Tensor:
    """ACE-Merging of τ [T, m, n], arXiv 2603.02945; exact, in float64.

    Rows of τ_t are samples of its inputs: Σ_t is their covariance, not divided by m. Where sizes differ
    (:func:`size_spread`) it is divided by its trace, and so is the ridge. With S_t = Σ_t + ε_t I and
    C = 1 cᵀ, c the column means of Σ_t Σ_t, the merge is (Σ_t τ_t S_t)(Σ_t S_t + C)⁻¹, refined where sizes differ.
    A task vector that is 0 says nothing about its inputs and is left out.
    """
    parts = deltas[deltas.flatten(1).any(dim=1)].double()
    if not len(parts):
        return torch.zeros_like(deltas[0])
    differ = size_spread(parts) > settings.heterogeneity
    centred = parts - parts.mean(dim=1, keepdim=True)
    covariances = centred.mT @ centred
    ridges = parts.new_full((len(parts), 1, 1), settings.ridge)
    if differ:
        traces = covariances.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=torch.finfo(parts.dtype).tiny)[:, None, None]
        covariances, ridges = covariances / traces, ridges / traces
    weights = covariances + ridges * torch.eye(parts.shape[2]).to(parts)
    prior = covariances.sum(dim=0).mean(dim=0).expand(parts.shape[2], -1)
    merged = torch.linalg.solve((weights.sum(dim=0) + prior).T, (parts @ weights).sum(dim=0).T).T
    if differ:
        merged = merged + refinement(merged, parts, covariances, settings.refined)
    return merged.to(deltas.dtype)


def refinement(merged: Tensor, deltas: Tensor, covariances: Tensor, share: float) -> Tensor:
    """Return σ̄ U_k V_kᵀ [m, n] of τ_m + Σ_t τ_t (Σ_t - Σ̄): its first k singular directions, at their mean value. Exact.

    Args:
        merged: τ_m [m, n].
        deltas: τ [T, m, n].
        covariances: Σ_t [T, n, n]; Σ̄ is their mean.
        share: k/min(m, n), rounded down (at least 1).
    """
    residual = (deltas @ (covariances - covariances.mean(dim=0))).sum(dim=0)
    u, sigma, v = (factor[..., : max(1, int(share * min(merged.shape)))] for factor in thin_svd(merged + residual))
    return sigma.mean() * u @ v.T if len(sigma) else torch.zeros_like(merged)


def _ace(tv: TaskVectors, tasks: Sequence[Task], settings: CovarianceSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, lambda deltas: ace(deltas, settings), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


_PRIOR = "the prior that tasks share takes off a part of every task vector"
ROWS: Mapping[str, Method] = {
    "ace": Method(
        build=_ace,
        settings=CovarianceSettings,
        paper="ACE-Merging, Xu et al. 2026, arXiv 2603.02945",
        cost="T products and one solve of n equations per m x n matrix, an SVD where sizes of tasks differ",
        breaks={"one task": _PRIOR, "equal experts": _PRIOR},
    )
}

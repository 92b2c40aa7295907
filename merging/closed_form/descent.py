"""Merges that descend a loss on each matrix, made of the task vectors alone: DOGE-TA and OptMerge.

Tensors of two or more axes are read as matrices [rows, everything else]; those of one axis are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import MEAN_GRID, ScaleSettings, check_at_least, check_share, scaled
from merging.closed_form.spectral import UnscaledSettings, by_matrices
from merging.closed_form.tensors import keep_from, largest_threshold, per_task, thin_svd
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class ModificationSettings(UnscaledSettings):
    """Settings of DOGE-TA."""

    eta: float = 0.07
    """η: the coefficient of τ_t in each matrix is η/‖τ_t‖, so that all task vectors have one size there."""
    subspace: int = 6
    """The shared subspace of a matrix has one of this many of its min(rows, columns) directions."""
    density: float = 0.3
    """Share of the entries of each task vector, over the whole model, that is kept at the end, modified."""
    steps: int = 400
    """Steps of Adam on the modification of each matrix."""
    learning_rate: float = 1e-4
    """Adam's learning rate on the entries of the modification."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("eta", self.eta, 0)
        check_at_least("subspace", self.subspace, 1)
        check_share("density", self.density)
        check_at_least("steps", self.steps, 1)
        check_at_least("learning_rate", self.learning_rate, 0)


@dataclass(frozen=True, kw_only=True)
class DenoisedSettings(ScaleSettings):
    """Settings of OptMerge."""

    form: Literal["full", "lora"] = "full"
    """For experts that were fine-tuned so. full: what differs from the mean is truncated, Adam from the sum; lora: each
    task vector is truncated, gradient descent with momentum 0.9 from the mean."""
    steps: int = 300
    """Steps on each matrix."""
    learning_rate: float | None = None
    """Learning rate on the entries of the merged task vector; by default 1e-5 for full, 1e-4 for lora."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("full", "lora"):
            refuse("form", expected="full or lora", got=repr(self.form), cure="choose one")
        check_at_least("steps", self.steps, 1)
        check_at_least("learning_rate", self.rate, 0)

    @property
    def rate(self) -> float:
        """The learning rate, given or by default."""
        default = 1e-5 if self.form == "full" else 1e-4
        return default if self.learning_rate is None else self.learning_rate


def coefficients(deltas: Tensor, eta: float) -> Tensor:
    """Return λ_t = η/‖τ_t‖_F [T] of τ [T, m, n]; 0 where τ_t is 0."""
    norms = torch.linalg.vector_norm(deltas, dim=(1, 2))
    return torch.where(norms > 0, eta / norms.where(norms > 0, 1), 0)


def modification_loss(modification: Tensor, deltas: Tensor, lam: Tensor) -> Tensor:
    """DOGE's objective at Δ [m, n]: Σ_t Σ_rows ⟨τ_t, Σ_s λ_s (τ_s + Δ) - τ_t⟩², inner products row by row.

    What the merge loses against expert t, to first order, with -τ_t in place of the gradient of its loss at θ_0.
    Source: arXiv 2501.01230.
    """
    merged = torch.tensordot(lam, deltas, dims=1) + lam.sum() * modification
    return (deltas * (merged - deltas)).sum(dim=2).square().sum()


def shared_directions(deltas: Tensor, subspace: int) -> Tensor:
    """Return orthonormal columns [m, r]: the first left singular vectors of those of all tasks, side by side.

    Each task brings its first min(m, n)/T (at least 1), and of these r = min(m, n)/subspace (rounded down) remain:
    those that many tasks have in common come first.
    """
    size = min(deltas.shape[1:])
    own = [thin_svd(delta)[0][:, : max(1, size // len(deltas))] for delta in deltas]
    return thin_svd(torch.cat(own, dim=1))[0][:, : size // subspace]


def modification(deltas: Tensor, settings: ModificationSettings) -> Tensor:
    """Return Δ [m, n] after the steps of Adam on :func:`modification_loss`, from 0.

    Of every gradient only what is orthogonal to the columns of :func:`shared_directions` is followed. Adam scales entry
    by entry, so that Δ itself is not quite orthogonal to them.
    """
    lam, shared = coefficients(deltas, settings.eta), shared_directions(deltas, settings.subspace)
    rest = torch.tensordot(lam, deltas, dims=1) - deltas
    constant, total = (deltas * rest).sum(dim=2), lam.sum()
    found = torch.zeros_like(deltas[0])
    adam = torch.optim.Adam([found], lr=settings.learning_rate)
    for _ in range(settings.steps):
        inner = constant + total * (deltas * found).sum(dim=2)
        slope = 2 * total * (inner[:, :, None] * deltas).sum(dim=0)
        found.grad = slope - shared @ (shared.T @ slope)
        adam.step()
    return found


def _doge_ta(tv: TaskVectors, tasks: Sequence[Task], settings: ModificationSettings, progress: Progress) -> Merge:
    """Σ_t λ_t (τ_t + Δ), of each task the entries where its own τ_t is among the largest."""
    thresholds = largest_threshold(tv, settings.density)

    def one(deltas: Tensor) -> Tensor:
        kept = keep_from(deltas, thresholds) != 0
        modified = deltas + modification(deltas, settings)
        lam = per_task(coefficients(deltas, settings.eta), deltas)
        return (lam * torch.where(kept, modified, 0)).sum(dim=0)

    return scaled(tv, by_matrices(tv, one, progress), tasks, settings.scale, MEAN_GRID, progress)


def denoised(deltas: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Return targets τ̃ [T, m, n] and weights W [T, n, n] of OptMerge's objective Σ_t tr (τ_m - τ̃_t) W_t (τ_m - τ̃_t)ᵀ.

    With k = min(m, n)/T (at least 1) and the first k singular triplets of τ_t = U Σ Vᵀ: W_t = V_k Σ_k² V_kᵀ/‖τ_t‖²,
    and τ̃_t = U_k Σ_k V_kᵀ for ``lora``; for ``full`` the mean of all tasks plus the first k triplets of τ_t - mean.
    """
    count = max(1, min(deltas.shape[1:]) // len(deltas))
    mean = deltas.mean(dim=0) if form == "full" else torch.zeros_like(deltas[0])
    targets, weights = [], []
    for delta in deltas:
        u, sigma, v = (factor[..., :count] for factor in thin_svd(delta - mean))
        targets.append(mean + u * sigma @ v.T)
        _, sigma, v = (factor[..., :count] for factor in thin_svd(delta))
        square = delta.square().sum()
        weights.append((v * sigma.square()) @ v.T / square.where(square > 0, 1))
    return torch.stack(targets), torch.stack(weights)


def least_denoised_interference(deltas: Tensor, settings: DenoisedSettings) -> Tensor:
    """Return τ_m [m, n] after the steps on OptMerge's objective (:func:`denoised`), whose gradient is 2 (τ_m A - B)."""
    targets, weights = denoised(deltas, settings.form)
    a, b = weights.sum(dim=0), (targets @ weights).sum(dim=0)
    full = settings.form == "full"
    merged = deltas.sum(dim=0) if full else deltas.mean(dim=0)
    optimizer = (
        torch.optim.Adam([merged], lr=settings.rate)
        if full
        else torch.optim.SGD([merged], lr=settings.rate, momentum=0.9)
    )
    for _ in range(settings.steps):
        merged.grad = 2 * (merged @ a - b)
        optimizer.step()
    return merged


def _optmerge(tv: TaskVectors, tasks: Sequence[Task], settings: DenoisedSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, lambda deltas: least_denoised_interference(deltas, settings), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


_OWN_SIZE = "every task vector is brought to the size η, matrix by matrix"
_TRUNCATED = "starts from the sum of the task vectors and descends towards truncated ones"
ROWS: Mapping[str, Method] = {
    "doge_ta": Method(
        build=_doge_ta,
        settings=ModificationSettings,
        paper="DOGE-TA, Wei et al. 2025, arXiv 2501.01230",
        cost="T + 1 SVDs, then steps x three passes over T task vectors per matrix",
        breaks={"one task": _OWN_SIZE, "equal experts": _OWN_SIZE},
    ),
    "optmerge": Method(
        build=_optmerge,
        settings=DenoisedSettings,
        paper="OptMerge, Wei et al. 2025, arXiv 2505.19892",
        cost="2T SVDs, then steps x one product of matrices per matrix; 10 validations to choose the scale",
        breaks={"equal experts": _TRUNCATED},
    ),
}

"""Merges of matrices by their singular vectors, or by their row spaces: TSV-M, Iso-C, Iso-CTS, WUDI.

Tensors of two or more axes are read as matrices [rows, everything else]; those of one axis are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.closed_form.scale import MEAN_GRID, ScaleSettings, check_at_least, check_share, direction, scaled
from merging.closed_form.tensors import as_matrices, is_matrix, orthogonalize, thin_svd
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class UnscaledSettings(ScaleSettings):
    """Settings of a method whose paper does not tune a scale (TSV-M)."""

    scale: float | None = 1.0
    """The scale of the merged task vector, 1 in the paper; None: the best of a grid on the validation split."""


@dataclass(frozen=True)
class CommonSpaceSettings(ScaleSettings):
    """Settings of Iso-CTS."""

    common: float = 0.8
    """Share of the singular directions taken from the sum; the others come from the tasks, in equal numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("common", self.common)


@dataclass(frozen=True)
class InterferenceSettings(UnscaledSettings):
    """Settings of WUDI."""

    steps: int = 300
    """Steps of Adam on each matrix."""
    learning_rate: float = 1e-5
    """Adam's learning rate on the entries of the merged task vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("steps", self.steps, 1)
        check_at_least("learning_rate", self.learning_rate, 0)


def by_matrices(
    task_vectors: TaskVectors, combine: Callable[[Tensor], Tensor], progress: Progress
) -> dict[str, Tensor]:
    """Return the merged task vector: ``combine`` ([T, m, n] -> [m, n]) of matrices, the mean of everything else."""

    def one(_: str, deltas: Tensor) -> Tensor:
        if not is_matrix(deltas):
            return deltas.mean(dim=0)
        return combine(as_matrices(deltas)).reshape(deltas.shape[1:])

    return direction(task_vectors, one, progress)


def task_singular_vectors(deltas: Tensor) -> Tensor:
    """TSV-M of τ [T, m, n]: U⊥ Σ V⊥ᵀ from the first min(m, n)/T (at least 1) singular triplets of each task.

    The U of all tasks side by side are orthogonalised together, and so are the V.
    """
    count = max(1, min(deltas.shape[1:]) // len(deltas))
    parts = [tuple(factor[..., :count] for factor in thin_svd(delta)) for delta in deltas]
    u, sigma, v = (torch.cat(factors, dim=-1) for factors in zip(*parts, strict=True))
    return (orthogonalize(u) * sigma) @ orthogonalize(v).T


def isotropic(deltas: Tensor) -> Tensor:
    """Iso-C of τ [T, m, n]: the sum with every singular value replaced by their mean.

    Over the numerical rank r of the sum, which is min(m, n) in the paper: σ̄ = Σσ/r, and σ̄ U Vᵀ has r directions. (With
    fewer, as for low-rank experts, the other directions of an SVD are arbitrary.)
    """
    u, sigma, v = thin_svd(deltas.sum(dim=0))
    return sigma.sum() / max(1, len(sigma)) * u @ v.T


def isotropic_with_task_spaces(deltas: Tensor, common: float) -> Tensor:
    """Iso-CTS of τ [T, m, n]: the last directions of the sum give way to those of what it leaves of each task.

    With r the rank of the sum, each task has s = round((r - ⌊common·r⌋)/T) directions, the sum its first r - sT. All
    are orthogonalised together and get the mean of their singular values.
    """
    u, sigma, v = thin_svd(deltas.sum(dim=0))
    each = round((len(sigma) - int(common * len(sigma))) / len(deltas))
    kept = len(sigma) - each * len(deltas)
    factors = [(u[:, :kept], sigma[:kept], v[:, :kept])]
    if each:
        rest = deltas - u[:, :kept] @ (u[:, :kept].T @ deltas)
        factors += [tuple(factor[..., :each] for factor in thin_svd(delta)) for delta in rest]
    u, sigma, v = (torch.cat(parts, dim=-1) for parts in zip(*factors, strict=True))
    return sigma.sum() / max(1, len(sigma)) * orthogonalize(u) @ orthogonalize(v).T


def interference(merged: Tensor, deltas: Tensor) -> Tensor:
    """WUDI's objective at τ_m [m, n]: Σ_t ‖(τ_m - τ_t) τ_tᵀ‖_F² / ‖τ_t‖_F² over the tasks whose τ_t is not 0."""
    squares = deltas.square().sum(dim=(1, 2))
    products = ((merged - deltas) @ deltas.mT).square().sum(dim=(1, 2))
    return (products / squares.where(squares > 0, 1)).sum()


def interference_slope(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [n, n] and B [m, n] of the gradient 2 (τ_m A - B) of :func:`interference`.

    A = Σ_t τ_tᵀτ_t/‖τ_t‖_F², B = Σ_t τ_t τ_tᵀτ_t/‖τ_t‖_F².
    """
    squares = deltas.square().sum(dim=(1, 2))
    products = deltas.mT @ (deltas / squares.where(squares > 0, 1)[:, None, None])
    return products.sum(dim=0), (deltas @ products).sum(dim=0)


def least_interference(deltas: Tensor, steps: int, learning_rate: float) -> Tensor:
    """Return τ_m [m, n] after ``steps`` of Adam on WUDI's objective, from the sum of the task vectors."""
    merged = deltas.sum(dim=0)
    a, b = interference_slope(deltas)
    adam = torch.optim.Adam([merged], lr=learning_rate)
    for _ in range(steps):
        merged.grad = 2 * (merged @ a - b)
        adam.step()
    return merged


def _tsv_m(tv: TaskVectors, tasks: Sequence[Task], settings: UnscaledSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, task_singular_vectors, progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


def _iso_c(tv: TaskVectors, tasks: Sequence[Task], settings: ScaleSettings, progress: Progress) -> Merge:
    return scaled(tv, by_matrices(tv, isotropic, progress), tasks, settings.scale, MEAN_GRID, progress)


def _iso_cts(tv: TaskVectors, tasks: Sequence[Task], settings: CommonSpaceSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, lambda deltas: isotropic_with_task_spaces(deltas, settings.common), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


def _wudi(tv: TaskVectors, tasks: Sequence[Task], settings: InterferenceSettings, progress: Progress) -> Merge:
    vector = by_matrices(
        tv, lambda deltas: least_interference(deltas, settings.steps, settings.learning_rate), progress
    )
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


_FLAT = "all singular values become their mean"
ROWS: Mapping[str, Method] = {
    "tsv_m": Method(
        build=_tsv_m,
        settings=UnscaledSettings,
        paper="TSV-Merge, Gargiulo et al. 2025, arXiv 2412.00081",
        cost="T + 2 SVDs per matrix",
        breaks={"equal experts": "only the first 1/T of the singular directions of each task is kept"},
    ),
    "iso_c": Method(
        build=_iso_c,
        settings=ScaleSettings,
        paper="Iso-C, Marczak et al. 2025, arXiv 2502.04959",
        cost="one SVD per matrix; 10 validations to choose the scale",
        breaks={"one task": _FLAT, "equal experts": _FLAT},
    ),
    "iso_cts": Method(
        build=_iso_cts,
        settings=CommonSpaceSettings,
        paper="Iso-CTS, Marczak et al. 2025, arXiv 2502.04959",
        cost="T + 3 SVDs per matrix; 10 validations to choose the scale",
        breaks={"one task": _FLAT, "equal experts": _FLAT},
    ),
    "wudi": Method(
        build=_wudi,
        settings=InterferenceSettings,
        paper="WUDI-Merging, Cheng et al. 2025, arXiv 2503.08099",
        cost="steps x one product of matrices per matrix",
        breaks={"equal experts": "starts from the sum of the task vectors and takes finitely many steps"},
    ),
}

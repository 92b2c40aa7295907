"""SVC: singular values of the merged update that tasks have piled up on each other are scaled back.

Tensors of two or more axes are read as matrices [rows, everything else]; those of one axis stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.tensors import as_matrices, is_matrix, thin_svd
from merging.rows import Merge, PostProcessing, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class CalibrationFloor:
    """Settings of singular value calibration."""

    floor: float | None = None
    """Least projection coefficient that counts, α of the paper: 1 only scales down, less lets directions of which the
    merge has too little grow by up to 1/floor. None: 1/T, the paper's choice (for tsv_m the paper takes 1)."""

    def __post_init__(self) -> None:
        if self.floor is not None and not 0 < self.floor < math.inf:
            refuse("floor", expected="a number above 0", got=self.floor, cure="leave it out for 1/T")


def projection_coefficients(left: Tensor, merged: Tensor, deltas: Tensor) -> Tensor:
    """How much of each task's response the merge has, direction by direction: s [T, r]. Exact.

    s_t^r = ⟨a_m^r, a_t^r⟩/‖a_t^r‖² with the responses a^r = (u^r)ᵀ τ: 1 where the merge does along u^r what the expert
    does, T where T equal experts were added up. 0 where a task has no response but the rounding of its own matrix.

    Args:
        left: u^1..u^r [m, r], orthonormal.
        merged: merged update [m, n].
        deltas: task vectors [T, m, n].
    """
    whole, rows = left.T @ merged, []
    for delta in deltas:  # one task at a time: all responses together are as large as the task vectors
        own = left.T @ delta
        square = own.square().sum(dim=1)
        least = (max(delta.shape) * torch.finfo(delta.dtype).eps) ** 2 * delta.square().sum()
        seen = square > least
        rows.append(torch.where(seen, (whole * own).sum(dim=1) / square.where(seen, 1), 0))
    return torch.stack(rows)


def calibrated(merged: Tensor, deltas: Tensor, floor: float | None) -> Tensor:
    """Return Σ_r γ^r σ^r u^r (v^r)ᵀ of the merged update [m, n], γ^r = T / Σ_t max(floor, s_t^r). Exact.

    SVC, arXiv 2602.05536, Algorithm 1: the projection of equation (8), the aggregate over tasks, and the singular
    vectors as they are.

    Args:
        merged: merged update [m, n].
        deltas: task vectors [T, m, n].
        floor: α; None: 1/T.
    """
    u, sigma, v = thin_svd(merged)
    least = 1 / len(deltas) if floor is None else floor
    factors = 1 / projection_coefficients(u, merged, deltas).clamp(min=least).mean(dim=0)
    return (u * (factors * sigma)) @ v.T


def _svc(merge: Merge, tv: TaskVectors, tasks: Sequence[Task], settings: CalibrationFloor, progress: Progress) -> Merge:
    names, params = list(tv.base), dict(merge.params)
    for index in progress(range(len(names)), "calibrating singular values"):
        name = names[index]
        base, deltas = tv.base[name].to(tv.dtype), tv.stacked[name].to(tv.dtype)
        if is_matrix(deltas):
            update = as_matrices((params[name].to(base) - base)[None])[0]
            params[name] = base + calibrated(update, as_matrices(deltas), settings.floor).view_as(base)
    return replace(merge, params=params, coefficients=None, blocks=None, candidates=None)


ROWS: Mapping[str, PostProcessing] = {
    "svc": PostProcessing(
        build=_svc,
        settings=CalibrationFloor,
        paper="Singular Value Calibration, Li et al. 2026, arXiv 2602.05536",
        cost="one SVD and T + 1 products per matrix",
    )
}

"""DC-Merge: task vectors with balanced energy are aggregated in a space that all their singular directions span.

Tensors of two or more axes are read as matrices [rows, everything else]; those of one axis are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import MEAN_GRID, ScaleSettings, check_at_least, check_share, scaled
from merging.closed_form.spectral import by_matrices
from merging.closed_form.tensors import disjoint_mean, keep_from, orthogonalize, select, thin_svd
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors

Smoothing: TypeAlias = Literal["none", "average", "linear"]
"""How the singular values of a task vector are balanced: left, made equal, or made to fall linearly."""


@dataclass(frozen=True)
class DirectionSettings(ScaleSettings):
    """Settings of DC-Merge."""

    rank: int | None = None
    """Singular directions kept of each task; None: min(m, n)/T of an m x n matrix. For LoRA experts the paper takes
    the adapters' rank."""
    smoothing: Smoothing = "none"
    """Of the kept singular values, whose sum stays: none (the paper's choice for full fine-tuning), average (each the
    mean; its choice for LoRA) or linear."""
    ratio: float = 5.0
    """With linear: the largest over the smallest value at most, ρ of the paper."""
    density: float = 1e-3
    """Share of the largest entries of each task that are kept in the common space, before signs are elected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None:
            check_at_least("rank", self.rank, 1)
        if self.smoothing not in get_args(Smoothing):
            known = " or ".join(get_args(Smoothing))
            refuse("smoothing", expected=known, got=repr(self.smoothing), cure="choose one")
        check_at_least("ratio", self.ratio, 1)
        check_share("density", self.density)


def smoothed(sigma: Tensor, smoothing: Smoothing, ratio: float) -> Tensor:
    """Return singular values [r], descending, of the same sum and more even. Exact; arXiv 2603.06242, (12)-(14).

    ``linear``: values that fall linearly from q to 1, times what keeps the sum; q the smaller of ``ratio`` and
    σ_1/σ_r.
    """
    if smoothing == "none" or len(sigma) < 2:
        return sigma
    first = 1.0 if smoothing == "average" else min(ratio, float(sigma[0] / sigma[-1]))
    shape = torch.linspace(first, 1.0, len(sigma), dtype=torch.float64).to(sigma)
    return sigma.sum() * shape / shape.sum()


def directional(deltas: Tensor, settings: DirectionSettings) -> Tensor:
    """DC-Merge of τ [T, m, n], Algorithm 1 of arXiv 2603.06242; exact.

    The first r singular directions of each task, side by side and orthogonalised together, are the cover space U*, V*.
    In it each task is M_t = U*ᵀ τ̃_t V*; TIES of these (the largest entries, elected signs, the mean of those that
    agree) is kept where row and column belong to one task, and taken back: U* (M ∘ mask) V*ᵀ.
    """
    count = settings.rank or max(1, min(deltas.shape[1:]) // len(deltas))
    parts = [tuple(factor[..., :count] for factor in thin_svd(delta)) for delta in deltas]
    left, right = (orthogonalize(torch.cat([part[side] for part in parts], dim=1)) for side in (0, 2))
    inside = [
        (left.T @ u * smoothed(sigma, settings.smoothing, settings.ratio)) @ (right.T @ v).T for u, sigma, v in parts
    ]
    owner = torch.cat([torch.full((len(sigma),), index) for index, (_, sigma, _) in enumerate(parts)])
    if not len(owner):
        return torch.zeros_like(deltas[0])
    own = (owner[:, None] == owner[None, :]).to(deltas)
    return left @ (disjoint_mean(_largest(torch.stack(inside), settings.density)) * own) @ right.T


def _largest(matrices: Tensor, density: float) -> Tensor:
    """Keep the ⌊density · k²⌋ (at least 1) largest entries of each task's [T, k, k], and those equal to the last."""
    size = matrices[0].numel()
    least = size - max(1, int(density * size)) + 1
    return keep_from(matrices, torch.stack([select(m.abs().flatten(), least) for m in matrices]))


def _dc_merge(tv: TaskVectors, tasks: Sequence[Task], settings: DirectionSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, lambda deltas: directional(deltas, settings), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


ROWS: Mapping[str, Method] = {
    "dc_merge": Method(
        build=_dc_merge,
        settings=DirectionSettings,
        paper="DC-Merge, Zhang et al. 2026, arXiv 2603.06242",
        cost="T + 2 SVDs per matrix; 10 validations to choose the scale",
        breaks={"equal experts": "only the first 1/T of the singular directions of each task is kept"},
    )
}

"""Merges of matrices in a space that all experts share: KnOTS and Core Space, made for LoRA.

Both depend on the factors of an expert through their product τ_t = s·B_t A_t alone, so that they are had from task
vectors, of any experts, without loss. Tensors of two or more axes are read as matrices [rows, everything else]; those
of one axis are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.types import meant, refuse
from merging.closed_form.scale import MEAN_GRID, ScaleSettings, check_share, direction, scaled
from merging.closed_form.spectral import by_matrices, isotropic, task_singular_vectors
from merging.closed_form.tensors import as_matrices, disjoint_mean, keep_from, select, thin_svd
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class AlignedSettings(ScaleSettings):
    """Settings of KnOTS."""

    density: float = 0.2
    """Share of the entries of each task's aligned parts, over the whole model, that is kept."""
    weighted: bool = False
    """Trim and elect signs on Σ V_tᵀ, as the released code does; by default on V_tᵀ, as the paper writes it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)


Inside = Literal["tsv_iso", "tsv_m", "iso_c"]
"""How the cores of the experts are merged."""


@dataclass(frozen=True)
class CoreSettings(ScaleSettings):
    """Settings of Core Space."""

    inside: Inside = "tsv_iso"
    """Merge of the cores: tsv_m, iso_c, or tsv_iso (TSV-M, then all singular values become their mean)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inside not in INSIDE:
            refuse("inside", expected=" or ".join(INSIDE), got=repr(self.inside), cure=meant(str(self.inside), INSIDE))


def align(deltas: Tensor, weighted: bool) -> tuple[Tensor, Tensor]:
    """Return a basis [m, k] and parts [T, k, n] of τ [T, m, n], τ_t = basis · parts_t. Exact.

    [τ_1 ... τ_T] = U Σ [V_1ᵀ ... V_Tᵀ], k its numerical rank: UΣ and V_tᵀ, or U and ΣV_tᵀ where ``weighted``. Source:
    KnOTS, arXiv 2410.19735, algorithm 1.
    """
    tasks, rows, columns = deltas.shape
    u, sigma, v = thin_svd(deltas.transpose(0, 1).reshape(rows, -1))
    parts = v.reshape(tasks, columns, -1).mT
    return (u, sigma[:, None] * parts) if weighted else (u * sigma, parts)


def trim_thresholds(parts: Mapping[str, Tensor], tasks: int, density: float) -> Tensor:
    """Magnitudes [T] from which on entries belong to the largest share ``density`` of each task's parts. Exact.

    Over all matrices: ``parts`` are name -> [T, k, n].
    """
    total = sum(part[0].numel() for part in parts.values())
    smallest = total - max(1, round(density * total)) + 1
    if not total:
        return torch.zeros(tasks)
    found = [select(torch.cat([part[t].flatten() for part in parts.values()]).abs_(), smallest) for t in range(tasks)]
    return torch.stack(found)


def _knots(tv: TaskVectors, tasks: Sequence[Task], settings: AlignedSettings, progress: Progress) -> Merge:
    """TIES on the aligned parts; the basis is common, so that what is merged is in every expert's coordinates."""
    bases, parts = {}, {}
    names = [name for name, value in tv.base.items() if value.ndim > 1]
    for index in progress(range(len(names)), "aligning"):
        deltas = as_matrices(tv.stacked[names[index]].to(tv.dtype))
        bases[names[index]], parts[names[index]] = align(deltas, settings.weighted)
    thresholds = trim_thresholds(parts, len(tv), settings.density)

    def one(name: str, deltas: Tensor) -> Tensor:
        if name not in parts:
            return deltas.mean(dim=0)
        return (bases[name] @ disjoint_mean(keep_from(parts[name], thresholds))).reshape(deltas.shape[1:])

    return scaled(tv, direction(tv, one), tasks, settings.scale, MEAN_GRID, progress)


def common_bases(deltas: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return orthonormal bases U [m, k] of all columns and V [n, l] of all rows of τ [T, m, n], and Σ_t rank τ_t.

    τ_t = U M_t Vᵀ with M_t = Uᵀ τ_t V exactly: nothing is lost. U are the left singular vectors of the factors
    [B_1 ... B_T] side by side, V those of [A_1ᵀ ... A_Tᵀ], where B_t A_t = τ_t share its singular values evenly. (Other
    factors of the same τ_t turn the bases.) Source: Core Space, arXiv 2509.17786.
    """
    parts = [thin_svd(delta) for delta in deltas]
    left = thin_svd(torch.cat([u * sigma.sqrt() for u, sigma, _ in parts], dim=1))[0]
    right = thin_svd(torch.cat([v * sigma.sqrt() for _, sigma, v in parts], dim=1))[0]
    return left, right, sum(len(sigma) for _, sigma, _ in parts)


def in_core_space(deltas: Tensor, merge: Callable[[Tensor], Tensor]) -> Tensor:
    """Merge τ [T, m, n] in their core space: U merge(M) Vᵀ [m, n] (:func:`common_bases`).

    ``merge`` ([T, K, L] -> [K, L]) sees cores of the paper's size, K = min(Σ_t rank τ_t, m) and L = min(Σ_t rank τ_t,
    n). That is more than needed where experts share directions; the cores are then bordered with zeros.
    """
    left, right, ranks = common_bases(deltas)
    core = left.T @ deltas @ right
    more = [max(0, min(ranks, size) - used) for size, used in zip(deltas.shape[1:], core.shape[1:], strict=True)]
    found = merge(F.pad(core, (0, more[1], 0, more[0])))
    return left @ found[: core.shape[1], : core.shape[2]] @ right.T


INSIDE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tsv_iso": lambda core: isotropic(task_singular_vectors(core)[None]),
    "tsv_m": task_singular_vectors,
    "iso_c": isotropic,
}
assert set(INSIDE) == set(get_args(Inside))


def _core_space(tv: TaskVectors, tasks: Sequence[Task], settings: CoreSettings, progress: Progress) -> Merge:
    vector = by_matrices(tv, lambda deltas: in_core_space(deltas, INSIDE[settings.inside]), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


_FLAT = "all singular values become their mean"
ROWS: Mapping[str, Method] = {
    "knots": Method(
        build=_knots,
        settings=AlignedSettings,
        paper="KnOTS with TIES, Stoica et al. 2024, arXiv 2410.19735",
        cost="one SVD of [rows, T x columns] per matrix, its parts in memory; 10 validations to choose the scale",
    ),
    "core_space": Method(
        build=_core_space,
        settings=CoreSettings,
        paper="Core Space with TSV and Iso, Panariello et al. 2025, arXiv 2509.17786",
        cost="T + 2 SVDs per matrix, T + 3 of size Σ_t rank; 10 validations to choose the scale",
        breaks={"one task": _FLAT, "equal experts": _FLAT},
    ),
}

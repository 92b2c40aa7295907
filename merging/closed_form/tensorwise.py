"""Merges that choose entries within each tensor (sparse.py: over the model): Breadcrumbs, DELLA, SCE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import MEAN_GRID, SUM_GRID, ScaleSettings, check_share, direction, scaled
from merging.closed_form.sparse import DropSettings
from merging.closed_form.spectral import UnscaledSettings
from merging.closed_form.tensors import as_matrices, disjoint_mean, is_matrix, keep_from, per_task, select
from merging.draws import task_generators
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class BreadcrumbsSettings(ScaleSettings):
    """Settings of Model Breadcrumbs."""

    density: float = 0.15
    """Share of the entries of each tensor and task, the largest in size, that is looked at: 1 - β of the paper."""
    outliers: float = 0.006
    """Share of the entries of each tensor and task, the largest of all, that is dropped from these: 1 - γ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)
        if not 0 <= self.outliers < self.density:
            expected = f"a number in [0, density = {self.density})"
            refuse("outliers", expected=expected, got=self.outliers, cure="lower it; 0 drops none")


@dataclass(frozen=True)
class DellaSettings(DropSettings):
    """Settings of DELLA."""

    drop_rate: float = 0.3
    """Mean probability p with which an entry of a task vector is set to 0; one kept is divided by its 1 - p_i."""
    window: float = 0.14
    """Width ε: in each row p_i falls from p + ε/2 of the smallest entry to p - ε/2 of the largest, evenly by rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        room = min(2 * self.drop_rate, 2 * (1 - self.drop_rate))
        if self.drop_rate and not 0 <= self.window <= room:
            expected = f"a number in [0, {room:g}], so that p ± ε/2 are probabilities"
            refuse("window", expected=expected, got=self.window, cure="lower it; 0 is DARE")


@dataclass(frozen=True)
class SelectSettings(UnscaledSettings):
    """Settings of SCE."""

    density: float = 0.1
    """Share τ of the places of each tensor where the task vectors differ that is kept: those of the largest variance
    over the tasks. With 1 all places are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)


def middle(deltas: Tensor, density: float, outliers: float) -> Tensor:
    """Keep of each task's tensor, τ [T, ...], the share ``density`` of largest entries without the very largest ones.

    round(outliers · n) of the n entries are dropped at the top; at least one entry is kept. Entries equal to either
    threshold belong. Exact.
    """
    count = deltas[0].numel()
    kept = max(1, round(density * count))
    dropped = min(round(outliers * count), kept - 1)
    sizes = [delta.abs().flatten().cpu() for delta in deltas]
    low = torch.stack([select(size, count - kept + 1) for size in sizes])
    high = torch.stack([select(size, count - dropped) for size in sizes])
    return torch.where(deltas.abs() <= per_task(high, deltas), keep_from(deltas, low), 0)


def keep_probabilities(deltas: Tensor, drop_rate: float, window: float) -> Tensor:
    """Return 1 - p_i [T, ...] of MAGPRUNE for τ [T, ...], by the rank of |τ_i| in its row.

    p_i falls evenly from p + ε/2 of the smallest entry to p - ε/2 of the largest; of a row of one entry it is p. The
    first axis of a tensor counts its rows, a tensor of one axis is one row.
    """
    sizes = (as_matrices(deltas) if is_matrix(deltas) else deltas.reshape(len(deltas), 1, -1)).abs()
    ranks = sizes.argsort(dim=-1, stable=True).argsort(dim=-1).to(deltas.dtype)
    rise = ranks / (sizes.shape[-1] - 1) - 0.5 if sizes.shape[-1] > 1 else torch.zeros_like(ranks)
    return (1 - drop_rate + window * rise).view_as(deltas)


def magnitude_sampled(deltas: Tensor, drop_rate: float, window: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Drop entries of τ [T, ...] with the probabilities of MAGPRUNE and divide the others by 1 - p_i.

    One generator per task; the expectation of every entry is the entry. Without drop nothing changes.
    """
    if drop_rate == 0:
        return deltas
    probabilities = keep_probabilities(deltas, drop_rate, window)
    noise = torch.stack([torch.rand(deltas.shape[1:], generator=generator) for generator in generators])
    return torch.where(noise.to(deltas.device) < probabilities, deltas / probabilities, 0)


def select_calculate_erase(deltas: Tensor, density: float) -> Tensor:
    """SCE of τ [T, ...]: Σ_t η_t τ_t / Σ_t η_t over the tasks whose sign is elected, at the selected places.

    Select the share ``density`` of the places where the variance over tasks is not 0, the largest. Calculate
    η_t = ‖τ_t‖²/Σ_s ‖τ_s‖² of what is selected. Erase entries whose sign is not that of Σ_t τ_t.
    """
    if density < 1:
        variance = deltas.var(dim=0, correction=0)
        count = int(density * int((variance > 0).sum()))
        if count == 0:
            return torch.zeros_like(deltas[0])
        least = select(variance.flatten().cpu().clone(), variance.numel() - count + 1).to(variance.device)
        deltas = torch.where(variance >= least, deltas, 0)
    weights = per_task(deltas.flatten(start_dim=1).square().sum(dim=1), deltas)
    weights = torch.where(deltas.sign() == deltas.sum(dim=0).sign(), weights, 0)
    total = weights.sum(dim=0)
    return (weights * deltas).sum(dim=0) / total.where(total > 0, 1)


def _breadcrumbs(tv: TaskVectors, tasks: Sequence[Task], settings: BreadcrumbsSettings, progress: Progress) -> Merge:
    """Task arithmetic of task vectors of which neither the smallest nor the largest entries are kept."""
    vector = direction(tv, lambda _, deltas: middle(deltas, settings.density, settings.outliers).sum(dim=0), progress)
    return scaled(tv, vector, tasks, settings.scale, SUM_GRID, progress)


def _della(tv: TaskVectors, tasks: Sequence[Task], settings: DellaSettings, progress: Progress) -> Merge:
    """Drop by rank, elect the sign of the sum, take the mean of those that agree."""
    generators = task_generators(tv.names, settings.seed)

    def fused(_: str, deltas: Tensor) -> Tensor:
        return disjoint_mean(magnitude_sampled(deltas, settings.drop_rate, settings.window, generators))

    return scaled(tv, direction(tv, fused, progress), tasks, settings.scale, MEAN_GRID, progress)


def _sce(tv: TaskVectors, tasks: Sequence[Task], settings: SelectSettings, progress: Progress) -> Merge:
    vector = direction(tv, lambda _, deltas: select_calculate_erase(deltas, settings.density), progress)
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


ROWS: Mapping[str, Method] = {
    "breadcrumbs": Method(
        build=_breadcrumbs,
        settings=BreadcrumbsSettings,
        paper="Model Breadcrumbs, Davari and Belilovsky 2023, arXiv 2312.06795",
        cost="one selection per task and tensor, one merge; 10 validations to choose the scale",
    ),
    "della": Method(
        build=_della,
        settings=DellaSettings,
        paper="DELLA-Merging, Deep et al. 2024, arXiv 2406.11617",
        cost="one sort per task and row, one merge; 10 validations to choose the scale",
    ),
    "sce": Method(
        build=_sce,
        settings=SelectSettings,
        paper="SCE of FuseChat, Wan et al. 2024, arXiv 2408.07990",
        cost="one selection per tensor, one merge",
    ),
}

"""Merges that drop entries of the task vectors: TIES, DARE, magnitude pruning, consensus masks, PCB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import (
    MEAN_GRID,
    SUM_GRID,
    Place,
    ScaleSettings,
    check_at_least,
    check_share,
    direction_by_parts,
    scaled,
)
from merging.closed_form.tensors import (
    disjoint_mean,
    drop,
    keep_from,
    largest_threshold,
    magnitudes,
    per_task,
    select,
)
from merging.draws import task_generators
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors
from merging.task_vectors.arithmetic import PART


@dataclass(frozen=True)
class DensitySettings(ScaleSettings):
    """Settings of a merge that keeps the largest entries of each task vector."""

    density: float = 0.2
    """Share of the entries of each task vector, over the whole model, that is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)


@dataclass(frozen=True)
class DropSettings(ScaleSettings):
    """Settings of a merge that drops entries at random (DARE)."""

    drop_rate: float = 0.9
    """Probability p with which an entry of a task vector is set to 0; the others are divided by 1 - p."""
    seed: int = 0
    """Seed of the draws, which also depend on the task's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("drop_rate", self.drop_rate, zero=True, one=False)


@dataclass(frozen=True)
class ConsensusSettings(ScaleSettings):
    """Settings of consensus merging."""

    mask_threshold: float = 0.4
    """λ of the task masks; the paper chooses it per task from 0.2 ... 0.6 on validation."""
    agreement: int = 2
    """Number of tasks whose masks must hold an entry for it to be kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("mask_threshold", self.mask_threshold, 0)
        check_at_least("agreement", self.agreement, 1)


@dataclass(frozen=True)
class CompetitionSettings(DensitySettings):
    """Settings of parameter competition balancing."""

    density: float = 0.1
    """Share of the entries of each task, by competition score over the whole model, that is kept."""
    clip: float = 0.0
    """Share of the entries of each task, over the whole model, whose |τ| is clipped, at either end (released: 1e-4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.clip < 0.5:
            refuse("clip", expected="a number in [0, 0.5)", got=self.clip, cure="change it; 0 clips nothing")


def _ties(tv: TaskVectors, tasks: Sequence[Task], settings: DensitySettings, progress: Progress) -> Merge:
    """Trim, elect the sign of the sum, take the mean of those that agree (algorithm 1); the trim is over the model."""
    thresholds = largest_threshold(tv, settings.density)
    vector = direction_by_parts(tv, lambda _, deltas: disjoint_mean(keep_from(deltas, thresholds)))
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


def _magnitude(tv: TaskVectors, tasks: Sequence[Task], settings: DensitySettings, progress: Progress) -> Merge:
    """Task arithmetic of task vectors of which only the largest entries are kept."""
    thresholds = largest_threshold(tv, settings.density)
    vector = direction_by_parts(tv, lambda _, deltas: keep_from(deltas, thresholds).sum(dim=0))
    return scaled(tv, vector, tasks, settings.scale, SUM_GRID, progress)


def _dare_linear(tv: TaskVectors, tasks: Sequence[Task], settings: DropSettings, progress: Progress) -> Merge:
    """Task arithmetic of task vectors after drop and rescale."""
    generators = task_generators(tv.names, settings.seed)
    vector = direction_by_parts(tv, lambda _, deltas: drop(deltas, settings.drop_rate, generators).sum(dim=0))
    return scaled(tv, vector, tasks, settings.scale, SUM_GRID, progress)


def _dare_ties(tv: TaskVectors, tasks: Sequence[Task], settings: DropSettings, progress: Progress) -> Merge:
    """TIES with drop and rescale in place of its trim."""
    generators = task_generators(tv.names, settings.seed)
    vector = direction_by_parts(tv, lambda _, deltas: disjoint_mean(drop(deltas, settings.drop_rate, generators)))
    return scaled(tv, vector, tasks, settings.scale, MEAN_GRID, progress)


def _consensus(tv: TaskVectors, tasks: Sequence[Task], settings: ConsensusSettings, progress: Progress) -> Merge:
    """Keep the entries of Στ that at least ``agreement`` masks m_t = [|τ_t| >= λ |Στ - τ_t|] hold, as one sum."""

    def masked(_: Place, deltas: Tensor) -> Tensor:
        total = deltas.sum(dim=0)
        masks = deltas.abs() >= settings.mask_threshold * (total - deltas).abs()
        return torch.where(masks.sum(dim=0) >= settings.agreement, total, 0)

    return scaled(tv, direction_by_parts(tv, masked), tasks, settings.scale, SUM_GRID, progress)


def _pcb(tv: TaskVectors, tasks: Sequence[Task], settings: CompetitionSettings, progress: Progress) -> Merge:
    """Mean of the task vectors weighted, entry by entry, by how they stand within their task and among the tasks.

    Score b_t = exp(T a_t²) · tanh(τ_t Σ_s τ_s), where a_t is |τ_t| scaled to [0, 1] over the model. Scores below the
    largest ``density`` of a task are raised to that threshold, then scaled to [0, 1]: the weights w_t. The merged task
    vector is Σ_t w_t τ_t / Σ_t w_t. With ``clip`` = c, of the P entries the cP largest |τ_t| (rounded up) are lowered
    to the next one and the cP smallest (rounded down) raised: in a_t and in the last sum, not in Σ_s τ_s. So in the
    released code, which clips 0.01 % (c = 1e-4); here nothing is clipped unless asked for.
    """
    total = direction_by_parts(tv, lambda _, deltas: deltas.sum(dim=0))
    room = torch.empty(sum(value.numel() for value in total.values()), dtype=tv.dtype)
    ranges = [_competition_range(tv, t, total, settings, room) for t in range(len(tv))]
    low, high, threshold, top = torch.tensor(ranges, dtype=tv.dtype).T

    def balanced(place: Place, deltas: Tensor) -> Tensor:
        ends = per_task(low, deltas), per_task(high, deltas)
        scores = _competition(deltas, place.of(total), *ends, len(tv))
        floor = per_task(threshold, deltas)
        weights = (scores - floor).clamp_(min=0) / (per_task(top, deltas) - floor).clamp(min=1e-30)
        clipped = deltas.sign() * deltas.abs().clamp_(*ends) if settings.clip else deltas
        return (weights * clipped).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-12)

    return scaled(tv, direction_by_parts(tv, balanced), tasks, settings.scale, MEAN_GRID, progress)


def _competition(deltas: Tensor, total: Tensor, low: Tensor, high: Tensor, tasks: int) -> Tensor:
    """Return b = exp(T a²) · tanh(τ Σ_s τ_s), a = (|τ| - low)/(high - low), |τ| clipped to [low, high]."""
    magnitude = (deltas.abs().clamp_(low, high) - low) / (high - low).clamp(min=1e-30)
    return torch.exp(tasks * magnitude.square()) * torch.tanh(deltas * total)


def _competition_range(
    tv: TaskVectors, index: int, total: Mapping[str, Tensor], settings: CompetitionSettings, room: Tensor
) -> tuple[float, float, float, float]:
    """Least and largest clipped |τ_t|, the least score that is kept, the largest score; over the model, in ``room``."""
    low, high = _ends(tv, index, settings.clip, room)
    start = 0
    for name in tv.base:
        value, summed = tv.deltas[index][name].flatten(), total[name].flatten()
        for part, other in zip(value.split(PART), summed.split(PART), strict=True):
            room[start : start + len(part)] = _competition(part.to(tv.dtype), other, low, high, len(tv))
            start += len(part)
    largest, smallest = float(room.max()), max(1, len(room) - round(settings.density * len(room)))
    return float(low), float(high), float(select(room, smallest)), largest


def _ends(tv: TaskVectors, index: int, clip: float, room: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest |τ_t| that is not clipped; without clipping, of all, which needs no room."""
    if not clip:
        delta = tv.deltas[index]
        ends = torch.stack([torch.stack(torch.aminmax(delta[name].to(tv.dtype).abs())) for name in tv.base])
        return ends[:, 0].min(), ends[:, 1].max()
    magnitudes(tv, index, room)
    least = math.floor(clip * len(room)) + 1
    return select(room, least), select(room, max(least, len(room) - math.ceil(clip * len(room))))


ROWS: Mapping[str, Method] = {
    "magnitude": Method(
        _magnitude,
        DensitySettings,
        "pruning: Han et al. 2015, arXiv 1506.02626; of task vectors: Yu et al. 2024, arXiv 2311.03099",
        cost="one selection per task, one merge; 20 validations to choose the scale",
    ),
    "ties": Method(
        _ties,
        DensitySettings,
        "TIES, Yadav et al. 2023, arXiv 2306.01708",
        cost="one selection per task, one merge; 20 validations to choose the scale",
    ),
    "dare_linear": Method(
        _dare_linear,
        DropSettings,
        "DARE, Yu et al. 2024, arXiv 2311.03099",
        cost="one merge; 20 validations to choose the scale",
    ),
    "dare_ties": Method(
        _dare_ties,
        DropSettings,
        "DARE with TIES, Yu et al. 2024, arXiv 2311.03099",
        cost="one merge; 20 validations to choose the scale",
    ),
    "consensus": Method(
        _consensus,
        ConsensusSettings,
        "Consensus TALL masks, Wang et al. 2024, arXiv 2405.07813",
        cost="one merge; 20 validations to choose the scale",
    ),
    "pcb": Method(
        _pcb,
        CompetitionSettings,
        "PCB-Merging, Du et al. 2024, arXiv 2410.02396",
        cost="one selection per task, one merge; 20 validations to choose the scale",
    ),
}

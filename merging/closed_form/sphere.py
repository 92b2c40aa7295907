"""Means on the sphere: a tensor is a direction and a length, and the directions of the experts are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds.types import refuse
from merging.closed_form.scale import check_at_least, direction
from merging.params import combine
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors

SHORT = 1e-6
"""Length of the mean of unit vectors below which it has no direction: the points themselves are averaged then."""


@dataclass(frozen=True)
class SphereSettings:
    """Settings of a mean on the sphere."""

    centre: Literal["zero", "base"] = "zero"
    """Centre of the sphere: zero averages the directions of the experts' weights, base those of their task vectors."""

    def __post_init__(self) -> None:
        if self.centre not in ("zero", "base"):
            refuse("centre", expected="zero or base", got=repr(self.centre), cure="choose one")


@dataclass(frozen=True)
class KarcherSettings(SphereSettings):
    """Settings of the Karcher mean."""

    tolerance: float = 1e-6
    """The mean is found when a step is no longer than this, in radians."""
    steps: int = 100
    """Most steps for a tensor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("tolerance", self.tolerance, 0)
        check_at_least("steps", self.steps, 1)


def units(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions [T, n] of points [T, n] (0 for a point that is 0) and their lengths [T, 1]."""
    lengths = points.norm(dim=1, keepdim=True)
    return points / lengths.where(lengths > 0, 1), lengths


def projected_mean(points: Tensor) -> Tensor:
    """Multi-SLERP of points [T, n] with equal weights: mean length times the direction of the mean of the directions.

    Multi-SLERP goes to the tangent space at that direction, takes the mean there and comes back. The mean there is
    exactly 0: the tangent space at m/‖m‖ sees of the mean m of the directions nothing. Exact.
    """
    directions, lengths = units(points)
    mean = directions.mean(dim=0)
    size = mean.norm()
    return lengths.mean() * mean / size if size > SHORT else points.mean(dim=0)


def tangent_mean(at: Tensor, directions: Tensor) -> Tensor:
    """Return the mean [n] of the logarithms at the unit vector ``at`` [n] of unit vectors [T, n].

    log_a(u) is the part of u at right angles to a, its length replaced by the angle between the two. A vector that is 0
    or opposite to ``at`` has no logarithm and counts as 0.
    """
    cosines = directions @ at
    across = directions - cosines[:, None] * at
    sines = across.norm(dim=1)
    return ((torch.atan2(sines, cosines) / sines.where(sines > 0, 1)) @ across) / len(directions)


def karcher_mean(points: Tensor, tolerance: float, steps: int) -> Tensor:
    """Mean length times the direction whose mean squared angle to those of points [T, n] is least near theirs.

    Fixed point m ← exp_m(mean_t log_m(u_t)) from the mean of the directions, until a step is within ``tolerance``: the
    Riemannian centre of mass (Karcher 1977), unique where all directions are within a right angle of some direction.
    Points that are 0 have length but no direction.
    """
    directions, lengths = units(points)
    directions = directions[lengths[:, 0] > 0]
    mean = directions.mean(dim=0) if len(directions) else points[0]
    if not mean.norm() > SHORT:
        return points.mean(dim=0)
    mean = mean / mean.norm()
    for _ in range(steps):
        step = tangent_mean(mean, directions)
        size = step.norm()
        mean = torch.cos(size) * mean + torch.sin(size) * step / size.where(size > 0, 1)
        mean = mean / mean.norm()
        if size <= tolerance:
            break
    return lengths.mean() * mean


def _averaged(tv: TaskVectors, settings: SphereSettings, mean: Callable[[Tensor], Tensor], progress: Progress) -> Merge:
    """Average tensor by tensor; one task returns its expert."""

    def one(name: str, deltas: Tensor) -> Tensor:
        base = tv.base[name].to(tv.dtype) if settings.centre == "zero" else torch.zeros_like(deltas[0])
        return mean((base + deltas).flatten(start_dim=1)).view_as(base) - base

    return Merge(params=combine(tv.base, direction(tv, one, progress), 1.0))


def _multi_slerp(tv: TaskVectors, tasks: Sequence[Task], settings: SphereSettings, progress: Progress) -> Merge:
    return _averaged(tv, settings, projected_mean, progress)


def _karcher(tv: TaskVectors, tasks: Sequence[Task], settings: KarcherSettings, progress: Progress) -> Merge:
    return _averaged(tv, settings, lambda points: karcher_mean(points, settings.tolerance, settings.steps), progress)


ROWS: Mapping[str, Method] = {
    "multi_slerp": Method(
        build=_multi_slerp,
        settings=SphereSettings,
        paper="multi-SLERP as in mergekit, Goddard et al. 2024, arXiv 2403.13257, tensor by tensor",
        cost="one merge",
    ),
    "karcher": Method(
        build=_karcher,
        settings=KarcherSettings,
        paper="Karcher mean, Wang et al. 2026, arXiv 2603.04972, tensor by tensor",
        cost="a few steps of T products per tensor",
    ),
}

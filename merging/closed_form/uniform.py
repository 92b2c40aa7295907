"""Merges with one coefficient for every task: plain averaging and task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from merging.closed_form.scale import SUM_GRID, Place, ScaleSettings, direction_by_parts, places, scaled
from merging.params import partition
from merging.rows import Merge, Method, NoSettings, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged
from merging.task_vectors.arithmetic import add_rows, run
from merging.task_vectors.on_demand import OnDemand


def uniform(task_vectors: TaskVectors, scale: float) -> torch.Tensor:
    """Coefficients [T, 1] all equal to ``scale``."""
    return torch.full((len(task_vectors), 1), scale, dtype=task_vectors.dtype)


def _average(task_vectors: TaskVectors, tasks: Sequence[Task], settings: NoSettings, progress: Progress) -> Merge:
    coefficients, blocks = uniform(task_vectors, 1 / len(task_vectors)), partition(task_vectors.base, "task")
    if isinstance(task_vectors.stacked, OnDemand):
        return Merge(params=_mean(task_vectors, task_vectors.stacked), coefficients=coefficients, blocks=blocks)
    return Merge(params=merged(task_vectors, coefficients, blocks, out={}), coefficients=coefficients, blocks=blocks)


def _mean(task_vectors: TaskVectors, experts: OnDemand) -> dict[str, Tensor]:
    """Return θ_0 + Σ_t τ_t/T = Σ_t θ_t/T from the experts alone: no task vector is formed, θ_0 is not read.

    A part that is not finite is merged from task vectors: these refuse the expert that it came from.
    """
    weights = uniform(task_vectors, 1 / len(task_vectors))[:, 0]
    result = {name: torch.empty(base.shape, dtype=task_vectors.dtype) for name, base in task_vectors.base.items()}

    def write(place: Place) -> None:
        part = place.name, place.start, place.stop
        if not experts.write_mean(*part, place.of(result)):
            base = task_vectors.base[place.name].flatten()[place.start : place.stop]
            add_rows(base, experts.part(*part).T, weights, out=place.of(result))

    run(write, [place for name, value in result.items() for place in places(name, value.numel())])
    return result


def _task_arithmetic(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: ScaleSettings, progress: Progress
) -> Merge:
    total = direction_by_parts(task_vectors, lambda _, deltas: deltas.sum(dim=0))
    found = scaled(task_vectors, total, tasks, settings.scale, SUM_GRID, progress)
    scale = found.history["chosen_scale"][0] if settings.scale is None else settings.scale
    return replace(found, coefficients=uniform(task_vectors, scale), blocks=partition(task_vectors.base, "task"))


ROWS: Mapping[str, Method] = {
    "average": Method(
        build=_average, settings=NoSettings, paper="Wortsman et al. 2022, arXiv 2203.05482", cost="one merge"
    ),
    "task_arithmetic": Method(
        build=_task_arithmetic,
        settings=ScaleSettings,
        paper="Ilharco et al. 2023, arXiv 2212.04089",
        cost="one merge; 10 validations to choose the scale",
    ),
}

"""Merges with one coefficient for every task: plain averaging and task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from merging.closed_form.scale import SUM_GRID, ScaleSettings, direction_by_parts, scaled
from merging.params import partition
from merging.rows import Merge, Method, NoSettings, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged


def uniform(task_vectors: TaskVectors, scale: float) -> torch.Tensor:
    """Coefficients [T, 1] all equal to ``scale``."""
    return torch.full((len(task_vectors), 1), scale, dtype=task_vectors.dtype)


def _average(task_vectors: TaskVectors, tasks: Sequence[Task], settings: NoSettings, progress: Progress) -> Merge:
    coefficients, blocks = uniform(task_vectors, 1 / len(task_vectors)), partition(task_vectors.base, "task")
    return Merge(params=merged(task_vectors, coefficients, blocks, out={}), coefficients=coefficients, blocks=blocks)


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
        cost="one merge; 20 validations to choose the scale",
    ),
}

"""Merges in closed form: plain averaging and task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merging.task import Task, mean_accuracy
from merging.task_vectors import TaskVectors, merged

GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Scales tried by task arithmetic when none is given: 0.05, 0.10, ..., 1.00."""


def uniform(task_vectors: TaskVectors, scale: float) -> torch.Tensor:
    """Coefficients [T, 1] all equal to ``scale``."""
    dtype = next(iter(task_vectors.stacked.values())).dtype
    return torch.full((len(task_vectors), 1), scale, dtype=dtype)


def best_scale(
    task_vectors: TaskVectors, tasks: Sequence[Task], grid: Sequence[float] = GRID
) -> tuple[float, dict[float, float]]:
    """Scale of the grid with the best mean validation accuracy (the smallest of equals), and every scale's value."""
    values = {
        scale: mean_accuracy(tasks, merged(task_vectors, uniform(task_vectors, scale)), "validation") for scale in grid
    }
    return max(values, key=lambda scale: (values[scale], -scale)), values

"""Merges with one coefficient for every task: plain averaging and task arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from bounds.types import refuse
from merging.params import partition
from merging.rows import Merge, Method, NoSettings, Progress
from merging.task import Task, mean_accuracy
from merging.task_vectors import TaskVectors, merged

GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Scales tried by task arithmetic when none is given: 0.05, 0.10, ..., 1.00."""


def uniform(task_vectors: TaskVectors, scale: float) -> torch.Tensor:
    """Coefficients [T, 1] all equal to ``scale``."""
    dtype = next(iter(task_vectors.stacked.values())).dtype
    return torch.full((len(task_vectors), 1), scale, dtype=dtype)


def best_scale(
    task_vectors: TaskVectors, tasks: Sequence[Task], grid: Iterable[float] = GRID
) -> tuple[float, dict[float, float]]:
    """Scale of the grid with the best mean validation accuracy (the smallest of equals), and every scale's value."""
    values = {
        scale: mean_accuracy(tasks, merged(task_vectors, uniform(task_vectors, scale)), "validation") for scale in grid
    }
    return max(values, key=lambda scale: (values[scale], -scale)), values


@dataclass(frozen=True)
class TaskArithmeticSettings:
    """Settings of task arithmetic."""

    scale: float | None = None
    """The scale of the sum of task vectors; by default the best of a grid on the validation split."""

    def __post_init__(self) -> None:
        if self.scale is not None and not math.isfinite(self.scale):
            refuse("scale", expected="a finite number", got=self.scale, cure="leave it out to search a grid")


def _average(task_vectors: TaskVectors, tasks: Sequence[Task], settings: NoSettings, progress: Progress) -> Merge:
    return _merge(task_vectors, 1 / len(task_vectors), {})


def _task_arithmetic(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: TaskArithmeticSettings, progress: Progress
) -> Merge:
    if settings.scale is not None:
        return _merge(task_vectors, settings.scale, {})
    scale, values = best_scale(
        task_vectors, tasks, (GRID[i] for i in progress(range(len(GRID)), "scales on validation"))
    )
    return _merge(task_vectors, scale, {"scale": list(values), "validation_accuracy": list(values.values())})


def _merge(task_vectors: TaskVectors, scale: float, history: Mapping[str, list[float]]) -> Merge:
    coefficients = uniform(task_vectors, scale)
    blocks = partition(task_vectors.base, "task")
    return Merge(merged(task_vectors, coefficients, blocks), coefficients, blocks, history)


ROWS: Mapping[str, Method] = {
    "average": Method(_average, NoSettings, "Wortsman et al. 2022, arXiv 2203.05482", "nothing", "one merge"),
    "task_arithmetic": Method(
        _task_arithmetic,
        TaskArithmeticSettings,
        "Ilharco et al. 2023, arXiv 2212.04089",
        "labelled validation, or a scale",
        "one merge; 20 validations to choose the scale",
    ),
}

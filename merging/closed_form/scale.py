"""θ_0 + s·τ: one merged task vector τ, and how every row chooses its scale s."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bounds.types import Params, refuse
from merging.params import combine
from merging.rows import NOTHING, VALIDATION, Merge, Progress, silent
from merging.task import Split, Task, mean_accuracy
from merging.task_vectors import TaskVectors

SUM_GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Scales tried for a sum of task vectors: 0.05, 0.10, ..., 1.00."""
MEAN_GRID = tuple(round(0.1 * i, 1) for i in range(1, 21))
"""Scales tried for a merged task vector of the size of one: 0.1, 0.2, ..., 2.0."""


@dataclass(frozen=True)
class ScaleSettings:
    """Settings of a method whose merged task vector is scaled."""

    scale: float | None = None
    """The scale of the merged task vector; None: the best of a grid on the validation split."""

    def __post_init__(self) -> None:
        if self.scale is not None and not math.isfinite(self.scale):
            refuse("scale", expected="a finite number", got=self.scale, cure="leave it out to search a grid")

    @property
    def needs(self) -> frozenset[Split]:
        """The validation split, on which a scale that is not given is chosen."""
        return VALIDATION if self.scale is None else NOTHING


def check_share(name: str, value: float, *, zero: bool = False, one: bool = True) -> None:
    """Check that a setting lies between 0 and 1; whether the ends are allowed is said.

    Raises:
        InputError: it does not.
    """
    if not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        refuse(name, expected=f"a number in {interval}", got=value, cure="change it")


def check_at_least(name: str, value: float, least: float) -> None:
    """Check that a setting is finite and at least ``least``.

    Raises:
        InputError: it is not.
    """
    if not least <= value < math.inf:
        refuse(name, expected=f"a finite number, at least {least}", got=value, cure="raise it")


def direction(
    task_vectors: TaskVectors, combine_tasks: Callable[[str, Tensor], Tensor], progress: Progress = silent
) -> dict[str, Tensor]:
    """Return the merged task vector, tensor by tensor: (name, τ [T, ...]) -> [...], in the merge's dtype."""
    names = list(task_vectors.base)
    steps = progress(range(len(names)), "merging tensor by tensor")
    return {names[i]: combine_tasks(names[i], task_vectors.stacked[names[i]].to(task_vectors.dtype)) for i in steps}


def best_scale(
    tasks: Sequence[Task], at: Callable[[float], Params], grid: Iterable[float]
) -> tuple[float, dict[float, float]]:
    """Scale of the grid with the best mean validation accuracy (the smallest of equals), and every scale's value."""
    values = {scale: mean_accuracy(tasks, at(scale), "validation") for scale in grid}
    return max(values, key=lambda scale: (values[scale], -scale)), values


def scaled(
    task_vectors: TaskVectors,
    vector: Params,
    tasks: Sequence[Task],
    scale: float | None,
    grid: Sequence[float],
    progress: Progress,
) -> Merge:
    """Return θ_0 + s·τ for the merged task vector τ; where s is None, the best of the grid on validation.

    The history then holds ``scale`` and ``validation_accuracy`` of the whole grid, and the ``chosen_scale``; the merge
    says how many candidates it was chosen from.
    """
    base = {name: value.to(task_vectors.dtype) for name, value in task_vectors.base.items()}
    if scale is not None:
        return Merge(combine(base, vector, scale))
    tried = (grid[i] for i in progress(range(len(grid)), "scales on validation"))
    best, values = best_scale(tasks, lambda s: combine(base, vector, s), tried)
    history = {"scale": list(values), "validation_accuracy": list(values.values()), "chosen_scale": [best]}
    return Merge(combine(base, vector, best), history=history, candidates=len(values))

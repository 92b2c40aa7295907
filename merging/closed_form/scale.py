"""θ_0 + s·τ: one merged task vector τ, and how every row chooses its scale s."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Params, refuse
from merging.rows import NOTHING, VALIDATION, Merge, Progress, silent
from merging.task import Split, Task, mean_quality
from merging.task_vectors import TaskVectors
from merging.task_vectors.arithmetic import PART, cut, formed

SUM_GRID = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Scales tried for a sum of task vectors: 0.05, 0.10, ..., 1.00."""
MEAN_GRID = tuple(round(0.1 * i, 1) for i in range(1, 21))
"""Scales tried for a merged task vector of the size of one: 0.1, 0.2, ..., 2.0."""
COARSE = 3
"""The first look at a grid is at every third scale."""
SEARCH_SECONDS = "search_seconds"
"""Entry of a merge's history: wall time of its search for a scale, which says nothing about the merge itself."""


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


@dataclass(frozen=True)
class Place:
    """Where a part of the task vectors lies: numbers ``start`` to ``stop`` of the parameter ``name``, in order."""

    name: str
    start: int
    stop: int

    def of(self, params: Params) -> Tensor:
        """Return the same numbers of other parameters, [n]."""
        return params[self.name].view(-1)[self.start : self.stop]


def places(name: str, size: int) -> list[Place]:
    """Return the parts of a parameter of ``size`` numbers."""
    return [Place(name, start, min(start + PART, size)) for start in range(0, size, PART)]


def direction_by_parts(
    task_vectors: TaskVectors, combine_tasks: Callable[[Place, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the merged task vector of a row that treats each entry by itself: (place, τ [T, n]) -> [n], in order.

    Parts of a tensor stay in the cache from one operation to the next, and every task vector is read once.
    """
    result = {}
    for name, base in task_vectors.base.items():
        result[name], start = torch.empty(base.shape, dtype=task_vectors.dtype, device=base.device), 0
        for rows in cut(task_vectors.stacked, name):
            part = formed(rows).to(task_vectors.dtype)
            place = Place(name, start, start := start + part.shape[1])
            place.of(result).copy_(combine_tasks(place, part))
    return result


def best_scale(
    tasks: Sequence[Task], at: Callable[[float], Params], grid: Sequence[float], progress: Progress = silent
) -> tuple[float, dict[float, float]]:
    """Scale of the best mean validation quality (the smallest of equals), and the figure of every scale looked at.

    The quality is the accuracy, of tasks with scores at every position minus the mean cross-entropy of a counted token
    (the field's habit: perplexity); the figure is what it is made of (``Task.chosen_by``).

    Coarse to fine: every third scale of the grid, then those between the best of these and its two neighbours. The
    best of the whole grid, if quality over the coarse scales rises to the interval where that lies and falls after it.
    """
    values: dict[float, float] = {}

    def look(positions: Sequence[int], description: str) -> int:
        for i in progress(positions, description):
            values[grid[i]] = mean_quality(tasks, at(grid[i]), "validation")
        return max((i for i in range(len(grid)) if grid[i] in values), key=lambda i: (values[grid[i]], -i))

    best = look(range(COARSE - 1, len(grid), COARSE), "scales on validation, coarse")
    around = range(max(0, best - COARSE + 1), min(len(grid), best + COARSE))
    best = look([i for i in around if i != best], "scales on validation, fine")
    sign = -1.0 if any(task.per_position for task in tasks) else 1.0
    return grid[best], {scale: sign * values[scale] for scale in grid if scale in values}


def validation_figure(tasks: Sequence[Task]) -> str:
    """Return the name of the figure that :func:`best_scale` looks at, as a merge's history has it."""
    return f"validation_{tasks[0].chosen_by}"


def scaled(
    task_vectors: TaskVectors,
    vector: dict[str, Tensor],
    tasks: Sequence[Task],
    scale: float | None,
    grid: Sequence[float],
    progress: Progress,
) -> Merge:
    """Return θ_0 + s·τ for the merged task vector τ, whose memory it takes; where s is None, the best of the grid.

    The history then holds ``scale`` and ``validation_accuracy`` (of sequences ``validation_cross_entropy``) of the
    scales looked at, the ``chosen_scale``, the wall time of the search (``search_seconds``); the merge says how many
    candidates it was chosen from: the size of the grid, since which scales are looked at depends on the validation
    labels, and any of the grid could have been chosen.
    """
    base = {name: value.to(task_vectors.dtype) for name, value in task_vectors.base.items()}
    if scale is not None:
        return Merge(params=_add(base, vector, scale, vector))
    started, room = time.perf_counter(), {name: torch.empty_like(value) for name, value in vector.items()}
    best, values = best_scale(tasks, lambda s: _add(base, vector, s, room), grid, progress)
    history = {
        "scale": list(values),
        validation_figure(tasks): list(values.values()),
        "chosen_scale": [best],
        SEARCH_SECONDS: [time.perf_counter() - started],
    }
    return Merge(params=_add(base, vector, best, vector), history=history, candidates=len(grid))


def _add(base: Params, vector: Params, scale: float, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write base + scale · vector to ``out``, which may be ``vector``."""
    for name, value in vector.items():
        torch.mul(value, scale, out=out[name]).add_(base[name])
    return out

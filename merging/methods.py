"""The table of merging methods, and the one function that runs a row."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bounds.types import Blocks, Params, refuse
from merging import closed_form, learned
from merging.artifact import MergeArtifact
from merging.params import partition
from merging.task import Task
from merging.task_vectors import TaskVectors, merged

Progress = Callable[[Iterable[int], str], Iterable[int]]
"""Wraps an iterable of steps to show how far it is: (steps, description) -> the same steps."""


@dataclass(frozen=True)
class Merge:
    """What a method's builder returns."""

    params: Params
    coefficients: torch.Tensor | None = None
    blocks: Blocks | None = None
    history: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class AverageSettings:
    """Plain averaging has no settings."""


@dataclass(frozen=True)
class TaskArithmeticSettings:
    """Settings of task arithmetic."""

    scale: float | None = None
    """The scale of the sum of task vectors; by default the best of a grid on the validation split."""

    def __post_init__(self) -> None:
        if self.scale is not None and not math.isfinite(self.scale):
            refuse("scale", expected="a finite number", got=self.scale, cure="leave it out to search a grid")


@dataclass(frozen=True)
class Method:
    """A row: its builder, its settings, where it comes from, what it needs."""

    build: Callable[[TaskVectors, Sequence[Task], Any, Progress], Merge]
    settings: type
    paper: str
    needs: str


def _average(task_vectors: TaskVectors, tasks: Sequence[Task], settings: AverageSettings, progress: Progress) -> Merge:
    return _uniform(task_vectors, 1 / len(task_vectors), {})


def _task_arithmetic(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: TaskArithmeticSettings, progress: Progress
) -> Merge:
    if settings.scale is not None:
        return _uniform(task_vectors, settings.scale, {})
    grid = list(closed_form.GRID)
    scale, values = closed_form.best_scale(
        task_vectors, tasks, [grid[i] for i in progress(range(len(grid)), "scales on validation")]
    )
    return _uniform(task_vectors, scale, {"scale": list(values), "validation_accuracy": list(values.values())})


def _uniform(task_vectors: TaskVectors, scale: float, history: Mapping[str, list[float]]) -> Merge:
    coefficients = closed_form.uniform(task_vectors, scale)
    blocks = partition(task_vectors.base, "task")
    return Merge(merged(task_vectors, coefficients, blocks), coefficients, blocks, history)


def _learned(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: learned.LearnedSettings, progress: Progress
) -> Merge:
    problem = learned.prepare(task_vectors, tasks, settings)
    state = learned.init(problem)
    for _ in progress(range(settings.steps), "learning coefficients"):
        state = learned.update(problem, state)
    coefficients = state.coefficients.detach()
    return Merge(merged(task_vectors, coefficients, problem.blocks), coefficients, problem.blocks, state.history)


METHODS: Mapping[str, Method] = {
    "average": Method(_average, AverageSettings, "Wortsman et al. 2022, arXiv 2203.05482", "nothing"),
    "task_arithmetic": Method(
        _task_arithmetic,
        TaskArithmeticSettings,
        "Ilharco et al. 2023, arXiv 2212.04089",
        "labelled validation, or a scale",
    ),
    "samerging": Method(
        _learned, learned.LearnedSettings, "SAMerging, arXiv 2512.21288", "unlabelled calibration examples"
    ),
}


def silent(steps: Iterable[int], description: str) -> Iterable[int]:
    """Show nothing."""
    return steps


def method_settings(method: str) -> type:
    """Return the settings class of a method.

    Raises:
        InputError: unknown method.
    """
    if method not in METHODS:
        refuse("method", expected=" or ".join(METHODS), got=repr(method), cure="choose one")
    return METHODS[method].settings


def merge(
    method: str,
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    *,
    suite: str = "",
    sources: Mapping[str, str] | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> MergeArtifact:
    """Merge experts with a method of the table; deterministic given its settings.

    Args:
        method: a key of METHODS.
        task_vectors: θ_0 and the task vectors.
        tasks: the experts' tasks, in the same order.
        suite: name of the suite they come from, recorded in the artifact.
        sources: what the weights were read from -> sha256, recorded in the artifact.
        progress: shows progress.
        settings: fields of the method's settings class.

    Raises:
        InputError: unknown method or setting, or input the method refuses.
    """
    kind = method_settings(method)
    fields = kind.__dataclass_fields__
    for name in settings:
        if name not in fields:
            refuse(
                f"setting of {method}",
                expected=" or ".join(fields) or "none",
                got=repr(name),
                cure="remove it",
            )
    chosen = kind(**settings)
    started = time.perf_counter()
    result = METHODS[method].build(task_vectors, tasks, chosen, progress)
    return MergeArtifact(
        method=method,
        names=tuple(task_vectors.names),
        merged=result.params,
        coefficients=result.coefficients,
        blocks=result.blocks,
        settings=asdict(chosen),
        suite=suite,
        sources=dict(sources or {}),
        seed=settings.get("seed", getattr(chosen, "seed", None)),
        history=dict(result.history),
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        seconds=time.perf_counter() - started,
    )

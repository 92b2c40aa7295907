"""The table of merging methods, and the one function that runs a row."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bounds.types import meant, refuse
from merging import closed_form, gauss_newton, learned
from merging.artifact import MergeArtifact
from merging.execution import Execution
from merging.rows import Method, Progress, silent
from merging.selection import Part, Selection
from merging.suites import Suite
from merging.task import Task, check_labels, check_tasks, handed
from merging.task_vectors import TaskVectors

METHODS: Mapping[str, Method] = {**closed_form.ROWS, **learned.ROWS, **gauss_newton.ROWS}


def find(method: str) -> Method:
    """Return the row of a method.

    Raises:
        InputError: unknown method.
    """
    if method not in METHODS:
        refuse("method", expected=" or ".join(METHODS), got=repr(method), cure=meant(method, METHODS))
    return METHODS[method]


def merge(
    method: str,
    experts: TaskVectors | Suite,
    tasks: Sequence[Task] | None = None,
    *,
    suite: str = "",
    sources: Mapping[str, str] | None = None,
    selection: Selection | None = None,
    progress: Progress = silent,
    execution: Execution | None = None,
    **settings: Any,
) -> MergeArtifact:
    """Merge experts with a method of the table; deterministic given its settings.

    Args:
        method: a key of METHODS.
        experts: θ_0 and the task vectors, or a suite, which brings tasks, name and sources along.
        tasks: the experts' tasks, in the same order; may be empty where the method needs no split of theirs. The method
            is handed the splits it needs with these settings and no others.
        suite: name of the suite they come from, recorded in the artifact.
        sources: what the weights were read from -> sha256, recorded in the artifact.
        selection: which entries of θ are merged; by default all, but for running statistics, which are averaged.
        progress: shows progress.
        execution: device, precision, processes and checkpoint of a method that takes passes; by default one process on
            the CPU that keeps nothing.
        settings: fields of the method's settings class.

    Raises:
        InputError: unknown method or setting, tasks that are not those of the task vectors, or input that the method
            refuses.
    """
    whole = experts if isinstance(experts, Suite) else None
    task_vectors = experts.task_vectors if isinstance(experts, Suite) else experts
    if whole is not None:
        tasks, suite, sources = tasks or whole.tasks, suite or whole.name, sources or whole.sources
    tasks, selection = tasks or (), selection or Selection()
    row, execution = find(method), execution or Execution()
    chosen = _settings(method, settings)
    needs = row.needs_of(chosen) | selection.needs(list(task_vectors.base))
    if tasks or needs:
        check_tasks(task_vectors.names, tasks)
        check_labels(tasks, needs, f"method {method}")
    seed = settings.get("seed", getattr(chosen, "seed", None))
    started = time.perf_counter()
    if not row.executes:
        _check_plain(method, execution)
    extra = [execution] if row.executes else []
    part = Part(selection, task_vectors, [handed(task, needs) for task in tasks])
    vectors = part.vectors.kept() if row.executes else part.vectors  # passes read them thousands of times
    result = part.completed(row.build(vectors, part.tasks, chosen, progress, *extra), seed or 0)
    return MergeArtifact(
        method=method,
        names=tuple(task_vectors.names),
        merged=result.params,
        coefficients=result.coefficients,
        blocks=result.blocks,
        settings=asdict(chosen),
        suite=suite,
        sources=dict(sources or {}),
        seed=seed,
        history=dict(result.history),
        used={split: result.candidates if split == "validation" else None for split in sorted(needs)},
        versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        seconds=time.perf_counter() - started,
        origin="" if whole is None else whole.origin,
        selection=selection.record,
        fingerprint=None if whole is None else whole.fingerprint,
    )


def _settings(method: str, given: Mapping[str, Any]) -> Any:
    """Return the settings of a method with these values, all others at their defaults."""
    fields = METHODS[method].settings.__dataclass_fields__
    for name in given:
        if name not in fields:
            refuse(
                f"setting of {method}",
                expected=" or ".join(fields) or "none",
                got=repr(name),
                cure=meant(name, fields, "remove it"),
            )
    return METHODS[method].settings(**given)


def _check_plain(method: str, execution: Execution) -> None:
    """Refuse what only methods with ``executes`` can follow."""
    asked = {
        "device": execution.device != "cpu" and execution.device,
        "autocast": execution.autocast != "none" and execution.autocast,
        "processes": execution.processes.size > 1 and execution.processes.size,
        "resume": execution.resume,
    }
    for option, value in asked.items():
        if value:
            refuse(f"{option} of {method}", expected="none: this method cannot use it", got=value, cure="remove it")

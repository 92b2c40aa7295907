"""The table of merging methods, and the one function that runs a row."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bounds.types import refuse
from merging import closed_form, gauss_newton, learned
from merging.artifact import MergeArtifact
from merging.rows import Method, Progress, silent
from merging.task import Task
from merging.task_vectors import TaskVectors

METHODS: Mapping[str, Method] = {**closed_form.ROWS, **learned.ROWS, **gauss_newton.ROWS}


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

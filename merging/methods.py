"""The table of merging methods, and the one function that runs a row and what follows it."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bounds.types import meant, refuse
from merging import closed_form, gauss_newton, learned, post
from merging.artifact import MergeArtifact
from merging.execution import Execution
from merging.rows import Merge, Method, PostProcessing, Progress, silent
from merging.selection import Part, Selection
from merging.specification import Specification, parse
from merging.suites import Suite
from merging.task import Split, Task, check_labels, check_tasks, handed
from merging.task_vectors import TaskVectors

METHODS: Mapping[str, Method] = {**closed_form.ROWS, **learned.ROWS, **gauss_newton.ROWS}
POST_PROCESSINGS: Mapping[str, PostProcessing] = post.ROWS
"""What may follow any row, found like the files of closed_form."""


def find(method: str) -> Method:
    """Return the row of a method.

    Raises:
        InputError: unknown method.
    """
    if method not in METHODS:
        refuse("method", expected=" or ".join(METHODS), got=repr(method), cure=meant(method, METHODS))
    return METHODS[method]


def specification(text: str) -> Specification:
    """Read how a merge is written: ``tsv_m+svc``, ``ties:density=0.1+lines:rise=0.5``.

    Raises:
        InputError: see :func:`merging.specification.parse`.
    """
    return parse(text, METHODS, POST_PROCESSINGS)


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
        method: a key of METHODS, and what follows it: ``tsv_m+svc``, ``ties:density=0.1+lines:rise=0.5``. Settings
            of post-processings are written there; those of the method may be, or are keywords.
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
        InputError: unknown method, post-processing or setting, tasks that are not those of the task vectors, or input
            that the method refuses.
    """
    whole = experts if isinstance(experts, Suite) else None
    task_vectors = experts.task_vectors if isinstance(experts, Suite) else experts
    if whole is not None:
        tasks, suite, sources = tasks or whole.tasks, suite or whole.name, sources or whole.sources
    tasks, selection = tasks or (), selection or Selection()
    stages = _Stages.of(specification(method), settings)
    row, execution = stages.row, execution or Execution()
    needs = stages.needs | selection.needs(list(task_vectors.base))
    if tasks or needs:
        check_tasks(task_vectors.names, tasks)
        check_labels(tasks, needs, f"method {method}")
    seed = getattr(stages.settings, "seed", None)
    started = time.perf_counter()
    if not row.executes:
        _check_plain(stages.method, execution)
    part = Part(selection, task_vectors, [handed(task, needs) for task in tasks])
    result = stages.run(part, progress, execution)
    return MergeArtifact(
        method=stages.method,
        names=tuple(task_vectors.names),
        merged=result.params,
        coefficients=result.coefficients,
        blocks=result.blocks,
        settings=asdict(stages.settings),
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
        then={name: asdict(chosen) for name, chosen in stages.then.items()},
    )


@dataclass(frozen=True)
class _Stages:
    """A row with its settings, and the post-processings after it with theirs."""

    method: str
    row: Method
    settings: Any
    then: Mapping[str, Any]

    @staticmethod
    def of(specified: Specification, settings: Mapping[str, Any]) -> _Stages:
        row = find(specified.method)
        for name in settings:
            if name in specified.given:
                got = f"one in {specified.label} and one beside it"
                refuse(f"setting {name} of {specified.method}", expected="one value", got=got, cure="remove one")
        chosen = _settings(specified.method, {**specified.given, **settings})
        then = {name: POST_PROCESSINGS[name].settings(**given) for name, given in specified.then.items()}
        return _Stages(specified.method, row, chosen, then)

    @property
    def needs(self) -> frozenset[Split]:
        after = (POST_PROCESSINGS[name].needs_of(chosen) for name, chosen in self.then.items())
        return self.row.needs_of(self.settings).union(*after)

    def run(self, part: Part, progress: Progress, execution: Execution) -> Merge:
        """Return the merge of the whole model; its ``candidates`` are those of all stages, whose numbers multiply."""
        extra = [execution] if self.row.executes else []
        vectors = part.vectors.kept() if self.row.executes else part.vectors  # passes read them thousands of times
        result = self.row.build(vectors, part.tasks, self.settings, progress, *extra)
        counts = [result.candidates] if "validation" in self.row.needs_of(self.settings) else []
        for name, chosen in self.then.items():
            after = POST_PROCESSINGS[name]
            result = after.build(result, part.vectors, part.tasks, chosen, progress)
            counts += [result.candidates] if "validation" in after.needs_of(chosen) else []
        known = [count for count in counts if count is not None]
        tried = math.prod(known) if known and len(known) == len(counts) else None
        seed = getattr(self.settings, "seed", None)
        return replace(part.completed(result, seed or 0), candidates=tried)


def needs_of(method: str, settings: Mapping[str, Any], then: Mapping[str, Mapping[str, Any]]) -> frozenset[Split]:
    """Return the splits that a row of the table needs with these settings and what follows it.

    Raises:
        InputError: an unknown method, or a setting that is unknown or out of range.
    """
    return _Stages.of(Specification(method, settings, then), {}).needs


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

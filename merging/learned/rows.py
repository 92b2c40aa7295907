"""Rows of the table of methods whose coefficients are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bounds.types import InputError
from merging.execution import Execution
from merging.learned import checkpoint
from merging.learned.loop import init, update
from merging.learned.problem import prepare
from merging.learned.settings import LearnedSettings
from merging.rows import Merge, Method, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged


def _learned(
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: LearnedSettings,
    progress: Progress,
    execution: Execution,
) -> Merge:
    problem = prepare(task_vectors, tasks, settings, execution)
    state = checkpoint.prepare_file(problem, init(problem))
    try:
        for _ in progress(range(state.step, settings.steps), "learning coefficients"):
            state = update(problem, state)
            if state.step % execution.every == 0:
                checkpoint.save(problem, state)
    except InputError as error:
        raise InputError(f"{error}{checkpoint.left(problem)}") from error
    coefficients = state.coefficients.detach()
    return Merge(merged(task_vectors, coefficients, problem.blocks), coefficients, problem.blocks, state.history)


ROWS: Mapping[str, Method] = {
    "samerging": Method(
        _learned,
        LearnedSettings,
        "SAMerging, arXiv 2512.21288",
        "unlabelled calibration examples",
        "steps x passes of its perturbation (SAM 2) x T batches",
        executes=True,
    ),
}

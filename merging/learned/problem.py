"""What stays fixed while coefficients are learned, and one pass over it: losses and gradients at a displaced merge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bounds.types import Blocks, Forward, Inputs, refuse, take
from merging.draws import chosen_positions
from merging.execution import Execution
from merging.learned.combination import BY_BLOCK, BY_ENTRY, Combination
from merging.learned.objectives import OBJECTIVES, Objective
from merging.learned.perturbations import PERTURBATIONS, Displacement, Pass, Perturbation
from merging.learned.settings import LearnedSettings
from merging.params import partition
from merging.task import Task, check_tasks, score_task
from merging.task_vectors import TaskVectors
from merging.task_vectors.storage import on_disk

LARGE = 2**26
"""Bytes of one teacher's scores above which they are kept on the disk (memory-mapped)."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Task vectors, blocks, and each task's inputs and teacher scores (those of this process's tasks).

    ``combination`` says how coefficients make weights. ``chosen[t]`` are the positions of the k examples in task t's
    calibration split. ``theta`` is room for merged weights: every pass overwrites it, nothing else reads it.
    """

    task_vectors: TaskVectors
    blocks: Blocks
    forwards: Sequence[Forward]
    inputs: Sequence[Inputs]
    teacher_scores: Sequence[Tensor]
    objective: Objective
    perturbation: Perturbation
    settings: LearnedSettings
    combination: Combination = BY_BLOCK
    execution: Execution = field(default_factory=Execution)
    chosen: Sequence[Tensor] = ()
    theta: dict[str, Tensor] = field(default_factory=dict)


def prepare(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: LearnedSettings, execution: Execution | None = None
) -> Problem:
    """Choose k calibration examples of each task and compute its expert's scores on them, once.

    Experts are made one at a time; scores larger than ``LARGE`` go to a mapped file. In several processes each scores
    the experts of its own tasks.

    Raises:
        InputError: tasks that are not those of the task vectors, in order, or fewer than k calibration examples.
    """
    check_tasks(task_vectors.names, tasks)
    execution = execution or Execution()
    chosen = _choose(tasks, settings)
    inputs: list[Inputs] = []
    teacher_scores: list[Tensor] = []
    for index, (task, positions) in enumerate(zip(tasks, chosen, strict=True)):
        if not execution.processes.mine(index):
            inputs.append(torch.empty(len(positions), 0))
            teacher_scores.append(torch.empty(len(positions), 0))
            continue
        inputs.append(_to(take(task.calibration.inputs, positions), execution.device))
        expert = {name: value.to(execution.device) for name, value in task_vectors.expert(index).items()}
        with execution.passes():
            scores = score_task(task, expert, inputs[-1], "calibration", "expert").to(task_vectors.dtype)
        teacher_scores.append(on_disk(scores, _folder(execution)) if scores.nbytes > LARGE else scores)
    entries = settings.granularity == "entry"
    return Problem(
        task_vectors=task_vectors,
        blocks=partition(task_vectors.base, "tensor" if entries else settings.granularity),
        combination=BY_ENTRY if entries else BY_BLOCK,
        forwards=[task.forward for task in tasks],
        inputs=inputs,
        teacher_scores=teacher_scores,
        objective=OBJECTIVES[settings.objective],
        perturbation=PERTURBATIONS[settings.perturbation],
        settings=settings,
        execution=execution,
        chosen=chosen,
    )


def _folder(execution: Execution) -> Path:
    return execution.checkpoint.parent if execution.checkpoint else Path(tempfile.gettempdir())


def _choose(tasks: Sequence[Task], settings: LearnedSettings) -> list[Tensor]:
    """Positions of k calibration examples of each task, from its own generator: other tasks do not matter."""
    examples = settings.examples or min(len(task.calibration) for task in tasks)
    for task in tasks:
        available = len(task.calibration)
        if available < examples:
            refuse(
                f"calibration examples of task {task.name!r}",
                expected=f"at least examples = {examples}",
                got=available,
                cure=f"set examples to {available} or less",
            )
    sizes = [len(task.calibration) for task in tasks]
    return chosen_positions([task.name for task in tasks], sizes, examples, settings.seed)


def _to(inputs: Inputs, device: str) -> Inputs:
    return inputs.to(device) if isinstance(inputs, Tensor) else {key: value.to(device) for key, value in inputs.items()}


def evaluate(
    problem: Problem, coefficients: Tensor, batch: Sequence[Tensor], displacement: Displacement | None = None
) -> Pass:
    """Run one pass: losses and gradients of their mean or sum, at the merge of ``coefficients`` (+ ``displacement``).

    ``batch[t]`` indexes the examples of task t. The merged weights are made here, from what they derive from; all tasks
    of this process are back-propagated into them, ∇_θ L is contracted with the task vectors once, ∇_λ L =
    contract(∇_θ L), and what travels between processes is ∇_λ L and the losses.
    """
    shift = displacement or Displacement()
    at = coefficients.detach() if shift.coefficients is None else coefficients.detach() + shift.coefficients
    weights: dict[str, Tensor] = {}

    def local() -> Tensor:
        """Losses [T] and ∇_λ [T, L] of this process's tasks, as one row of numbers."""
        placed = at.to(problem.execution.device)
        theta = problem.combination.merged(problem.task_vectors, placed, problem.blocks, problem.theta)
        if shift.weights is not None:
            for name, value in shift.weights.items():
                theta[name].add_(value.to(theta[name].device))
        losses, gradient = _backward(problem, theta, batch)
        weights.update(gradient)
        slope = problem.combination.contract(problem.task_vectors, gradient, problem.blocks)
        return torch.cat([losses, slope.flatten()])

    processes = problem.execution.processes
    numbers = processes.total(local).to(at.device)
    return Pass(numbers[: len(batch)], numbers[len(batch) :].view_as(at), processes.sum_all(weights))


def _backward(problem: Problem, theta: dict[str, Tensor], batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [T] and ∇_θ of their mean or sum over all T tasks, of this process's tasks (zero for the others)."""
    leaf = {name: value.detach().requires_grad_() for name, value in theta.items()}
    losses = torch.zeros(len(batch), dtype=problem.task_vectors.dtype, device=problem.execution.device)
    count = len(batch) if problem.settings.reduction == "mean" else 1
    with problem.execution.passes():  # one context for the whole pass: weights are cast once, never kept for the next
        for task, (forward, inputs, index) in enumerate(zip(problem.forwards, problem.inputs, batch, strict=True)):
            if not problem.execution.processes.mine(task):
                continue
            scores = forward(leaf, take(inputs, index)).to(losses.dtype)
            loss = problem.objective(scores, problem.teacher_scores[task][index], problem.settings.temperature)
            (loss / count).backward()
            losses[task] = loss.detach()
    zero = {name: torch.zeros((), dtype=value.dtype, device=value.device) for name, value in theta.items()}
    return losses, {
        name: value.grad if value.grad is not None else zero[name].expand_as(value) for name, value in leaf.items()
    }

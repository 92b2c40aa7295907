"""What stays fixed while coefficients are learned, and one pass over it: losses and gradients at a displaced merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Blocks, Forward, Inputs, refuse, take
from merging.learned.settings import LearnedSettings
from merging.objectives import OBJECTIVES, Objective
from merging.params import partition
from merging.perturbations import PERTURBATIONS, Displacement, Pass, Perturbation
from merging.task import Task, score
from merging.task_vectors import TaskVectors, contract, merged


@dataclass(frozen=True)
class Problem:
    """Task vectors, blocks, and each task's inputs and teacher scores."""

    task_vectors: TaskVectors
    blocks: Blocks
    forwards: Sequence[Forward]
    inputs: Sequence[Inputs]
    teacher_scores: Sequence[Tensor]
    objective: Objective
    perturbation: Perturbation
    settings: LearnedSettings


def prepare(task_vectors: TaskVectors, tasks: Sequence[Task], settings: LearnedSettings) -> Problem:
    """Choose k calibration examples of each task and compute its expert's scores on them, once.

    Raises:
        InputError: tasks that are not those of the task vectors, in order, or fewer than k calibration examples.
    """
    if [task.name for task in tasks] != list(task_vectors.names):
        refuse(
            "tasks",
            expected=f"the task vectors' tasks {list(task_vectors.names)}",
            got=[task.name for task in tasks],
            cure="pass one task per expert, in the same order",
        )
    examples = settings.examples or min(len(task.calibration) for task in tasks)
    generator = torch.Generator().manual_seed(settings.seed)
    inputs, teacher_scores = [], []
    for index, task in enumerate(tasks):
        available = len(task.calibration)
        if available < examples:
            refuse(
                f"calibration examples of task {task.name!r}",
                expected=f"at least examples = {examples}",
                got=available,
                cure=f"set examples to {available} or less",
            )
        chosen = torch.randperm(available, generator=generator)[:examples]
        inputs.append(take(task.calibration.inputs, chosen))
        teacher_scores.append(score(task.forward, task_vectors.expert(index), inputs[-1]))
    return Problem(
        task_vectors,
        partition(task_vectors.base, settings.granularity),
        [task.forward for task in tasks],
        inputs,
        teacher_scores,
        OBJECTIVES[settings.objective],
        PERTURBATIONS[settings.perturbation],
        settings,
    )


def evaluate(
    problem: Problem, coefficients: Tensor, batch: Sequence[Tensor], displacement: Displacement | None = None
) -> Pass:
    """Run one pass: losses and the gradients of their mean, at the merge of ``coefficients`` (+ ``displacement``).

    ``batch[t]`` indexes the examples of task t. The merged weights are made here, from what they derive from; all tasks
    are back-propagated into them, and ∇_θ L is contracted with the task vectors once: ∇_λ L = contract(∇_θ L).
    """
    shift = displacement or Displacement()
    at = coefficients.detach() if shift.coefficients is None else coefficients.detach() + shift.coefficients
    theta = merged(problem.task_vectors, at, problem.blocks)
    if shift.weights is not None:
        theta = {name: value + shift.weights[name] for name, value in theta.items()}
    theta = {name: value.requires_grad_() for name, value in theta.items()}
    losses = []
    for forward, inputs, teacher, index in zip(
        problem.forwards, problem.inputs, problem.teacher_scores, batch, strict=True
    ):
        loss = problem.objective(forward(theta, take(inputs, index)), teacher[index], problem.settings.temperature)
        (loss / len(batch)).backward()
        losses.append(loss.detach())
    zero = {name: torch.zeros(()) for name in theta}
    weights = {
        name: value.grad if value.grad is not None else zero[name].expand_as(value) for name, value in theta.items()
    }
    return Pass(torch.stack(losses), contract(problem.task_vectors, weights, problem.blocks), weights)

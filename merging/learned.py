"""Coefficients learned from unlabelled examples: one loop, rows of objective x perturbation x granularity.

SAMerging (arXiv 2512.21288) is the row ``kl`` x a SAM perturbation. Each pass merges once, back-propagates every task
into the merged weights θ, and contracts ∇_θ L with the task vectors once: ∇_λ L = contract(∇_θ L). A SAM step is two
such passes on the same batches; the merged weights are recomputed at the perturbed point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from bounds.types import Blocks, Forward, Inputs, refuse, take
from merging.objectives import OBJECTIVES, Objective
from merging.params import Granularity, partition
from merging.perturbations import PERTURBATIONS, Displacement, Perturbation
from merging.task import Task, score
from merging.task_vectors import TaskVectors, contract, merged


@dataclass(frozen=True)
class LearnedSettings:
    """Settings of a merge whose coefficients are learned."""

    objective: str = "kl"
    """Row of merging.objectives.OBJECTIVES: kl."""
    perturbation: str = "coefficients"
    """Where SAM perturbs: none, coefficients, coefficients-adaptive or weights."""
    rho: float = 0.07
    """Radius ρ of the perturbation, in the norm of the space it acts in."""
    granularity: Granularity = "tensor"
    """One coefficient per task and ... task, block or tensor."""
    steps: int = 60
    """Optimiser steps."""
    batch: int = 8
    """Examples of each task in a step."""
    examples: int = 64
    """k: unlabelled calibration examples of each task."""
    learning_rate: float = 2e-2
    """Adam's learning rate on λ."""
    weight_decay: float = 0.0
    """Adam's L2 penalty on λ."""
    temperature: float = 1.0
    """Temperature u of the distillation: scores are divided by it on both sides."""
    init: float | None = None
    """Initial value of every coefficient; by default 1/T, plain averaging."""
    seed: int = 0
    """Seed of the choice of examples and of the batches."""

    def __post_init__(self) -> None:
        rows = (
            ("objective", OBJECTIVES),
            ("perturbation", PERTURBATIONS),
            ("granularity", get_args(Granularity)),
        )
        for name, table in rows:
            if getattr(self, name) not in table:
                refuse(name, expected=" or ".join(table), got=repr(getattr(self, name)), cure="choose one")
        for name in ("steps", "batch", "examples"):
            if getattr(self, name) < 1:
                refuse(name, expected="at least 1", got=getattr(self, name), cure="raise it")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                refuse(name, expected="a positive number", got=getattr(self, name), cure="raise it")
        for name in ("rho", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                refuse(name, expected="a number >= 0", got=getattr(self, name), cure="set it to 0 or more")
        if self.init is not None and not math.isfinite(self.init):
            refuse("init", expected="a finite number", got=self.init, cure="leave it out for 1/T")


@dataclass(frozen=True)
class Problem:
    """What stays fixed while λ is learned: task vectors, blocks, and each task's inputs and teacher scores."""

    task_vectors: TaskVectors
    blocks: Blocks
    forwards: Sequence[Forward]
    inputs: Sequence[Inputs]
    teacher_scores: Sequence[Tensor]
    objective: Objective
    perturbation: Perturbation | None
    settings: LearnedSettings


@dataclass
class State:
    """What changes: λ [T, L] inside Adam, the generator of the batches, and the history so far."""

    coefficients: Tensor
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "perturbation_norm": []})

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.history["loss"])


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
    generator = torch.Generator().manual_seed(settings.seed)
    inputs, teacher_scores = [], []
    for index, task in enumerate(tasks):
        available = len(task.calibration)
        if available < settings.examples:
            refuse(
                f"calibration examples of task {task.name!r}",
                expected=f"at least examples = {settings.examples}",
                got=available,
                cure=f"set examples to {available} or less",
            )
        chosen = torch.randperm(available, generator=generator)[: settings.examples]
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


def init(problem: Problem) -> State:
    """Return the state before the first step: every coefficient at ``settings.init``."""
    settings, tasks = problem.settings, len(problem.task_vectors)
    value = 1 / tasks if settings.init is None else settings.init
    dtype = next(iter(problem.task_vectors.stacked.values())).dtype
    coefficients = torch.full((tasks, len(problem.blocks)), value, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return State(coefficients, optimizer, torch.Generator().manual_seed(settings.seed + 1))


def gradient(
    problem: Problem, coefficients: Tensor, batch: Sequence[Tensor], displacement: Displacement | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each task [T] and ∇_θ of their mean, at the merge of ``coefficients`` (+ ``displacement``).

    ``batch[t]`` indexes the examples of task t. The merged weights are made here, from what they derive from.
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
    return torch.stack(losses), {
        name: value.grad if value.grad is not None else zero[name].expand_as(value) for name, value in theta.items()
    }


def update(problem: Problem, state: State) -> State:
    """Take one step of Adam on λ, at the perturbed point if there is a perturbation; returns the same state, advanced.

    Raises:
        InputError: a loss that is not finite, naming task and step.
    """
    size = problem.settings.examples
    batch = [torch.randperm(size, generator=state.generator)[: problem.settings.batch] for _ in problem.forwards]
    losses, theta_gradient = gradient(problem, state.coefficients, batch)
    if not bool(torch.isfinite(losses).all()):
        wrong = problem.task_vectors.names[int((~torch.isfinite(losses)).nonzero()[0])]
        refuse(
            f"loss of task {wrong!r} at step {state.step}",
            expected="a finite number",
            got=[float(x) for x in losses],
            cure="lower learning_rate or rho",
        )
    lambda_gradient = contract(problem.task_vectors, theta_gradient, problem.blocks)
    norm = 0.0
    if problem.perturbation is not None:
        shift = problem.perturbation(state.coefficients.detach(), lambda_gradient, theta_gradient, problem.settings.rho)
        norm = shift.norm
        _, theta_gradient = gradient(problem, state.coefficients, batch, shift)
        lambda_gradient = contract(problem.task_vectors, theta_gradient, problem.blocks)
    state.coefficients.grad = lambda_gradient.to(state.coefficients.dtype)
    state.optimizer.step()
    state.history["loss"].append(float(losses.mean()))
    state.history["perturbation_norm"].append(norm)
    return state

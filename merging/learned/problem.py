"""What stays fixed while coefficients are learned, and one pass over it: losses and gradients at a displaced merge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bounds.types import Blocks, Forward, Inputs, Params, refuse, take
from merging.draws import chosen_positions
from merging.execution import Execution
from merging.learned.combination import BY_BLOCK, BY_ENTRY, Combination
from merging.learned.objectives import OBJECTIVES, Objective
from merging.learned.perturbations import PERTURBATIONS, Displacement, Pass, Perturbation
from merging.learned.settings import PER_POSITION, LearnedSettings
from merging.learned.shards import Shard
from merging.learned.tokens import nothing, token_loss, weight
from merging.measured import Positions
from merging.params import partition
from merging.task import Task, check_tasks
from merging.task_vectors import TaskVectors
from merging.task_vectors.storage import on_disk

LARGE = 2**26
"""Bytes of one teacher's scores above which they are kept on the disk (memory-mapped)."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Task vectors, blocks, and each task's inputs and teacher scores (of the tasks that this process serves).

    ``teacher_scores[t]`` are [N, C]; of tasks with scores per position log-probabilities [N, L, k + 1] of the events of
    ``positions[t]``, which are empty for other tasks.
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
    positions: Sequence[Positions] = ()
    theta: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, task: int, scores: Tensor, index: Tensor, objective: Objective) -> Tensor:
        """Return the mean loss of a task's examples at ``index``: over examples, or over their counted positions."""
        teacher, temperature = self.teacher_scores[task][index], self.settings.temperature
        if not self.positions:
            return objective(scores, teacher, temperature)
        positions = self.positions[task].take(index).to(scores.device)
        return token_loss(scores, teacher.to(scores.device), positions, objective, temperature)

    def share(self, task: int, own: Tensor, index: Tensor) -> float:
        """Return the share that the examples ``own`` have of the mean over those at ``index``, of which they are."""
        if not self.positions:
            return len(own) / len(index)
        counted = self.positions[task].counted
        return float(weight(counted, own)) / float(weight(counted, index))

    @cached_property
    def shard(self) -> Shard | None:
        """Part of the weights that this process keeps to, if each keeps to one; of these task vectors and no others."""
        execution = self.execution
        return Shard(self.task_vectors, self.blocks, execution.processes) if execution.sharded else None


def prepare(
    task_vectors: TaskVectors, tasks: Sequence[Task], settings: LearnedSettings, execution: Execution | None = None
) -> Problem:
    """Choose k calibration examples of each task and compute its expert's scores on them, once.

    Experts are made one at a time; scores larger than ``LARGE`` go to a mapped file. In several processes each scores
    the experts of the tasks that it serves.

    Raises:
        InputError: tasks that are not those of the task vectors, in order, or fewer than k calibration examples.
    """
    check_tasks(task_vectors.names, tasks)
    _check_read(tasks, settings)
    execution = execution or Execution()
    chosen = _choose(tasks, settings)
    inputs: list[Inputs] = []
    teacher_scores: list[Tensor] = []
    positions: list[Positions] = []
    for index, (task, places) in enumerate(zip(tasks, chosen, strict=True)):
        if not execution.processes.serves(index, len(tasks)):
            inputs.append(torch.empty(len(places), 0))
            teacher_scores.append(torch.empty(len(places), 0))
            positions += [nothing()] * task.per_position
            continue
        inputs.append(_to(take(task.calibration.inputs, places), execution.device))
        expert = {name: value.to(execution.device) for name, value in task_vectors.expert(index).items()}
        with execution.passes():
            taught = task.taught(
                expert, inputs[-1], "calibration", top_k=settings.top_k, temperature=settings.temperature
            )
        teacher_scores.append(_kept(taught.scores.to(task_vectors.dtype), execution))
        if taught.positions is not None:
            classes = taught.positions.classes
            classes = None if classes is None else _kept(classes, execution)
            positions.append(Positions(taught.positions.counted, classes))
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
        positions=positions,
    )


def _check_read(tasks: Sequence[Task], settings: LearnedSettings) -> None:
    """Refuse a setting that no task reads.

    Raises:
        InputError: one of PER_POSITION, and no task has scores per position.
    """
    usual = LearnedSettings()
    for name in PER_POSITION:
        given = getattr(settings, name)
        if given != getattr(usual, name) and not any(task.per_position for task in tasks):
            expected = "tasks with scores at every position, which alone read it"
            refuse(name, expected=expected, got=f"{given} with one row of scores for an example", cure="leave it out")


def _kept(tensor: Tensor, execution: Execution) -> Tensor:
    return on_disk(tensor, _folder(execution)) if tensor.nbytes > LARGE else tensor


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
    problem: Problem,
    coefficients: Tensor,
    batch: Sequence[Tensor],
    displacement: Displacement | None = None,
    objective: Objective | None = None,
) -> Pass:
    """Run one pass: losses and gradients of their mean or sum, at the merge of ``coefficients`` (+ ``displacement``).

    ``batch[t]`` indexes the examples of task t, the same in every process; ``objective`` replaces the problem's. The
    merged weights are made here, from what they derive from; all examples of this process are back-propagated into
    them, each task's loss weighted by its share of the mean; ∇_θ L is contracted with the task vectors once, ∇_λ L =
    contract(∇_θ L), and what travels between processes is ∇_λ L and the losses, or also θ and ∇_θ L where each keeps to
    its part of them.
    """
    shift = displacement or Displacement()
    at = coefficients.detach() if shift.coefficients is None else coefficients.detach() + shift.coefficients
    run = _whole if problem.shard is None else _in_parts
    numbers, weights = run(problem, at, shift, batch, objective or problem.objective)
    return Pass(numbers[: len(batch)], numbers[len(batch) :].view_as(at), weights)


def _whole(
    problem: Problem, at: Tensor, shift: Displacement, batch: Sequence[Tensor], objective: Objective
) -> tuple[Tensor, Params]:
    """Losses [T] and ∇_λ [T, L] of all processes, as one row of numbers, and ∇_θ: each merges all of θ."""
    weights: dict[str, Tensor] = {}

    def local() -> Tensor:
        placed = at.to(problem.execution.device)
        theta = problem.combination.merged(problem.task_vectors, placed, problem.blocks, problem.theta)
        losses, gradient = _backward(problem, _displaced(theta, shift), batch, objective)
        weights.update(gradient)
        slope = problem.combination.contract(problem.task_vectors, gradient, problem.blocks)
        return torch.cat([losses, slope.flatten()])

    processes = problem.execution.processes
    return processes.total(local).to(at.device), processes.sum_all(weights)


def _in_parts(
    problem: Problem, at: Tensor, shift: Displacement, batch: Sequence[Tensor], objective: Objective
) -> tuple[Tensor, Params]:
    """As :func:`_whole`, but each process merges and contracts its part of θ: the parts are gathered, ∇_θ scattered."""
    shard, device, found = problem.shard, problem.execution.device, list[Tensor]()
    assert shard is not None
    whole = shard.merged(at)

    def local() -> Params:
        theta = {name: value.to(device) for name, value in whole.items()}
        losses, gradient = _backward(problem, _displaced(theta, shift), batch, objective)
        found.append(losses.cpu())
        return gradient

    part = shard.summed(local)
    numbers = problem.execution.processes.total(lambda: torch.cat([*found, shard.contracted(part).flatten()]))
    return numbers.to(at.device), shard.gathered(part)


def _displaced(theta: dict[str, Tensor], shift: Displacement) -> dict[str, Tensor]:
    """Add a displacement of θ to merged weights, in place."""
    for name, value in (shift.weights or {}).items():
        theta[name].add_(value.to(theta[name].device))
    return theta


def _backward(
    problem: Problem, theta: dict[str, Tensor], batch: Sequence[Tensor], objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses [T] and ∇_θ of their mean or sum over all T tasks: what this process's examples add to them."""
    leaf = {name: value.detach().requires_grad_() for name, value in theta.items()}
    losses = torch.zeros(len(batch), dtype=problem.task_vectors.dtype, device=problem.execution.device)
    count = len(batch) if problem.settings.reduction == "mean" else 1
    with problem.execution.passes():  # one context for the whole pass: weights are cast once, never kept for the next
        for task, (forward, inputs, index) in enumerate(zip(problem.forwards, problem.inputs, batch, strict=True)):
            own = index[problem.execution.processes.share(task, len(batch), len(index))]
            if not len(own):
                continue
            scores = forward(leaf, take(inputs, own)).to(losses.dtype)
            loss = problem.loss(task, scores, own, objective) * problem.share(task, own, index)
            (loss / count).backward()
            losses[task] = loss.detach()
    zero = {name: torch.zeros((), dtype=value.dtype, device=value.device) for name, value in theta.items()}
    return losses, {
        name: value.grad if value.grad is not None else zero[name].expand_as(value) for name, value in leaf.items()
    }

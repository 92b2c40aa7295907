"""The loop over steps: init, update, and learning from the first to the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.types import refuse
from merging.draws import task_generators
from merging.learned.objectives import Objective
from merging.learned.optimizers import OPTIMIZERS, SCHEDULES, remember
from merging.learned.perturbations import Displacement, Pass, Step
from merging.learned.problem import Problem, evaluate

HISTORY = ("loss", "perturbation_norm", "passes", "bytes_sent")


@dataclass(kw_only=True)
class State:
    """What changes: λ [T, L] inside its optimiser, generator of noise, the row's memory, history.

    The history has one number per step: ``loss`` (mean over tasks, at λ), ``perturbation_norm``, ``passes`` (examples
    that went forward and backward since the first step) and ``bytes_sent`` (to other processes in the step).
    """

    coefficients: Tensor
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    memory: dict[str, Tensor] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORY})

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return len(self.history["loss"])


def first(problem: Problem) -> float:
    """Value of every coefficient before the first step: ``settings.init``, by default 1/T."""
    return 1 / len(problem.task_vectors) if problem.settings.init is None else problem.settings.init


def init(problem: Problem) -> State:
    """Return the state before the first step."""
    settings, vectors = problem.settings, problem.task_vectors
    shape = len(vectors), problem.combination.count(vectors, problem.blocks)
    coefficients = torch.full(shape, first(problem), dtype=vectors.dtype, requires_grad=True)
    optimizer = OPTIMIZERS[settings.optimizer](coefficients, settings.learning_rate, settings.weight_decay)
    return State(
        coefficients=coefficients, optimizer=optimizer, generator=torch.Generator().manual_seed(settings.seed + 1)
    )


def update(problem: Problem, state: State) -> State:
    """Take one step of the optimiser along the gradient the perturbation's row gives; returns the same state, advanced.

    Raises:
        InputError: a loss that is not finite, naming task and step.
    """
    settings, batch, processes = problem.settings, _batch(problem, state), problem.execution.processes
    passes, sent = state.history["passes"][-1] if state.step else 0, processes.bytes_sent

    def at(displacement: Displacement | None = None, objective: Objective | None = None) -> Pass:
        nonlocal passes
        result = evaluate(problem, state.coefficients, batch, displacement, objective)
        _check_losses(problem, state.step, result.losses)
        passes += sum(len(index) for index in batch)
        return result

    step = Step(
        at=at,
        coefficients=state.coefficients.detach(),
        rho=settings.rho,
        penalty=settings.penalty,
        every=settings.every,
        base=problem.task_vectors.base,
        blocks=problem.blocks,
        generators=_generators(problem, state, "noise"),
        generator=state.generator,
        memory=state.memory,
    )
    descent = problem.perturbation.descend(step)
    state.coefficients.grad = descent.gradient.to(state.coefficients.dtype)
    for group in state.optimizer.param_groups:  # from the step alone: a resumed run needs no memory of it
        group["lr"] = settings.learning_rate * SCHEDULES[settings.schedule](state.step, settings.steps)
    state.optimizer.step()
    if settings.clamp:
        with torch.no_grad():
            state.coefficients.clamp_(0, 1)
    state.history["loss"].append(float(descent.losses.mean()))
    state.history["perturbation_norm"].append(descent.norm)
    state.history["passes"].append(passes)
    state.history["bytes_sent"].append(processes.bytes_sent - sent)
    average, decay = settings.average, settings.average_decay
    remember(average, state.memory, state.coefficients, state.step, settings.steps, decay)
    return state


def learned(state: State) -> Tensor:
    """Return the λ [T, L] to merge with: the average over the steps if one is kept, else the last."""
    return state.memory.get("average", state.coefficients.detach())


def _batch(problem: Problem, state: State) -> list[Tensor]:
    """Return indices into each task's examples: drawn anew, or those of the next of ``cached`` batches."""
    settings, sizes = problem.settings, [len(teacher) for teacher in problem.teacher_scores]
    if not settings.cached:
        own = _generators(problem, state)
        return [torch.randperm(size, generator=g)[: settings.batch] for size, g in zip(sizes, own, strict=True)]
    start = state.step % settings.cached * settings.batch
    return [torch.arange(start, start + settings.batch) % size for size in sizes]


def _generators(problem: Problem, state: State, *use: str) -> list[torch.Generator]:
    """One generator per task for this step and one use.

    A draw depends on the seed, the task's name, the step and the use alone: neither the order of the tasks nor a
    checkpoint's place matters.
    """
    names = [", ".join((name, f"step {state.step}", *use)) for name in problem.task_vectors.names]
    return task_generators(names, problem.settings.seed + 1)


def _check_losses(problem: Problem, step: int, losses: Tensor) -> None:
    finite: Sequence[bool] = torch.isfinite(losses).tolist()
    if not all(finite):
        refuse(
            f"loss of task {problem.task_vectors.names[finite.index(False)]!r} at step {step}",
            expected="a finite number",
            got=[float(x) for x in losses],
            cure="lower learning_rate or rho",
        )

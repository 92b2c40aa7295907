"""The loop over steps: init, update, and learning from the first to the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.types import refuse
from merging.learned.problem import Problem, evaluate
from merging.perturbations import Displacement, Pass

HISTORY = ("loss", "perturbation_norm", "passes", "bytes_sent")


@dataclass
class State:
    """What changes: λ [T, L] inside Adam, the generator of the batches, the perturbation's memory, the history.

    The history has one number per step: ``loss`` (mean over tasks, at λ), ``perturbation_norm``, and ``passes``, the
    examples that went forward and backward since the first step, and ``bytes_sent`` to other processes in the step.
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


def init(problem: Problem) -> State:
    """Return the state before the first step: every coefficient at ``settings.init``."""
    settings, tasks = problem.settings, len(problem.task_vectors)
    value = 1 / tasks if settings.init is None else settings.init
    shape, dtype = (tasks, len(problem.blocks)), problem.task_vectors.dtype
    coefficients = torch.full(shape, value, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([coefficients], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return State(coefficients, optimizer, torch.Generator().manual_seed(settings.seed + 1))


def update(problem: Problem, state: State) -> State:
    """Take one step of Adam on λ along the gradient the perturbation's row gives; returns the same state, advanced.

    Raises:
        InputError: a loss that is not finite, naming task and step.
    """
    size = problem.settings.examples
    batch = [torch.randperm(size, generator=state.generator)[: problem.settings.batch] for _ in problem.forwards]

    processes = problem.execution.processes
    passes, sent = state.history["passes"][-1] if state.step else 0, processes.bytes_sent

    def at(displacement: Displacement | None = None) -> Pass:
        nonlocal passes
        result = evaluate(problem, state.coefficients, batch, displacement)
        _check_losses(problem, state.step, result.losses)
        passes += sum(len(index) for index in batch)
        return result

    descent = problem.perturbation.descend(at, state.coefficients.detach(), problem.settings.rho, state.memory)
    state.coefficients.grad = descent.gradient.to(state.coefficients.dtype)
    state.optimizer.step()
    state.history["loss"].append(float(descent.losses.mean()))
    state.history["perturbation_norm"].append(descent.norm)
    state.history["passes"].append(passes)
    state.history["bytes_sent"].append(processes.bytes_sent - sent)
    return state


def _check_losses(problem: Problem, step: int, losses: Tensor) -> None:
    finite: Sequence[bool] = torch.isfinite(losses).tolist()
    if not all(finite):
        refuse(
            f"loss of task {problem.task_vectors.names[finite.index(False)]!r} at step {step}",
            expected="a finite number",
            got=[float(x) for x in losses],
            cure="lower learning_rate or rho",
        )

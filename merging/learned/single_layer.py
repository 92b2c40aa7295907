"""The SyMerge-like row: coefficients everywhere, and the weights of one layer, learned together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bounds.types import refuse
from merging.execution import Execution
from merging.learned.checkpoint import learn
from merging.learned.loop import learned
from merging.learned.objectives import Objective
from merging.learned.optimizers import adam_step
from merging.learned.perturbations import Descent, Displacement, Pass, Perturbation, Step
from merging.learned.problem import prepare
from merging.learned.settings_rows import SingleLayerSettings
from merging.params import partition
from merging.rows import Merge, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged


def adapting(inner: Perturbation, names: Sequence[str], learning_rate: float) -> Perturbation:
    """Return ``inner`` with every pass at θ_λ + δ, and a step of Adam on δ (on the tensors ``names``) after it.

    δ and Adam's moments live in the memory of the steps (keys ``layer.NAME...``), so that they are saved with it. δ
    descends ∇_θ of the last pass that ``inner`` takes of the objective itself (for SAM rows: at the perturbed point).
    """

    def descend(step: Step) -> Descent:
        delta = {name: step.memory.get(f"layer.{name}", _zeros(step.base[name])) for name in names}
        last: list[Pass] = []

        def at(displacement: Displacement | None = None, objective: Objective | None = None) -> Pass:
            shift = displacement or Displacement()
            weights = dict(shift.weights or {})
            for name, value in delta.items():
                weights[name] = value + weights[name].to(value.device) if name in weights else value
            found = step.at(replace(shift, weights=weights), objective)
            if objective is None:
                last[:] = [found]
            return found

        descent = inner.descend(replace(step, at=at))
        for name in names:
            gradient = last[0].weights[name].to(delta[name])
            moved = adam_step(step.memory, f"layer.{name}", gradient, learning_rate)
            step.memory[f"layer.{name}"] = delta[name] + moved
        return descent

    return replace(inner, descend=descend)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def symerge(
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: SingleLayerSettings,
    progress: Progress,
    execution: Execution,
) -> Merge:
    """Learn λ and, on one layer shared by all tasks, free weights δ: θ = θ_0 + Σ_t λ_t τ_t + δ, hard expert labels.

    SyMerge-like, not SyMerge (Jung et al., arXiv 2412.19098): the paper adapts one layer per task (its head); here
    heads are frozen and the merge is one network, so the layer is one of it and shared. Common with the paper: one
    layer's weights and all coefficients adapt jointly, on the experts' own predictions as labels.

    Raises:
        InputError: a layer that is not a block of the model.
    """
    blocks = partition(task_vectors.base, "block")
    layer = next(reversed(list(blocks))) if settings.layer is None else settings.layer
    if layer not in blocks:
        refuse("layer", expected=" or ".join(blocks), got=repr(layer), cure="choose one")
    problem = prepare(task_vectors, tasks, settings, execution)
    problem = replace(problem, perturbation=adapting(problem.perturbation, blocks[layer], settings.layer_learning_rate))
    state = learn(problem, progress, f"learning coefficients and {layer}")
    params = merged(task_vectors, learned(state), problem.blocks)
    for name in blocks[layer]:
        params[name] = params[name] + state.memory[f"layer.{name}"]
    return Merge(params=params, coefficients=None, blocks=None, history=state.history)

"""AdaRank: which singular components of each task vector are merged is learned, together with the coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from merging.closed_form.tensors import as_matrices
from merging.execution import Execution
from merging.learned.checkpoint import learn
from merging.learned.loop import learned
from merging.learned.objectives import Objective
from merging.learned.optimizers import adam_step
from merging.learned.perturbations import Descent, Displacement, Pass, Perturbation, Step
from merging.learned.problem import prepare
from merging.learned.settings_rows import RankSettings
from merging.params import partition
from merging.rows import Merge, Progress
from merging.task import Task
from merging.task_vectors import TaskVectors, merged

START, TEMPERATURE = 0.1, 10.0
"""A mask's number starts at ± START; its component is in where sigmoid(number/TEMPERATURE) > 1/2 (as released)."""


@dataclass(frozen=True)
class Components:
    """Singular triplets of the task vectors of one matrix: u [T, m, k], sigma [T, k] descending, vt [T, k, n].

    k is the largest numerical rank of the T task vectors: what is left out is 0.
    """

    u: Tensor
    sigma: Tensor
    vt: Tensor

    @staticmethod
    def of(deltas: Tensor) -> Components:
        """Decompose τ [T, m, n]."""
        u, sigma, vt = torch.linalg.svd(deltas, full_matrices=False)
        least = max(deltas.shape[1:]) * torch.finfo(deltas.dtype).eps * sigma[:, :1]
        count = int((sigma > least).sum(dim=1).max())
        return Components(u[:, :, :count], sigma[:, :count], vt[:, :count])

    def of_selected(self, selected: Tensor) -> Tensor:
        """Return Σ_r b_r σ_r u_r v_rᵀ [T, m, n] of the components that are in, b [T, k]."""
        return (self.u * (selected * self.sigma)[:, None, :]) @ self.vt

    def slopes(self, gradient: Tensor) -> Tensor:
        """Return σ_r u_rᵀ G v_r [T, k]: the slopes, in the components of τ_t, of a function of gradient G [m, n]."""
        return self.sigma * ((self.u.mT @ gradient) * self.vt).sum(dim=2)


class SelectedVectors:
    """Task vectors of which each matrix holds the selected singular components only; all other tensors are whole.

    ``vectors`` are the task vectors, in memory: :meth:`select` writes anew those matrices whose selection has changed.
    Every map of task vectors (merge, contraction) is then that of the selected ones, to the bit.
    """

    def __init__(self, whole: TaskVectors) -> None:
        stacked = {name: value.to(whole.dtype, copy=True) for name, value in whole.stacked.items()}
        self.vectors = TaskVectors.from_stacked(whole.base, stacked, whole.names)
        self.components = {name: Components.of(as_matrices(value)) for name, value in stacked.items() if value.ndim > 2}
        self.selected = {name: torch.ones_like(part.sigma, dtype=torch.bool) for name, part in self.components.items()}

    def start(self, kept: float) -> dict[str, Tensor]:
        """Return the masks' numbers [T, k] before the first step: the first ``kept`` · min(m, n) components are in."""
        masks = {}
        for name, part in self.components.items():
            count = int(kept * min(part.u.shape[1], part.vt.shape[2]))
            masks[name] = torch.full_like(part.sigma, START)
            masks[name][:, count:] = -START
        return masks

    def select(self, masks: Mapping[str, Tensor]) -> None:
        """Let those components in whose number is above the threshold, 0."""
        for name, mask in masks.items():
            selected = mask > 0
            if not torch.equal(selected, self.selected[name]):
                value = self.vectors.stacked[name]
                value.copy_(self.components[name].of_selected(selected).view_as(value))
                self.selected[name] = selected

    @property
    def share(self) -> float:
        """Share of the components that are in, over all matrices and tasks."""
        counts = [(int(mask.sum()), mask.numel()) for mask in self.selected.values()]
        return sum(count for count, _ in counts) / max(1, sum(size for _, size in counts))


Masks = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""A row's memory -> the masks' numbers of every matrix, name -> [T, k]: those kept there, or those of the start."""


def masking(
    inner: Perturbation, selected: SelectedVectors, masks: Masks, columns: Mapping[str, int], learning_rate: float
) -> Perturbation:
    """Return ``inner`` with every pass at the selected components, and a step of Adam on the masks' numbers after it.

    A component is in or out (b = 0 or 1); the slope of its number x is that of a soft mask sigmoid(x/TEMPERATURE), as
    if b were it (straight-through): ∂L/∂x_r = λ_t σ_r ⟨∇_θ L, u_r v_rᵀ⟩ sigmoid'(x_r/TEMPERATURE)/TEMPERATURE. It
    follows the last pass that ``inner`` takes of the objective itself. Numbers and Adam's moments live in the memory of
    the steps (keys ``mask.NAME...``), so that they are saved with it. Source: AdaRank, arXiv 2503.22178.

    Args:
        inner: a row of the table of perturbations.
        selected: the task vectors that the passes merge.
        masks: where the numbers are found.
        columns: tensor -> column of λ.
        learning_rate: Adam's.
    """

    def descend(step: Step) -> Descent:
        numbers = masks(step.memory)
        selected.select(numbers)
        last: list[tuple[Pass, Tensor]] = []

        def at(displacement: Displacement | None = None, objective: Objective | None = None) -> Pass:
            found = step.at(displacement, objective)
            shift = None if displacement is None else displacement.coefficients
            if objective is None:
                last[:] = [(found, step.coefficients if shift is None else step.coefficients + shift)]
            return found

        descent = inner.descend(replace(step, at=at))
        found, lam = last[0]
        for name, part in selected.components.items():
            gradient = found.weights[name].to(part.sigma).flatten(start_dim=1)
            soft = torch.sigmoid(numbers[name] / TEMPERATURE)
            slope = lam[:, columns[name], None] * part.slopes(gradient) * soft * (1 - soft) / TEMPERATURE
            moved = adam_step(step.memory, f"mask.{name}", slope, learning_rate)
            step.memory[f"mask.{name}"] = numbers[name] + moved
        return descent

    return replace(inner, descend=descend)


def adarank(
    task_vectors: TaskVectors,
    tasks: Sequence[Task],
    settings: RankSettings,
    progress: Progress,
    execution: Execution,
) -> Merge:
    """Learn λ, and which singular components of every matrix of every task are in, on the entropy of the merge.

    θ = θ_0 + Σ_t λ_t Σ_r b_tr σ_tr u_tr v_trᵀ; with ``centred`` the average of the experts is in the place of θ_0, and
    what each differs from it is decomposed. λ belongs to the components that are in, so that the merge carries none.
    """
    problem = prepare(task_vectors, tasks, settings, execution)
    selected = SelectedVectors(centred(task_vectors) if settings.centred else task_vectors)
    start, blocks = selected.start(settings.kept), partition(task_vectors.base, settings.granularity)
    columns = {name: column for column, names in enumerate(blocks.values()) for name in names}

    def masks(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: memory.get(f"mask.{name}", value) for name, value in start.items()}

    perturbation = masking(problem.perturbation, selected, masks, columns, settings.mask_learning_rate)
    state = learn(
        replace(problem, task_vectors=selected.vectors, perturbation=perturbation),
        progress,
        "learning coefficients and ranks",
    )
    selected.select(masks(state.memory))
    return Merge(
        params=merged(selected.vectors, learned(state), blocks),
        history={**state.history, "kept_components": [selected.share]},
    )


def centred(task_vectors: TaskVectors) -> TaskVectors:
    """Return the same experts seen from their average: θ_0 + mean τ, and τ_t - mean τ. Exact up to rounding."""
    stacked = {name: value.to(task_vectors.dtype) for name, value in task_vectors.stacked.items()}
    means = {name: value.mean(dim=0) for name, value in stacked.items()}
    return TaskVectors.from_stacked(
        {name: value + means[name] for name, value in task_vectors.base.items()},
        {name: value - means[name] for name, value in stacked.items()},
        task_vectors.names,
    )

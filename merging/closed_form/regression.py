"""Merges with statistics of unlabelled calibration examples: Fisher, RegMean, RegMean++."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds.types import Sample, refuse
from merging.closed_form.scale import SUM_GRID, check_at_least, check_share, direction, scaled
from merging.closed_form.statistics import CalibrationSettings, calibration, diagonal_fisher, input_products, uses
from merging.draws import task_generators
from merging.params import combine, norm
from merging.rows import CALIBRATION, Merge, Method, Progress
from merging.task import Task, check_one_row, check_unmasked
from merging.task_vectors import TaskVectors


@dataclass(frozen=True)
class FisherSettings(CalibrationSettings):
    """Settings of Fisher merging."""

    normalize: bool = True
    """Divide each task's Fisher information by its norm, so that a confident expert is not ignored."""
    floor: float = 1e-6
    """Least Fisher information of an entry: where no expert is sensitive, the merge is the average."""
    labels: Literal["expected", "sampled"] = "expected"
    """Labels of the Fisher information: its expectation over the expert's own labels, exactly, or one label drawn for
    each example, C times cheaper (drawn from the seed and the task's name)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in ("expected", "sampled"):
            refuse("labels", expected="expected or sampled", got=repr(self.labels), cure="choose one")
        check_at_least("floor", self.floor, 1e-30)


@dataclass(frozen=True)
class RegressionSettings(CalibrationSettings):
    """Settings of RegMean and RegMean++."""

    off_diagonal: float = 0.9
    """Factor of the off-diagonal entries of XᵀX, α of the paper."""
    ridge: float = 1e-6
    """Share of the mean of XᵀX's diagonal added to it: along directions without inputs, τ is a weighted mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("off_diagonal", self.off_diagonal, zero=True)
        check_at_least("ridge", self.ridge, 1e-12)


def _fisher(tv: TaskVectors, tasks: Sequence[Task], settings: FisherSettings, progress: Progress) -> Merge:
    """θ = Σ_t F_t θ_t / Σ_t F_t, entry by entry; one task's F at a time."""
    if settings.labels == "expected":
        check_one_row(
            tasks, "labels=expected of Fisher merging", "take labels=sampled: one label drawn at each position"
        )
    inputs = calibration(tv, tasks, settings)
    drawing = [None] * len(tv) if settings.labels == "expected" else task_generators(tv.names, settings.seed + 1)
    above = {name: torch.zeros_like(value, dtype=tv.dtype) for name, value in tv.base.items()}
    below = {name: torch.zeros_like(value) for name, value in above.items()}
    for index in progress(range(len(tv)), "Fisher information"):
        task, counted = tasks[index], tasks[index].counted(Sample(inputs[index]))
        whole = diagonal_fisher(task.forward, tv.expert(index), inputs[index], drawing[index], counted)
        fisher = {name: whole[name] for name in above}
        size = norm(fisher) if settings.normalize else 1.0
        for name in above:
            weight = (fisher[name] / (size or 1.0)).clamp(min=settings.floor)
            above[name] += weight * tv.deltas[index][name]
            below[name] += weight
    vector = {name: above[name] / below[name] for name in above}
    return scaled(tv, vector, tasks, 1.0, SUM_GRID, progress)


TINY = 1e-30
"""Added to every diagonal: a weight whose inputs are all 0 is averaged."""


class NormalEquations:
    """min_W Σ_t ‖X_t W - X_t W_t‖² for one weight, added up task by task: (Σ_t G_t) τ = Σ_t G_t τ_t, G_t = X_tᵀX_t."""

    def __init__(self, settings: RegressionSettings) -> None:
        self.settings = settings
        self.left: Tensor | float = 0.0
        self.right: Tensor | float = 0.0
        self.axis = 0

    def add(self, axis: int, product: Tensor, delta: Tensor) -> None:
        """Add a task: the axis of W its inputs run over, mean x xᵀ [n, n], τ_t."""
        alpha, diagonal, self.axis = self.settings.off_diagonal, product.diagonal().double(), axis
        ridge = self.settings.ridge * diagonal.mean() + TINY
        weight = alpha * product.double() + torch.diag((1 - alpha) * diagonal + ridge)
        self.left = self.left + weight
        self.right = self.right + weight @ self._oriented(delta).double()

    def solve(self) -> Tensor:
        """Return τ, in float64."""
        assert isinstance(self.left, Tensor)
        assert isinstance(self.right, Tensor)
        return self._oriented(torch.linalg.solve(self.left, self.right))

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight if self.axis == 0 else weight.T


def _regmean(tv: TaskVectors, tasks: Sequence[Task], settings: RegressionSettings, progress: Progress) -> Merge:
    """Each linear weight is the least-squares fit to the experts' outputs on their own inputs; the rest is averaged."""
    check_unmasked(tasks, "method regmean")
    inputs, equations = calibration(tv, tasks, settings), {}
    for index in progress(range(len(tv)), "inputs of linear weights"):
        size = tasks[index].batch_size(inputs[index])
        products = input_products(tasks[index].forward, tv.expert(index), inputs[index], batch_size=size)
        for name in [name for name in products if name in tv.base]:
            axis, product = products[name]
            equation = equations.setdefault(name, NormalEquations(settings))
            equation.add(axis, product, tv.deltas[index][name])
    solved = {name: equation.solve() for name, equation in equations.items()}
    vector = direction(tv, lambda name, deltas: solved[name].to(deltas.dtype) if name in solved else deltas.mean(dim=0))
    return _with_count(scaled(tv, vector, tasks, 1.0, SUM_GRID, progress), solved)


def _regmean_plus_plus(
    tv: TaskVectors, tasks: Sequence[Task], settings: RegressionSettings, progress: Progress
) -> Merge:
    """RegMean in the order of use, each weight on the inputs that the merge of all weights before it gives.

    Weight by weight; the paper goes layer by layer. A pass ends at the weight it is for, unless that is used again.
    """
    check_unmasked(tasks, "method regmean_plus_plus")
    inputs = calibration(tv, tasks, settings)
    sizes = [task.batch_size(given) for task, given in zip(tasks, inputs, strict=True)]
    vector = direction(tv, lambda _, deltas: deltas.mean(dim=0))
    merged = combine(tv.base, vector, 1.0)
    often = [uses(task.forward, merged, inputs[index], sizes[index]) for index, task in enumerate(tasks)]
    order = list(input_products(tasks[0].forward, merged, inputs[0], batch_size=sizes[0]))
    for position in progress(range(len(order)), "linear weights"):
        name, equation = order[position], NormalEquations(settings)
        for index, task in enumerate(tasks):
            only = name if often[index].get(name) == 1 else None
            axis, product = input_products(task.forward, merged, inputs[index], only, sizes[index])[name]
            equation.add(axis, product, tv.deltas[index][name])
        vector[name] = equation.solve().to(vector[name].dtype)
        merged[name] = tv.base[name] + vector[name]
    return _with_count(Merge(params=merged), order)


def _with_count(merge: Merge, weights: Iterable[str]) -> Merge:
    return Merge(params=merge.params, history={"linear_weights": [float(len(list(weights)))]})


ROWS: Mapping[str, Method] = {
    "fisher": Method(
        build=_fisher,
        settings=FisherSettings,
        paper="Matena and Raffel 2022, arXiv 2111.09832",
        needs=CALIBRATION,
        cost="k examples x C classes backward passes per task; k with labels=sampled",
    ),
    "regmean": Method(
        build=_regmean,
        settings=RegressionSettings,
        paper="RegMean, Jin et al. 2023, arXiv 2212.09849",
        needs=CALIBRATION,
        cost="k forward passes per task, one linear solve per linear weight",
    ),
    "regmean_plus_plus": Method(
        build=_regmean_plus_plus,
        settings=RegressionSettings,
        paper="RegMean++, Nguyen et al. 2025, arXiv 2508.03121",
        needs=CALIBRATION,
        cost="k forward passes per task and linear weight, as far as the weight; one linear solve each",
    ),
}

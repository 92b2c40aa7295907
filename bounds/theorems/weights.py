"""The weights alpha and beta of a bound, and quantities that are linear in them (docs/theory.md sections 1 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from bounds.pac_bayes.posterior import dependent_sum
from bounds.types import Estimate, refuse, weighted_sum
from bounds.validation import check_weights


@dataclass(frozen=True)
class Weights:
    """``alpha`` [T] weighs the tasks in the evaluation, ``beta`` [T] the experts in the merge.

    Any sequence may be given; it is kept as a tuple of floats.

    Raises:
        InputError: no task, different numbers of weights, negative ones, or ones that do not sum to 1.
    """

    alpha: Sequence[float]
    beta: Sequence[float]

    def __post_init__(self) -> None:
        tasks = len(self.alpha)
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, check_weights(getattr(self, name), tasks, name))

    def __len__(self) -> int:
        return len(self.alpha)


def check_tasks(count: int, tasks: int, what: str) -> None:
    """Refuse anything but one entry per task.

    Raises:
        InputError: ``count`` is not ``tasks``.
    """
    if count != tasks:
        refuse(what, expected=f"{tasks}, one per task", got=count, cure="use the same tasks everywhere")


@dataclass(frozen=True)
class PerExpert:
    """A mean over examples that is linear in alpha and beta, such as the consensus gap.

    ``values[i]`` [N_i, T]: task i's examples, one column per expert; or [N_i] where only the average over the experts
    was measured, at the weights it will be used with: then its values at the vertices are not known. The value at any
    weights and the parts of single experts come from the same numbers, and so cannot contradict each other.
    """

    values: tuple[Tensor, ...]

    def averaged(self, beta: Sequence[float]) -> tuple[Tensor, ...]:
        """Return the beta-average of every example, [N_i] per task."""
        along = torch.tensor(beta, dtype=torch.float64)
        return tuple(v if v.ndim == 1 else v @ along for v in self.values)

    def at(self, weights: Weights) -> Estimate:
        """Return the value at alpha and beta; its standard error knows that the experts share the examples."""
        check_tasks(len(self.values), len(weights), "tasks measured")
        return average(self.averaged(weights.beta), weights.alpha)

    def parts(self, weights: Weights) -> tuple[Estimate, ...]:
        """Return the values at alpha and beta = e_j, or () where only the average was measured."""
        if any(v.ndim == 1 for v in self.values):
            return ()
        return tuple(average([v[:, j] for v in self.values], weights.alpha) for j in range(len(weights)))


def average(values: Sequence[Tensor], alpha: Sequence[float]) -> Estimate:
    """Return sum_i alpha_i (mean over task i's examples); errors of the tasks are independent."""
    return weighted_sum([Estimate.of_mean(v) for v in values], alpha)


Linear: TypeAlias = Estimate | Sequence[Estimate] | PerExpert
"""Linear in beta: its value alone, one value per expert, or what was measured on examples."""


def at(source: Linear, weights: Weights, what: str) -> tuple[Estimate, tuple[Estimate, ...]]:
    """Return the value at ``weights``, and the values at beta = e_j where they are known (else ()).

    Estimates per expert are taken to share their examples: their standard errors add (an upper limit).

    Raises:
        InputError: not one entry per task.
    """
    if isinstance(source, Estimate):
        return source, ()
    if isinstance(source, PerExpert):
        return source.at(weights), source.parts(weights)
    check_tasks(len(source), len(weights), what)
    return dependent_sum(source, weights.beta), tuple(source)

"""Where the risk of a merge comes from, each part certified with its sign (docs/theory.md (18))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.certificates.constants import choose_constants
from bounds.certificates.evalue import BoundedSample
from bounds.certificates.means import weighted_mean
from bounds.types import Bound, refuse
from bounds.validation import check_count, check_delta, check_finite, check_positive, check_weights

PARTS = 3
"""Own risk, heterogeneity and effect of merging share delta; the total is a statement of its own."""
TINY = 1e-12
"""A range is at least so wide, also where a task has no say in the heterogeneity."""


@dataclass(frozen=True, kw_only=True)
class TaskLosses:
    """Losses in [0, largest] on the same examples of one task: of the merge [n], and of every expert [n, T].

    Expert j is run with this task's head. 0-1 losses have largest 1; smoothed cross-entropy has ln(C/eps).

    Raises:
        InputError: shapes that do not fit, losses out of range or not finite, largest not positive.
    """

    merged: Tensor
    experts: Tensor
    largest: float

    def __post_init__(self) -> None:
        check_positive(self.largest, "largest loss")
        if self.merged.ndim != 1 or self.experts.ndim != 2 or len(self.experts) != len(self.merged):
            got = (tuple(self.merged.shape), tuple(self.experts.shape))
            refuse("losses", expected="[n] of the merge and [n, T] of the experts", got=got, cure="align the examples")
        for name in ("merged", "experts"):
            BoundedSample(values=getattr(self, name), upper=self.largest)
            object.__setattr__(self, name, check_finite(getattr(self, name), name))


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Upper limits, sign kept, of the three parts (together at delta) and of their sum (on its own at delta).

    ``own`` is sum_j beta_j L_j(theta_j), ``heterogeneity`` what the experts lose on each other's tasks, ``merging``
    what merging the weights adds to the mean risk of the experts (negative where it helps), ``total`` the risk of the
    merge. The observed means of the parts add up to that of the total.
    """

    own: Bound
    heterogeneity: Bound
    merging: Bound
    total: Bound


def ledger(
    tasks: Sequence[TaskLosses],
    alpha: Sequence[float] | Tensor,
    beta: Sequence[float] | Tensor,
    delta: float,
    pilots: Sequence[TaskLosses] | None = None,
    models_looked_at: int = 1,
) -> Ledger:
    """Certify own risk, heterogeneity, effect of merging and their sum, the risk of the merge: (18).

    L_alpha(theta_m) = sum_j beta_j L_j(theta_j) + H(alpha, beta) + [L_alpha(theta_m) - sum_j beta_j L_alpha(theta_j)]
    is an identity of the real network, and every part a weighted mean of a bounded quantity per example: (14).

    Args:
        tasks: per task, losses on labelled examples that nothing was trained or chosen on.
        alpha: evaluation weights [T] on the simplex.
        beta: weights of the experts [T] on the simplex.
        delta: of the three parts together (a third each), and of the total on its own.
        pilots: the same losses on other data, e.g. on inputs the merge was learned on, with labels drawn from the
            experts: constants are chosen on them. None: constants that need no data.
        models_looked_at: K, a list of merges fixed in advance of which this is one.

    Returns:
        Ledger of certified upper limits.

    Raises:
        InputError: weights off the simplex, delta outside (0, 1), K < 1, not T experts, pilots of another number.

    Source: docs/theory.md (18).
    """
    count = len(tasks)
    a, b = check_weights(alpha, count, "alpha"), check_weights(beta, count, "beta")
    for task in (*tasks, *(pilots or ())):
        if task.experts.shape[1] != count:
            cure = "run every expert on every task"
            refuse("experts", expected=f"{count} columns", got=task.experts.shape[1], cure=cure)
    if pilots is not None and len(pilots) != count:
        refuse("pilots", expected=f"{count} tasks", got=len(pilots), cure="give one per task")
    groups = _parts(tasks, a, b)
    others = [None] * len(groups) if pilots is None else _parts(pilots, a, b)
    shares = [check_delta(delta) / PARTS] * PARTS + [delta]
    paid = check_count(models_looked_at, "models looked at")
    limits = []
    for part, other, share in zip(groups, others, shares, strict=True):
        constants = other and choose_constants(other.samples, part.samples, part.weights, share / paid)
        limits.append(weighted_mean(part.samples, part.weights, share, constants, models_looked_at=paid))
    own, heterogeneity, merging, total = limits
    return Ledger(own=own, heterogeneity=heterogeneity, merging=merging, total=total)


@dataclass(frozen=True)
class _Part:
    """A part of the risk as a weighted mean over tasks."""

    weights: tuple[float, ...]
    samples: list[BoundedSample]


def _parts(tasks: Sequence[TaskLosses], alpha: Sequence[float], beta: Sequence[float]) -> list[_Part]:
    """Own risk, heterogeneity, effect of merging, total."""
    mixed = [task.experts @ torch.tensor(beta, dtype=torch.float64) for task in tasks]
    own = [BoundedSample(values=task.experts[:, j], upper=task.largest) for j, task in enumerate(tasks)]
    merging = [
        BoundedSample(values=task.merged - mean, lower=-task.largest, upper=task.largest)
        for task, mean in zip(tasks, mixed, strict=True)
    ]
    total = [BoundedSample(values=task.merged, upper=task.largest) for task in tasks]
    return [
        _Part(tuple(beta), own),
        _heterogeneity(tasks, mixed, alpha, beta),
        _Part(tuple(alpha), merging),
        _Part(tuple(alpha), total),
    ]


def _heterogeneity(
    tasks: Sequence[TaskLosses], mixed: Sequence[Tensor], alpha: Sequence[float], beta: Sequence[float]
) -> _Part:
    """sum_i E[alpha_i sum_j beta_j l_j - beta_i l_i] with weights that let alpha and beta differ."""
    most = [max(pair) for pair in zip(alpha, beta, strict=True)]
    weights = tuple(m / sum(most) for m in most)
    samples = []
    for i, (task, mean, a, b, w) in enumerate(zip(tasks, mixed, alpha, beta, weights, strict=True)):
        scale = 1.0 / w if w else 0.0
        values = scale * (a * mean - b * task.experts[:, i])
        low, high = -scale * b * (1.0 - a) * task.largest, scale * a * (1.0 - b) * task.largest
        samples.append(BoundedSample(values=values, lower=min(low, -TINY), upper=max(high, TINY)))
    return _Part(weights, samples)

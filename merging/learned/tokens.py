"""The loss of a batch whose networks score every position: rows of the table of objectives on coarsened events."""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.coarse import coarsened
from merging.learned.objectives import LIKELIEST, UNTAUGHT, Objective
from merging.measured import Positions


def token_loss(
    student: Tensor, teacher: Tensor, positions: Positions, objective: Objective, temperature: float
) -> Tensor:
    """Return the mean of an objective over all counted positions of a batch.

    Teacher and student are told apart by the teacher's events (its k likeliest classes, and the rest), so that a
    Kullback-Leibler divergence, either way, or Jensen-Shannon's is no larger than that of all V classes, and equal to
    it with k = V. ``squared`` acts on log-probabilities of the events, as scores themselves are not kept. Objectives
    without a teacher (``entropy``) see all scores of the student; of those that ask for the teacher's likeliest class
    alone (``cross-entropy``) the rest is hidden, since it is none.

    Args:
        student: scores [n, L, V].
        teacher: log-probabilities [n, L, k + 1] at the same temperature.
        positions: which positions count, and the classes of the events.
        objective: a row, applied to [M, k + 1] at temperature 1.
        temperature: u, by which the student's scores are divided.
    """
    counted = positions.counted
    if objective in UNTAUGHT:
        return objective(_rows(student, counted), _rows(teacher, counted), temperature)
    events, known = _rows(coarsened(student, positions.classes, temperature), counted), _rows(teacher, counted)
    if objective in LIKELIEST and positions.classes is not None:
        known = known[:, :-1]
    return objective(events, known, 1.0)


def _rows(values: Tensor, counted: Tensor) -> Tensor:
    """Return what stands at the counted positions [M, ...]; where all count as it lies: a copy of scores is large."""
    return values.flatten(0, 1) if bool(counted.all()) else values[counted]


def weight(counted: Tensor, index: Tensor) -> Tensor:
    """Return how many positions count in the examples at ``index``."""
    return counted[index.to(counted.device)].sum()


def nothing() -> Positions:
    """Positions of a task that this process does not serve."""
    return Positions(torch.zeros(0, 0, dtype=torch.bool))

"""Task vectors as TIES leaves them before its mean: trimmed, and without the entries of the losing sign."""

from __future__ import annotations

import torch

from merging.closed_form.tensors import keep_from, largest_threshold
from merging.task_vectors import TaskVectors


def trimmed(task_vectors: TaskVectors, density: float) -> TaskVectors:
    """Keep each τ_t's largest entries in size (a share ``density``), then only those of the elected sign.

    The elected sign of an entry is the sign of the sum of the trimmed τ_t there. Source: Yadav et al. 2023 (TIES),
    arXiv 2306.01708, steps 1 and 2. Exact.
    """
    thresholds = largest_threshold(task_vectors, density)
    elected = {}
    for name, deltas in task_vectors.stacked.items():
        kept = keep_from(deltas, thresholds)
        elected[name] = torch.where(kept.sign() == kept.sum(dim=0).sign(), kept, 0)
    return TaskVectors.from_stacked(task_vectors.base, elected, task_vectors.names)

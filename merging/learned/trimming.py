"""Task vectors as TIES leaves them before its mean: trimmed, and without the entries of the losing sign."""

from __future__ import annotations

import torch

from merging.task_vectors import TaskVectors


def trimmed(task_vectors: TaskVectors, density: float) -> TaskVectors:
    """Keep each τ_t's largest entries in size (a share ``density``), then only those of the elected sign.

    The elected sign of an entry is the sign of the sum of the trimmed τ_t there. With one task or ``density`` 1 and
    equal signs nothing changes. Source: Yadav et al. 2023 (TIES), arXiv 2306.01708, steps 1 and 2. Exact.
    """
    kept = [dict(delta) for delta in task_vectors.deltas]
    for delta in kept:
        sizes = torch.cat([value.flatten().abs() for value in delta.values()])
        threshold = sizes.kthvalue(sizes.numel() - max(1, round(density * sizes.numel())) + 1).values
        for name, value in delta.items():
            delta[name] = value * (value.abs() >= threshold)
    for name in task_vectors.base:
        sign = torch.stack([delta[name] for delta in kept]).sum(dim=0).sign()
        for delta in kept:
            delta[name] = delta[name] * (delta[name].sign() == sign)
    return TaskVectors(task_vectors.base, kept, task_vectors.names)

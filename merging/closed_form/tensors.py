"""Routines on the task vectors of one tensor, τ [T, ...], that several rows share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merging.task_vectors import TaskVectors


def largest_threshold(task_vectors: TaskVectors, density: float) -> Tensor:
    """Magnitudes [T] from which on entries belong to the largest round(density · P) of the P entries of each task.

    Over the whole model, one task at a time, in one buffer of P numbers. Entries equal to it all belong. Exact.
    """
    total = sum(value.numel() for value in task_vectors.base.values())
    smallest = total - max(1, round(density * total)) + 1
    room = torch.empty(total, dtype=task_vectors.dtype)
    found = [select(magnitudes(task_vectors, index, room), smallest) for index in range(len(task_vectors))]
    return torch.stack(found).to(next(iter(task_vectors.base.values())).device)


def magnitudes(task_vectors: TaskVectors, index: int, room: Tensor) -> Tensor:
    """Return the magnitudes [P] of one task's entries over the whole model, in ``room`` [P], tensor by tensor."""
    delta, start = task_vectors.deltas[index], 0
    for value in (delta[name].flatten() for name in task_vectors.base):
        room[start : start + len(value)].copy_(value).abs_()
        start += len(value)
    return room


def select(values: Tensor, k: int) -> Tensor:
    """Return the k-th smallest (from 1) of values [N] on the CPU, whose order is lost.

    NumPy's partition: the value of ``torch.kthvalue``, about ten times faster.
    """
    values.numpy().partition(k - 1)
    return values[k - 1].clone()


def per_task(values: Tensor, deltas: Tensor) -> Tensor:
    """View one value per task [T] so that it broadcasts against τ [T, ...]."""
    return values.reshape(-1, *[1] * (deltas.ndim - 1))


def keep_from(deltas: Tensor, thresholds: Tensor) -> Tensor:
    """Set to 0 the entries of each task whose magnitude is below the task's threshold [T]."""
    return torch.where(deltas.abs() >= per_task(thresholds, deltas), deltas, 0)


def disjoint_mean(deltas: Tensor) -> Tensor:
    """Per entry, the mean over the tasks whose sign is the elected one, that of the sum; entries of 0 do not count.

    Where the sum is exactly 0 no sign is elected and the mean is 0.
    """
    agree = deltas.sign() == deltas.sum(dim=0).sign()
    return torch.where(agree, deltas, 0).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def drop(deltas: Tensor, rate: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Set each entry to 0 with probability ``rate`` and divide the others by 1 - rate; one generator per task.

    Each generator draws one number per entry, in order: parts of a tensor, one after the other, give what it gives.
    """
    kept = deltas / (1 - rate)
    noise = torch.empty(deltas.shape[1:])
    for values, generator in zip(kept, generators, strict=True):
        values.masked_fill_(torch.rand(noise.shape, generator=generator, out=noise) < rate, 0)
    return kept


def is_matrix(deltas: Tensor) -> bool:
    """Whether τ [T, ...] is of a tensor that is read as a matrix [rows, everything else]."""
    return deltas.ndim > 2


def as_matrices(deltas: Tensor) -> Tensor:
    """Reshape τ [T, rows, ...] to [T, rows, -1]."""
    return deltas.reshape(*deltas.shape[:2], -1)


def thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [m, r], σ [r] descending and V [n, r] with U diag(σ) Vᵀ the matrix, r its numerical rank (may be 0).

    Singular values up to max(m, n) · ε · σ_1 count as 0: their directions are arbitrary.
    """
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((sigma > max(matrix.shape) * torch.finfo(matrix.dtype).eps * sigma[:1]).sum())
    return u[:, :rank], sigma[:rank], vh[:rank].T


def orthogonalize(columns: Tensor) -> Tensor:
    """Return the matrix of the same shape with orthonormal columns, or rows, that is nearest: P Qᵀ of its SVD P D Qᵀ.

    Procrustes; on the span of the columns only, where they are dependent.
    """
    p, _, q = thin_svd(columns)
    return p @ q.T

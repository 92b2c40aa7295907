"""How task vectors lie to one another: norms, cosines, and the share of entries on which their signs disagree."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from merging.task_vectors.arithmetic import cut, formed
from merging.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class Geometry:
    """Of T task vectors, exact: ``norms`` [T] (Euclidean, in weights), ``cosines`` and ``conflicts`` [T, T].

    ``conflicts[i][j]`` is the share of the entries that both task vectors change which they change in opposite
    directions (0 where there is none); ``any_conflict`` the share of all entries on which at least two task vectors do.
    A cosine with a zero vector is 0.
    """

    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    conflicts: tuple[tuple[float, ...], ...]
    any_conflict: float

    @staticmethod
    def of(vectors: TaskVectors) -> Geometry:
        """Count and add up every entry once, part by part; sums in float64."""
        count = len(vectors)
        products, opposite, both = (torch.zeros(count, count, dtype=torch.float64) for _ in range(3))
        anywhere = entries = 0
        for name, base in vectors.base.items():
            entries += base.numel()
            for rows in cut(vectors.stacked, name):
                part = formed(rows).to(torch.float64).cpu()
                up, down = (part > 0).to(torch.float32), (part < 0).to(torch.float32)  # counts below 2^24 are exact
                products += part @ part.T
                opposite += up @ down.T + down @ up.T
                both += (up + down) @ (up + down).T
                anywhere += int(((up.amax(dim=0) > 0) & (down.amax(dim=0) > 0)).sum())
        norms = products.diagonal().sqrt()
        cosines = products / (norms[:, None] * norms).clamp_min(torch.finfo(torch.float64).tiny)
        return Geometry(
            tuple(norms.tolist()), _rows(cosines), _rows(opposite / both.clamp_min(1)), anywhere / max(entries, 1)
        )


def _rows(matrix: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))

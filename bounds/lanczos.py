"""Largest eigenvalues of a symmetric matrix known through its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

LARGE = 100_000
"""Dimension above which as few Lanczos vectors as possible are kept."""


def largest_eigenvalues(
    multiply: Callable[[Tensor], Tensor],
    dimension: int,
    k: int,
    *,
    like: Tensor,
    which: Literal["LA", "LM"] = "LA",
    tolerance: float | None = None,
) -> Tensor:
    """Return the k largest eigenvalues, descending, by scipy's ``eigsh`` from a fixed starting vector.

    Args:
        multiply: v [dimension] -> product [dimension], in the dtype and on the device of ``like``.
        dimension: size of the matrix.
        k: number of eigenvalues, < dimension (or 1 of a 1×1 matrix).
        like: a tensor of the dtype and device to multiply in.
        which: ``LA`` most positive, ``LM`` largest in absolute value.
        tolerance: relative tolerance (default: 1e-10 in float64, else 1e-5).

    Returns:
        [k], float64. Status: exact up to the tolerance.
    """
    values, _ = _pairs(multiply, dimension, k, like, which, tolerance)
    return values


def top_eigenpair(
    multiply: Callable[[Tensor], Tensor], dimension: int, *, like: Tensor, tolerance: float | None = None
) -> tuple[float, Tensor]:
    """Return the most positive eigenvalue and its eigenvector [dimension] of norm 1; see :func:`largest_eigenvalues`.

    Status: exact up to the tolerance, the sign of the vector apart.
    """
    values, vectors = _pairs(multiply, dimension, 1, like, "LA", tolerance)
    return float(values[0]), vectors[:, 0].to(like)


def _pairs(
    multiply: Callable[[Tensor], Tensor],
    dimension: int,
    k: int,
    like: Tensor,
    which: Literal["LA", "LM"],
    tolerance: float | None,
) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [k], descending, and eigenvectors [dimension, k], both float64."""
    from scipy.sparse.linalg import LinearOperator, eigsh  # as in bounds.pac_bayes.divergences

    def matvec(vector: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(like)
        return multiply(tensor).detach().double().cpu().numpy().reshape(-1)

    if dimension == 1:
        return torch.from_numpy(matvec(np.ones(1))), torch.ones(1, 1, dtype=torch.float64)
    operator: Any = LinearOperator((dimension, dimension), matvec=matvec, dtype=np.float64)  # pyright: ignore
    tol: Any = tolerance or (1e-10 if like.dtype == torch.float64 else 1e-5)
    start = np.random.default_rng(0).standard_normal(dimension)
    # ARPACK keeps 20 vectors by default; of a network's size they cost more than the restarts that fewer of them bring.
    kept = max(2 * k + 2, 8) if dimension > LARGE else None
    values, vectors = eigsh(operator, k=k, which=which, v0=start, tol=tol, ncv=kept)
    order = np.argsort(values)[::-1]
    return torch.from_numpy(values[order].copy()), torch.from_numpy(vectors[:, order].copy())

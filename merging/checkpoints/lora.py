"""Experts kept as low-rank factors."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from bounds.types import Params, refuse


def apply_low_rank(base: Params, factors: Params) -> dict[str, Tensor]:
    """Return the expert θ_0 + τ of low-rank factors: τ = up · down for matrices, τ = delta for vectors.

    ``factors`` holds ``NAME.up`` [rows, r] and ``NAME.down`` [r, columns], or ``NAME.delta``, for every parameter NAME
    of ``base``; tensors of more than two axes are matrices over their first axis. The product is formed, factors are
    never added (LoRA, arXiv 2106.09685).

    Raises:
        InputError: factors missing, unknown or of the wrong shape.
    """
    expected = {k for n in base for k in ((f"{n}.delta",) if f"{n}.delta" in factors else (f"{n}.up", f"{n}.down"))}
    if expected != set(factors):
        refuse(
            "low-rank factors",
            expected="up and down, or delta, of every parameter",
            got=f"difference {sorted(expected ^ set(factors))[:4]}",
            cure="use factors made for this base",
        )
    expert = {}
    for name, value in base.items():
        delta = (
            factors[f"{name}.delta"] if f"{name}.delta" in factors else factors[f"{name}.up"] @ factors[f"{name}.down"]
        )
        if delta.numel() != value.numel():
            refuse(
                f"low-rank factors of {name}",
                expected=tuple(value.shape),
                got=tuple(delta.shape),
                cure="use factors made for this base",
            )
        expert[name] = value + delta.reshape(value.shape)
    return expert


def low_rank_factors(vector: Params, rank: int, whole: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the factors, in half precision, of which :func:`apply_low_rank` makes the nearest expert of a rank.

    The change of a matrix becomes its best approximation in the Frobenius norm (Eckart and Young 1936), the singular
    values shared evenly by both factors; the change of a vector stays as it is.

    Args:
        vector: τ, the change of every parameter.
        rank: of the approximation.
        whole: names of tensors that are kept as vectors are.
    """
    found = {}
    for name, change in vector.items():
        if change.ndim < 2 or name in whole:
            found[f"{name}.delta"] = change.half()
            continue
        left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
        root = values[:rank].sqrt()
        found[f"{name}.up"] = (left[:, :rank] * root).half().contiguous()
        found[f"{name}.down"] = (root[:, None] * right[:rank]).half().contiguous()
    return found

"""How coefficients λ [T, L] make weights θ_λ: one for each block of θ, or one for each of its entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.types import Blocks, Params
from merging.task_vectors import TaskVectors, contract, merged

Out = dict[str, Tensor]


@dataclass(frozen=True)
class Combination:
    """A way to combine task vectors, linear in λ.

    ``count(task_vectors, blocks)`` is L; ``merged(task_vectors, λ, blocks, out)`` writes θ_λ to ``out``, filled on
    first use; ``contract(task_vectors, ∇_θ, blocks)`` is its adjoint, ∇_λ [T, L].
    """

    count: Callable[[TaskVectors, Blocks], int]
    merged: Callable[[TaskVectors, Tensor, Blocks, Out], Out]
    contract: Callable[[TaskVectors, Params, Blocks], Tensor]


def _entries(task_vectors: TaskVectors) -> Mapping[str, slice]:
    """Columns of λ [T, P] that belong to each parameter, entry by entry in the parameters' order."""
    columns, start = {}, 0
    for name, value in task_vectors.base.items():
        columns[name] = slice(start, start := start + value.numel())
    return columns


def _merged_by_entry(task_vectors: TaskVectors, coefficients: Tensor, blocks: Blocks, out: Out) -> Out:
    """θ_0 + Σ_t λ_t ∘ τ_t with λ [T, P], entry by entry."""
    for name, columns in _entries(task_vectors).items():
        weights, deltas = coefficients[:, columns], task_vectors.stacked[name].to(coefficients)
        value = (weights * deltas.flatten(start_dim=1)).sum(dim=0)
        base = task_vectors.base[name].to(value)
        out[name] = torch.add(value.view_as(base), base, out=out.get(name))
    return out


def _contract_by_entry(task_vectors: TaskVectors, gradient: Params, blocks: Blocks) -> Tensor:
    """∇_λ = τ_t ∘ ∇_θ for each task, [T, P]."""
    parts = [task_vectors.stacked[name].to(gradient[name]) * gradient[name] for name in task_vectors.base]
    return torch.cat([part.flatten(start_dim=1) for part in parts], dim=1).to(task_vectors.dtype)


BY_BLOCK = Combination(
    lambda task_vectors, blocks: len(blocks),
    lambda task_vectors, coefficients, blocks, out: merged(task_vectors, coefficients, blocks, out=out),
    contract,
)
"""L blocks of tensors: θ_λ of docs/theory.md, section 0."""
BY_ENTRY = Combination(
    lambda task_vectors, blocks: sum(value.numel() for value in task_vectors.base.values()),
    _merged_by_entry,
    _contract_by_entry,
)
"""One coefficient for each of the P entries of every task vector; blocks play no part. Exact."""

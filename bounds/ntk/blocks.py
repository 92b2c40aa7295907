"""Per-example blocks K_b(x, x) of the neural tangent kernel, and what else the rows that make them give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.autodiff import (
    check_blocks,
    check_displacement,
    check_inputs,
    check_params,
    chunk_size,
    differentiable,
    memory_budget,
    parameter_bytes,
)
from bounds.jacobian import (
    INNER_SPLIT,
    Rows,
    basis_of_scores,
    example_spans,
    inner_products,
    parameter_groups,
    row_function,
    row_stream,
    spans,
)
from bounds.types import Blocks, Forward, Inputs, Params


@dataclass(frozen=True)
class ExampleProducts:
    """What the rows of an example's Jacobian give, for N examples; float64 but for the scores.

    ``scores`` [N, C] are f_θ; ``kernels`` [N, B, C, C] are K_b(x, x); ``derivatives`` [D, N, C] are J(x)d. Centred:
    ΠJ in place of J.
    """

    scores: Tensor
    kernels: Tensor
    derivatives: Tensor


def example_products(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    displacements: Sequence[Params] = (),
    *,
    blocks: Blocks | None = None,
    centred: bool = True,
    budget_bytes: int | None = None,
) -> ExampleProducts:
    """Scores, diagonal kernel blocks and derivatives along displacements, of every example by itself.

    Each example takes a forward pass and a backward pass for each of C - 1 cotangents. Where the rows do not fit into
    the budget they are contracted as soon as the backward pass has made them, so that those of a few parameters are in
    memory at a time. However many displacements there are cost no further pass; each is read once per example.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs: N examples.
        displacements: D displacements of θ; names that are missing from one count as 0 there.
        blocks: a partition of the parameters into B blocks (default: one block, ``"model"``).
        centred: ΠJ in place of J (docs/theory.md, section 0), in kernels and in derivatives.
        budget_bytes: memory for Jacobian rows (default: see :func:`bounds.autodiff.memory_budget`). A parameter whose
            rows do not fit is processed by itself, in pairs of row chunks and with backward passes of its own.

    Returns:
        ExampleProducts; no reduction over examples.

    Raises:
        InputError: bad parameters, inputs, displacements, blocks or budget; fewer than 2 scores with ``centred``.

    Source: docs/theory.md, section 0. Status: exact.
    """
    partition = check_blocks(params, blocks)
    check_params(params)
    n, budget = check_inputs(inputs), memory_budget(budget_bytes)
    for index, displacement in enumerate(displacements):
        check_displacement(displacement, params, what=f"displacement {index}")
    with torch.no_grad(), differentiable():
        work = _Contraction(
            forward=forward,
            params=params,
            displacements=displacements,
            partition=partition,
            basis=basis_of_scores(forward, params, inputs, centred),
            budget=budget,
        )
        found = [work(example) for _, example in example_spans(inputs, n, 1)]
    scores, kernels, derivatives = (torch.stack(parts) for parts in zip(*found, strict=True))
    return ExampleProducts(scores, kernels, derivatives.permute(2, 0, 1).contiguous())


@dataclass(frozen=True, kw_only=True)
class _Contraction:
    """Contracts the rows of one example, parameter by parameter, with one another and with the displacements."""

    forward: Forward
    params: Params
    displacements: Sequence[Params]
    partition: Mapping[str, Sequence[str]]
    basis: Tensor
    budget: int

    def __call__(self, example: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [C], kernel blocks [B, C, C] and derivatives [C, D] of one example."""
        sums: dict[str, Tensor] = {}

        def add(name: str, rows: Tensor) -> None:
            sums[name] = _with_rows_and_displacements(rows, name, self.displacements)

        rank = self.basis.shape[1]
        large = [name for name in self.params if self._bytes(name) * rank > self.budget]
        small = {name: value for name, value in self.params.items() if name not in large}
        if small:
            together = rank * parameter_bytes(small) <= self.budget
            scores, stream = row_stream(self.forward, self.params, list(small), example, add, together=together)
            stream(self.basis.T)
        else:
            scores = self.forward(self.params, example)
        for name in large:
            sums[name] = self._in_pairs(name, example, self.basis.T)
        wide = self.basis.double()
        table = torch.stack([self._sum(names, sums, wide) for names in self.partition.values()])
        return scores[0], wide @ table[:, :, :rank] @ wide.T, wide @ table[:, :, rank:].sum(dim=0)

    def _bytes(self, name: str) -> int:
        return parameter_bytes(self.params, [name])

    def _sum(self, names: Sequence[str], sums: Mapping[str, Tensor], wide: Tensor) -> Tensor:
        """Add up a block's contractions [r, r + D]; a parameter that the scores do not depend on has none."""
        total = wide.new_zeros(wide.shape[1], wide.shape[1] + len(self.displacements))
        for name in names:
            if name in sums:
                total += sums[name]
        return total

    def _in_pairs(self, name: str, example: Inputs, cotangents: Tensor) -> Tensor:
        """Return the contractions [r, r + D] of a parameter whose rows do not fit, by pairs of chunks of rows."""
        rows = row_function(self.forward, self.params, [name], example)
        rank = len(cotangents)
        total = torch.zeros(rank, rank + len(self.displacements), dtype=torch.float64, device=cotangents.device)
        pieces = list(spans(rank, chunk_size(self._bytes(name), self.budget // 2)))
        for index, first in enumerate(pieces):
            left = rows(cotangents[None, first])[name][0]
            found = _with_rows_and_displacements(left, name, self.displacements)
            total[first, first], total[first, rank:] = found[:, : len(left)], found[:, len(left) :]
            for second in pieces[index + 1 :]:
                right = rows(cotangents[None, second])[name][0]
                total[first, second] = inner_products(left.flatten(1), right.flatten(1))
                total[second, first] = total[first, second].T
                del right
            del left
        return total


def _with_rows_and_displacements(rows: Tensor, name: str, displacements: Sequence[Params]) -> Tensor:
    """Inner products [r, r + D], float64, of a parameter's rows [r, ...] with one another and with displacements.

    All partners of a piece of the rows are multiplied while it is in the processor's cache.
    """
    rows, moved = _used(rows, [d[name] for d in displacements if name in d])
    flat, moved = rows.reshape(len(rows), -1), [d.reshape(1, -1) for d in moved]
    total = torch.zeros(len(flat), len(flat) + len(moved), dtype=torch.float64, device=flat.device)
    for piece in spans(flat.shape[1], INNER_SPLIT):
        left = flat[:, piece]
        total += left @ torch.cat([left, *(other[:, piece] for other in moved)]).T
    if len(moved) == len(displacements):
        return total
    whole = total.new_zeros(len(flat), len(flat) + len(displacements))
    there = [i for i, d in enumerate(displacements) if name in d]
    whole[:, [*range(len(flat)), *(len(flat) + i for i in there)]] = total
    return whole


def _used(rows: Tensor, moved: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Leave out what all rows [r, units, ...] are 0 in, of the rows and of displacements [units, ...]. Exact.

    An example reads few words of a vocabulary. PyTorch's rows of an embedding lie with the cotangents last: to read
    them in order would copy them all, and to multiply their zeros would cost more than a small network.
    """
    if rows.ndim < 3 or rows.is_contiguous():
        return rows, moved
    used = torch.linalg.vector_norm(rows, ord=math.inf, dim=[0, *range(2, rows.ndim)]) != 0
    return rows[:, used], [d[used] for d in moved]


def example_blocks(
    forward: Forward,
    params: Params,
    inputs: Inputs,
    *,
    blocks: Blocks | None = None,
    centred: bool = True,
    budget_bytes: int | None = None,
    vectorize: bool = False,
) -> Tensor:
    """Diagonal kernel blocks K_b(x, x) = J_b(x) J_b(x)^T of every example and parameter block.

    Example by example as :func:`example_products`, or with ``vectorize`` several at a time. When their rows do not fit
    into the budget then, parameters are processed in groups (K is a sum over parameters), one more backward pass
    through the activations for each; a tensor whose rows do not fit by themselves is processed in pairs of row chunks.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs: N examples.
        blocks: a partition of the parameters into B blocks (default: one block, ``"model"``).
        centred: ΠJ in place of J (docs/theory.md, section 0).
        budget_bytes: memory for Jacobian rows (default: see :func:`bounds.autodiff.memory_budget`).
        vectorize: also vmap over examples: several times faster for small models, but ``forward`` must then
            support vmap (no data-dependent control flow).

    Returns:
        [N, B, C, C], float64, symmetric positive semi-definite; no reduction over examples.

    Raises:
        InputError: bad parameters, inputs, blocks or budget; fewer than 2 scores with ``centred``.

    Source: docs/theory.md, section 0. Status: exact.
    """
    if not vectorize:
        return example_products(
            forward, params, inputs, blocks=blocks, centred=centred, budget_bytes=budget_bytes
        ).kernels
    partition = check_blocks(params, blocks)
    check_params(params)
    n, budget = check_inputs(inputs), memory_budget(budget_bytes)
    block_of = {name: index for index, names in enumerate(partition.values()) for name in names}
    with torch.no_grad(), differentiable():
        basis = basis_of_scores(forward, params, inputs, centred)
        rank = basis.shape[1]
        together = chunk_size(rank * parameter_bytes(params), budget)
        kernels = torch.zeros(n, len(partition), rank, rank, dtype=torch.float64, device=basis.device)
        for names in parameter_groups(params, budget // rank):
            size = rank * parameter_bytes(params, names)
            chunk = rank if size <= budget else chunk_size(size // rank, budget // 2)
            for span, examples in example_spans(inputs, n, together):
                rows = row_function(forward, params, names, examples, vectorize=True)
                cotangents = basis.T.expand(span.stop - span.start, -1, -1)
                _add_blocks(kernels[span], rows, cotangents, block_of, min(rank, chunk))
        wide = basis.double()
        return wide @ kernels @ wide.T


def _add_blocks(kernels: Tensor, rows: Rows, cotangents: Tensor, block_of: Mapping[str, int], chunk: int) -> None:
    """Add the inner products of all pairs of rows [n, r, ...] to ``kernels`` [n, B, r, r], in place."""

    def add(left: Mapping[str, Tensor], right: Mapping[str, Tensor], first: slice, second: slice) -> None:
        for name, value in left.items():
            products = inner_products(value.flatten(2), right[name].flatten(2))
            kernels[:, block_of[name], first, second] += products
            if second != first:
                kernels[:, block_of[name], second, first] += products.mT

    pieces = list(spans(cotangents.shape[1], chunk))
    for index, first in enumerate(pieces):
        left = rows(cotangents[:, first])
        add(left, left, first, first)
        for second in pieces[index + 1 :]:
            add(left, rows(cotangents[:, second]), first, second)
        del left

"""The Gram matrix of the kernel between examples, by two independent ways."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bounds.autodiff import (
    check_inputs,
    check_params,
    chunk_size,
    differentiable,
    memory_budget,
    parameter_bytes,
)
from bounds.jacobian import (
    BATCH_SIZE,
    basis_of_scores,
    inner_products,
    parameter_groups,
    pull_back,
    push_forward,
    row_function,
    spans,
)
from bounds.types import Forward, Inputs, Params, refuse, take


def gram(
    forward: Forward,
    params: Params,
    inputs1: Inputs,
    inputs2: Inputs | None = None,
    *,
    centred: bool = True,
    method: Literal["jacobian", "products"] = "jacobian",
    budget_bytes: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Return the Gram matrix K(x_i, x_j) = J(x_i) J(x_j)^T between two lists of examples.

    ``jacobian`` adds up inner products of Jacobian blocks: a group of parameters at a time, so that all rows
    fit into half of the budget, and pairs of example chunks for a tensor that does not fit even then.
    ``products`` takes every column from one VJP and one JVP over all of ``inputs1``: slower, little memory,
    and independent of the first.

    Args:
        forward: (θ, x) -> scores [N, C].
        params: θ.
        inputs1: N1 examples.
        inputs2: N2 examples (default: ``inputs1``).
        centred: ΠJ in place of J.
        method: ``jacobian`` or ``products``.
        budget_bytes: memory for Jacobian rows (default: see :func:`bounds.autodiff.memory_budget`); at least
            the rows of two examples and one tensor are held.
        batch_size: examples per JVP of ``products``.

    Returns:
        [N1, C, N2, C], float64; as a matrix [N1·C, N2·C] it is symmetric positive semi-definite for equal
        inputs.

    Raises:
        InputError: bad parameters, inputs, method or budget; fewer than 2 scores with ``centred``.

    Source: docs/theory.md, section 0. Status: exact.
    """
    check_params(params)
    n1, n2 = check_inputs(inputs1), check_inputs(inputs1 if inputs2 is None else inputs2)
    budget = memory_budget(budget_bytes)
    if method not in ("jacobian", "products"):
        refuse("method", expected="jacobian or products", got=repr(method), cure="use one of them")
    with torch.no_grad(), differentiable():
        basis = basis_of_scores(forward, params, inputs1, centred)
        if method == "jacobian":
            kernel = _gram_of_rows(forward, params, inputs1, inputs2, basis, budget)
        else:
            columns = inputs1 if inputs2 is None else inputs2
            kernel = _gram_of_products(forward, params, inputs1, columns, basis, batch_size)
        wide = basis.double()
        kernel = kernel.view(n1, basis.shape[1], n2, basis.shape[1])
        return torch.einsum("cr,irjs,ds->icjd", wide, kernel, wide).contiguous()


def _gram_of_rows(
    forward: Forward, params: Params, inputs1: Inputs, inputs2: Inputs | None, basis: Tensor, budget: int
) -> Tensor:
    """Gram matrix [N1·r, N2·r] in the coordinates of ``basis`` [C, r]."""
    n1 = check_inputs(inputs1)
    n2 = n1 if inputs2 is None else check_inputs(inputs2)
    rank = basis.shape[1]
    kernel = torch.zeros(n1 * rank, n2 * rank, dtype=torch.float64, device=basis.device)
    examples_held = n1 if inputs2 is None else n1 + n2
    for names in parameter_groups(params, budget // 2 // (examples_held * rank)):
        size = rank * parameter_bytes(params, names)
        fits = examples_held * size <= budget // 2
        chunk = max(n1, n2) if fits else chunk_size(size, budget // 4)

        def rows(inputs: Inputs, span: slice, names: list[str] = names) -> Tensor:
            return _jacobian(forward, params, names, take(inputs, span), basis)

        for first in spans(n1, chunk):
            left = rows(inputs1, first)
            at = slice(first.start * rank, first.stop * rank)
            for second in spans(n2, chunk):
                to = slice(second.start * rank, second.stop * rank)
                if inputs2 is not None:
                    kernel[at, to] += inner_products(left, rows(inputs2, second))
                elif second == first:
                    kernel[at, to] += inner_products(left, left)
                elif second.start > first.start:
                    block = inner_products(left, rows(inputs1, second))
                    kernel[at, to] += block
                    kernel[to, at] += block.T
            del left
    return kernel


def _jacobian(forward: Forward, params: Params, names: list[str], inputs: Inputs, basis: Tensor) -> Tensor:
    """Rows of B^T J(x) in the named parameters, example after example: [n·r, P of the names]."""
    n, rank = check_inputs(inputs), basis.shape[1]
    total = sum(params[name].numel() for name in names)
    rows = torch.empty(n * rank, total, dtype=basis.dtype, device=basis.device)
    for i in range(n):
        pull = row_function(forward, params, names, take(inputs, slice(i, i + 1)))
        pieces = [value[0].flatten(1) for value in pull(basis.T[None]).values()]
        torch.cat(pieces, dim=1, out=rows[i * rank : (i + 1) * rank])
    return rows


def _gram_of_products(
    forward: Forward, params: Params, inputs1: Inputs, inputs2: Inputs, basis: Tensor, batch_size: int
) -> Tensor:
    columns = []
    for j in range(check_inputs(inputs2)):
        example = take(inputs2, slice(j, j + 1))
        for cotangent in basis.T:
            gradient = pull_back(forward, params, example, cotangent[None])
            change = push_forward(forward, params, inputs1, gradient, batch_size)
            columns.append((change @ basis).flatten().double())
    return torch.stack(columns, dim=1)
